"""What a library has to offer to take part in benchmarks."""

import ctypes
import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from bp.bench.benchmark import Work
from bp.bench.drawing import Drawn
from bp.errors import ConfigurationError

# Seconds, so that threads are awake and caches warm. Where cores are virtual that is not always enough: a thread may
# wake on the core of the one that woke it, and wait there for a time slice of some 4 ms.
WARM_UP = 0.002


class Library(ABC):
    """Arrays and a clock. device: "cpu", "cuda" or "emulator"; versions: of it and of what it stands on."""

    def __init__(self, device: str, versions: dict[str, str]) -> None:
        self.device = device
        self.versions = versions

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that it computes in on this device."""
        return ("bf16", "fp32", "tf32", "fp16") if self.device == "cuda" else ("fp32", "fp64")

    def running(self, precision: str) -> AbstractContextManager[Any]:
        """Work runs within it."""
        return nullcontext()

    def memory(self) -> AbstractContextManager[Any]:
        """Every run of one work goes through the same one of these: where outputs are reused from run to run."""
        return nullcontext()

    @abstractmethod
    def place(self, drawn: Drawn) -> Any:
        """The array on the device."""

    @abstractmethod
    def host(self, array: Any, ends: int | None) -> np.ndarray:
        """In float64: the array, or its first and last so many rows."""

    @abstractmethod
    def poison(self, array: Any) -> None:
        """Overwrite every element with what hardly a right result is: NaN, or an integer."""

    @abstractmethod
    def span(self, array: Any) -> tuple[int, int]:
        """The first address of its memory and the one after the last."""

    def release(self) -> None:
        """Give back the memory of the case before; pools of devices keep it beyond the arrays."""
        gc.collect()

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the device; raises where it has failed."""

    def compiled(self, work: Work) -> Work:
        """The same work under the library's compiler."""
        raise NotImplementedError(f"{type(self).__name__} has no compiler")

    def graph(self, works: Sequence[Work]) -> Callable[[], object]:
        """What launches all of these, one after the other, as one; each has run before. For GPUs alone.

        Raises ConfigurationError where one of them does what cannot be replayed.
        """
        raise ConfigurationError(f"device '{self.device}' has no graphs of launches")

    def seconds(self, run: Work, runs: int, cold: bool) -> float:
        """Of one run, by the mean of so many in a row; those of the first `WARM_UP` seconds, before, are not counted.
        cold: caches are emptied before, which only a GPU can do."""
        warm = time.perf_counter() + WARM_UP
        run()
        while time.perf_counter() < warm:
            run()
        begun = time.perf_counter()
        for _ in range(runs):
            run()
        return (time.perf_counter() - begun) / runs

    def start_peak(self) -> None:
        """Begin to watch the peak of memory."""
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # memory that is free but still held would be taken unseen
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")  # the high-water mark becomes what is resident now; see proc(5)
        self._resident = _resident("VmRSS")

    def peak_bytes(self) -> float | None:
        """The most memory held since `start_peak`, beyond what was held then; None where that cannot be told."""
        peak = _resident("VmHWM")
        return None if peak is None or self._resident is None else max(peak - self._resident, 0.0)


class HostLibrary(Library):
    """Arrays are NumPy's."""

    def place(self, drawn: Drawn) -> Any:
        return drawn.whole()

    def host(self, array: Any, ends: int | None) -> np.ndarray:
        return both_ends(np.asarray(array), ends).astype(np.float64)

    def poison(self, array: Any) -> None:
        if isinstance(array, np.ndarray):
            array[...] = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min

    def span(self, array: Any) -> tuple[int, int]:
        if not isinstance(array, np.ndarray):
            return (0, 0)
        begin: int = array.__array_interface__["data"][0]
        return (begin, begin + array.nbytes)

    def synchronize(self) -> None:
        """The host has done its work when it returns."""


class DeviceClock:
    """Times runs on a GPU by its own events.

    Before each run it fills `flush_bytes` of memory: so what the run before left in the second-level cache is gone, and
    the host has time to queue the whole run before the device begins with it. Warm runs follow one another, with a
    fill that leaves the cache alone only in front of the first.
    """

    FLUSH_BYTES = 1 << 29  # many times the second-level cache, and a head start of some 100 us for the host

    def __init__(self, fill: Callable[[], None], mark: Callable[[], Any], since: Callable[[Any], float]) -> None:
        self.fill, self.mark, self.since = fill, mark, since

    def seconds(self, run: Work, runs: int, cold: bool) -> float:
        """The mean of so many runs. since: seconds between a mark and now, on the device; waits."""
        if cold:
            total = 0.0
            for _ in range(runs):
                self.fill()
                begun = self.mark()
                run()
                total += self.since(begun)
            return total / runs
        run()
        self.fill()
        run()
        begun = self.mark()
        for _ in range(runs):
            run()
        return self.since(begun) / runs


def both_ends(array: Any, ends: int | None) -> Any:
    """The first and last so many rows, or all."""
    if ends is None or 2 * ends >= len(array):
        return array
    return np.concatenate([array[:ends], array[len(array) - ends :]])


def _resident(line: str) -> float | None:
    """Bytes of this process by its line of /proc/self/status, where there is one."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for text in status.read_text().splitlines():
        if text.startswith(f"{line}:"):
            return 1024.0 * int(text.split()[1])
    return None
