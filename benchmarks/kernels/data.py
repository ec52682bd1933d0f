"""Random data for a benchmark: the same numbers as an array of bp and, where PyTorch is there, as a tensor of it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from bp.ops.array import known_dtype

_BLOCK = 1 << 22  # numbers drawn on the host; larger arrays repeat them


class Pair(NamedTuple):
    """ours: an array of the device. theirs: a tensor, None without PyTorch."""

    ours: Any
    theirs: Any


class Data:
    """Draws arrays on a device. torch: the module, or None where it is not installed or sees no GPU."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.torch = _torch(device.name)
        self._generator = np.random.default_rng()  # fresh in every run

    @contextmanager
    def on_one_stream(self) -> Iterator[None]:
        """PyTorch's work goes to the stream of bp, so that one pair of events times either."""
        if self.device.name == "cuda" and self.torch is not None:
            stream = self.torch.cuda.ExternalStream(self.device.stream.ptr)
            context: Any = self.torch.cuda.stream(stream)
        else:
            context = nullcontext()
        with context:
            yield

    def normal(self, shape: tuple[int, ...], dtype: str) -> Pair:
        """N(0, 1), in float32, float16 or bfloat16."""
        if self.device.name == "cuda" and self.torch is not None:
            tensor = self.torch.randn(shape, dtype=getattr(self.torch, dtype), device="cuda")
            return Pair(self._shared(tensor), tensor)
        count = int(np.prod(shape))
        drawn = self._generator.standard_normal(min(count, _BLOCK), np.float32)
        host = np.resize(drawn, count).reshape(shape)
        theirs = None if self.torch is None else self.torch.from_numpy(host).to(getattr(self.torch, dtype))
        return Pair(self.device.from_host(host.astype(known_dtype(dtype))), theirs)

    def integers(self, end: int, count: int) -> Pair:
        """int64 in 0..end-1."""
        host = self._generator.integers(0, end, count)
        tensor = None
        if self.torch is not None:
            tensor = self.torch.from_numpy(host).to("cuda" if self.device.name == "cuda" else "cpu")
        return Pair(self.device.from_host(host), tensor)

    def zeros(self, shape: tuple[int, ...], dtype: str = "float32") -> Any:
        """An array of the device alone."""
        return self.device.zeros(shape, known_dtype(dtype))

    def _shared(self, tensor: Any) -> Any:
        """The memory of a tensor as an array of CuPy."""
        cupy = self.device.cupy
        nbytes = tensor.numel() * tensor.element_size()
        memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), nbytes, tensor)
        dtype = known_dtype(str(tensor.dtype).removeprefix("torch."))
        return cupy.ndarray(tuple(tensor.shape), dtype, cupy.cuda.MemoryPointer(memory, 0))


def _torch(device: str) -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if device != "cuda" or torch.cuda.is_available() else None
