"""PyTorch, on the CPU with oneDNN behind it or on a GPU with cuBLAS and cuDNN."""

import functools
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from bp.bench.benchmark import Work
from bp.bench.drawing import Drawn
from bp.bench.libraries.library import DeviceClock, Library
from bp.errors import ConfigurationError


def open_on(device: str) -> "Torch":
    """PyTorch on a device; raises ConfigurationError where it is missing or sees no GPU."""
    try:
        import torch
    except ImportError:
        raise ConfigurationError("PyTorch is not installed: pip install torch==2.13.0") from None
    if device == "emulator":
        raise ConfigurationError("PyTorch does not run on the emulator")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("this PyTorch sees no GPU: install its build for CUDA")
    return Torch(device, torch)


class Torch(Library):
    """Tensors on a device."""

    def __init__(self, device: str, torch: Any) -> None:
        versions = {"torch": torch.__version__}
        if device == "cuda":
            versions |= {"CUDA of torch": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        super().__init__(device, versions)
        self.torch = torch
        self._clock: DeviceClock | None = None
        torch.backends.cudnn.benchmark = True  # let it choose the fastest of its algorithms

    @contextmanager
    def running(self, precision: str) -> Iterator[None]:
        """TF32 is on for the precision of that name alone."""
        self.torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        self.torch.backends.cudnn.allow_tf32 = precision == "tf32"
        yield

    def place(self, drawn: Drawn) -> Any:
        block = drawn.block.copy()  # tensors of the CPU would share it
        if str(block.dtype) == "bfloat16":  # which PyTorch does not take from NumPy
            tensor = self.torch.from_numpy(block.view(np.int16)).to(self.device).view(self.torch.bfloat16)
        else:
            tensor = self.torch.from_numpy(block).to(self.device)
        if drawn.size > len(block):
            tensor = tensor.repeat(-(-drawn.size // len(block)))
        return tensor[: drawn.size].reshape(drawn.shape).clone()

    def host(self, array: Any, ends: int | None) -> np.ndarray:
        array = array.detach()
        if ends is not None and array.dim() and 2 * ends < len(array):
            array = self.torch.cat([array[:ends], array[len(array) - ends :]])
        return np.asarray(array.to("cpu", self.torch.float64).numpy())

    def poison(self, array: Any) -> None:
        with self.torch.no_grad():
            floating = array.dtype.is_floating_point
            array.fill_(float("nan") if floating else self.torch.iinfo(array.dtype).min)

    def span(self, array: Any) -> tuple[int, int]:
        storage = array.untyped_storage()
        return (storage.data_ptr(), storage.data_ptr() + storage.nbytes())

    def release(self) -> None:
        compiler = sys.modules.get("torch._dynamo")
        if compiler is not None:
            # It keeps what it compiled by the code of a function, which the cases of a benchmark share; beyond eight it
            # gives up, and runs the function as it is.
            compiler.reset()
        super().release()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def compiled(self, work: Work) -> Work:
        """Under torch.compile, specialised to these shapes."""
        compiled: Work = self.torch.compile(work, dynamic=False)
        return compiled

    def graph(self, works: Sequence[Work]) -> Callable[[], object]:
        if self.device == "cpu":
            return super().graph(works)
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            kept = [work() for work in works]  # so that no output takes the memory of another

        def replay() -> object:
            graph.replay()
            return kept

        return replay

    def seconds(self, run: Work, runs: int, cold: bool) -> float:
        if self.device == "cpu":
            return super().seconds(run, runs, cold)
        if self._clock is None:
            cuda = self.torch.cuda
            buffer = self.torch.empty(DeviceClock.FLUSH_BYTES // 4, device="cuda")
            self._clock = DeviceClock(
                functools.partial(buffer.fill_, 1.0), lambda: _mark(cuda), lambda mark: _since(cuda, mark)
            )
        return self._clock.seconds(run, runs, cold)

    def start_peak(self) -> None:
        if self.device == "cpu":
            super().start_peak()
        else:
            gc.collect()  # what goes while it is watched would hide as much that comes
            self.torch.cuda.reset_peak_memory_stats()
            self._allocated = self.torch.cuda.memory_allocated()

    def peak_bytes(self) -> float | None:
        if self.device == "cpu":
            return super().peak_bytes()
        return float(self.torch.cuda.max_memory_allocated() - self._allocated)


def _mark(cuda: Any) -> Any:
    event = cuda.Event(enable_timing=True)
    event.record()
    return event


def _since(cuda: Any, mark: Any) -> float:
    now = _mark(cuda)
    now.synchronize()
    return float(mark.elapsed_time(now)) * 1e-3
