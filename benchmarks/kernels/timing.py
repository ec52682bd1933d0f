"""Times of work on a device: taken by its own clock, the caches cold, contestants in turn, medians and quantiles."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Work = Callable[[], object]

WARM_UP = 5


@dataclass(frozen=True)
class Times:
    """Seconds of one run: the median, and between which lie the middle 60 %."""

    median: float
    low: float
    high: float
    runs: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Stopwatch:
    """Times work on a device, one launch or several at a time.

    Before each run it fills `flush_bytes` of memory: so what the run before left in the second-level cache is gone, and
    the host has time to queue the whole run before the device begins with it.
    """

    def __init__(self, device: Any, flush_bytes: int) -> None:
        self.device = device
        self._flush = device.zeros((flush_bytes // 4,), np.float32)

    def times(self, contestants: Mapping[str, Work], *, repeats: int = 30, seconds: float = 3.0) -> dict[str, Times]:
        """Each contestant's times; they take turns, so that a clock that changes meets all. seconds: to stop after."""
        device = self.device
        begun = time.monotonic()
        for _ in range(WARM_UP):
            for work in contestants.values():
                work()
        device.synchronize()
        readings: dict[str, list[Callable[[], float]]] = {name: [] for name in contestants}
        for turn in range(repeats):
            for name, work in contestants.items():
                device.fill(self._flush, float(turn))
                mark = device.mark()
                work()
                readings[name].append(device.since(mark))
            device.synchronize()
            if time.monotonic() - begun > seconds and turn >= 4:
                break
        return {name: summary([reading() for reading in found]) for name, found in readings.items()}


def summary(seconds: list[float]) -> Times:
    """Of at least two times."""
    quantiles = statistics.quantiles(seconds, n=5)
    return Times(statistics.median(seconds), quantiles[0], quantiles[-1], len(seconds))
