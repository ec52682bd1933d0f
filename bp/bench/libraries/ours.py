"""bp itself, on the CPU, on a GPU or on the emulator."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import bp
from bp.bench.benchmark import Work
from bp.bench.drawing import Drawn
from bp.bench.libraries.library import DeviceClock, HostLibrary, Library
from bp.cpu.native import kernels
from bp.ops.array import known_dtype
from bp.ops.device import find_device


def open_on(device: str) -> Library:
    """bp on a device; raises ConfigurationError where it cannot be used."""
    return OursOnHost() if device == "cpu" else OursOnDevice(device)


class OursOnHost(HostLibrary):
    """The CPU device: outputs are reused from run to run, as in a training."""

    def __init__(self) -> None:
        super().__init__("cpu", {"bp": bp.__version__, "native kernels": "no" if kernels is None else "yes"})

    def memory(self) -> AbstractContextManager[Any]:
        from bp.cpu.runtime import StepMemory

        return StepMemory()


class OursOnDevice(Library):
    """A GPU, or the emulator of one."""

    def __init__(self, name: str) -> None:
        own: Any = find_device(name)
        self.own = own
        capability = f"{own.capability // 10}.{own.capability % 10}"
        versions = {"bp": bp.__version__, "compute capability": capability, "kernel choice": own.kernel_choice}
        super().__init__(name, versions | self._cupy_versions())
        self._clock: DeviceClock | None = None

    def _cupy_versions(self) -> dict[str, str]:
        if self.own.name != "cuda":
            return {}
        from bp.bench.libraries.with_cupy import versions

        return versions()

    @property
    def precisions(self) -> tuple[str, ...]:
        return self.own.precisions

    def running(self, precision: str) -> AbstractContextManager[Any]:
        return self.own.running(precision)

    def memory(self) -> AbstractContextManager[Any]:
        return self.own.StepMemory()

    def place(self, drawn: Drawn) -> Any:
        """The block is copied once, and then doubled on the device until the array is full."""
        whole = self.own.zeros((drawn.size,), known_dtype(drawn.block.dtype))
        filled = min(len(drawn.block), drawn.size)
        if filled:
            self.own.copy(whole[:filled], drawn.block[:filled])
        while filled and filled < drawn.size:
            # Copies of whole blocks only: what comes after must go on where the block began.
            count = min(filled, drawn.size - filled)
            self.own.copy(whole[filled : filled + count], whole[:count])
            filled += count
        return whole.reshape(drawn.shape)

    def host(self, array: Any, ends: int | None) -> np.ndarray:
        if ends is None or not array.shape or 2 * ends >= array.shape[0]:
            return np.asarray(self.own.to_host(array), np.float64)
        rows = array.shape[0]
        parts = [self.own.to_host(array[:ends]), self.own.to_host(array[rows - ends :])]
        return np.concatenate(parts).astype(np.float64)

    def poison(self, array: Any) -> None:
        if array.size:
            kind = known_dtype(array.dtype).kind
            self.own.fill(array, {"i": -1.0, "u": 1.0, "b": 1.0}.get(kind, math.nan))

    def span(self, array: Any) -> tuple[int, int]:
        begin = self.own.pointer(array)
        return (begin, begin + array.nbytes)

    def release(self) -> None:
        super().release()
        if self.own.name == "cuda":
            self.own.cupy.get_default_memory_pool().free_all_blocks()

    def synchronize(self) -> None:
        self.own.synchronize()

    def graph(self, works: Sequence[Work]) -> Callable[[], object]:
        """Captured from the stream; outputs are given back, so that none is allocated meanwhile. Work that calls cuBLAS
        cannot be captured: CuPy raises NotImplementedError."""
        if self.own.name != "cuda":
            return super().graph(works)
        stream = self.own.cupy.cuda.get_current_stream()
        stream.begin_capture()
        try:
            for work in works:
                work()
        finally:
            graph = stream.end_capture()
        launch: Callable[[], object] = graph.launch
        return launch

    def seconds(self, run: Work, runs: int, cold: bool) -> float:
        if self._clock is None:
            buffer = self.own.zeros((DeviceClock.FLUSH_BYTES // 4,), np.float32)
            device = self.own
            self._clock = DeviceClock(
                lambda: device.fill(buffer, float(time.monotonic_ns() % 1000)),
                device.mark,
                lambda mark: device.since(mark)(),
            )
        return self._clock.seconds(run, runs, cold)

    def start_peak(self) -> None:
        self.release()  # else arrays take what the pool has kept, and nobody sees it
        self._before = self._held()

    def peak_bytes(self) -> float | None:
        return None if self._before is None else max(self._held() - self._before, 0.0)

    def _held(self) -> Any:
        return self.own.cupy.get_default_memory_pool().total_bytes() if self.own.name == "cuda" else None
