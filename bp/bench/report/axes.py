"""Axes of plots: where a number lies between two ends, linear or logarithmic, and which numbers get a tick."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """From low to high. title: what it shows, with its unit. text: how a tick is written. marked: ticks to prefer."""

    low: float
    high: float
    log: bool
    title: str
    text: Callable[[float], str]
    marked: tuple[float, ...] = ()

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; the nearer end for what lies outside."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, apart: float) -> list[float]:
        """Ticks at least so far apart, as a share of the axis: the marked ones, else round numbers."""
        kept: list[float] = []
        for tick in self.marked or self._round():
            if self.low <= tick <= self.high and (not kept or self.place(tick) - self.place(kept[-1]) >= apart):
                kept.append(tick)
        return kept

    def _round(self) -> list[float]:
        if not self.log:
            return _steps(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1.0,), (1.0, 2.0, 5.0)):
            ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
            if sum(self.low <= tick <= self.high for tick in ticks) >= 3:
                return ticks
        return _steps(self.low, self.high)


def _steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between the two, some six of them."""
    rough = (high - low) / 6.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    return [round(step * index, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def logarithmic(
    values: Iterable[float], title: str, text: Callable[[float], str], marked: Iterable[float] = ()
) -> Axis:
    """Over the values, all above zero, with a little room at both ends."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    room = max((high / low) ** 0.05, 1.15)
    return Axis(low / room, high * room, True, title, text, tuple(sorted(set(marked))))


def linear(values: Iterable[float], title: str, text: Callable[[float], str], marked: Iterable[float] = ()) -> Axis:
    """From zero over the values, with a little room above."""
    high = max(values, default=0.0)
    return Axis(0.0, high * 1.06 if high > 0.0 else 1.0, False, title, text, tuple(sorted(set(marked))))
