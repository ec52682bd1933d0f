"""How far two runs lie apart by chance: changes of times with their errors, and the error that one run cannot see.

A change is ln(after / before) of a median. What the turns of a run tell of its error is not all of it: another run is
another process with other addresses, on a machine with other neighbours. The rest shows between two runs, in what is
known not to have changed (`excess`).
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bp.bench.results import Times

# The median of |x| of a normal distribution, in standard deviations, and how well as many values tell a variance by it:
# each counts as so many degrees of freedom.
MEDIAN_DEVIATION = 0.6745
DEVIATION_FREEDOM = 0.37

# The variance of the median of many values next to that of their mean.
MEDIAN_COST = math.pi / 2

# A spread from a few turns is itself a guess: from 20 % and 80 % quantiles it has half as many degrees of freedom as
# turns (by simulation: 2.5 of 5, 7.2 of 15, 14 of 30). One turn has none, and borrows the usual spread of the others,
# which itself lies off as far as a guess with so many:
BORROWED_FREEDOM = 2.0

# Residuals that are enough to tell what a run adds. With fewer, and at least, it adds this: two runs of one program
# differ by about so much from the layout of its memory alone.
FEWEST = 8
LAYOUT = 0.01


@dataclass(frozen=True)
class Change:
    """log: ln(after / before). variance: of its error. freedom: degrees of freedom of that variance, how well it is
    known."""

    log: float
    variance: float
    freedom: float

    def plus(self, variance: float, freedom: float) -> "Change":
        """The same change with another, independent source of error."""
        return Change(self.log, *_sum([(self.variance, self.freedom), (variance, freedom)]))


@dataclass(frozen=True)
class Residual:
    """A difference that would be 0 without noise. variance: what turns explain of its square. parts: how many times the
    variance between runs is in it."""

    difference: float
    variance: float
    parts: float


def usual_variance(times: Iterable[Times]) -> float | None:
    """The median of the variances of ln(seconds) from turn to turn; None where all have one turn."""
    return statistics.median(found) if (found := [_turns(t) for t in times if t.runs > 1]) else None


def change(before: Times, after: Times, usual: float | None) -> Change:
    """Of a contestant between two runs. usual: `usual_variance` of all rows, for a run that took one turn."""
    return Change(math.log(after.median / before.median), *_sum([_median(before, usual), _median(after, usual)]))


def middle(changes: Sequence[Change]) -> Change:
    """What these have in common: their median. Its variance comes from theirs, or from how far apart they lie if that
    is more."""
    logs = [one.log for one in changes]
    variance, freedom = _sum([(one.variance, one.freedom) for one in changes])
    count, cost = len(changes), median_cost(len(changes))
    return Change(statistics.median(logs), max(variance / count, _scatter(logs) ** 2) * cost / count, freedom)


def steady(changes: Sequence[Change]) -> list[Change]:
    """Without those whose error is more than twice that of the surest."""
    least = min((one.variance for one in changes), default=0.0)
    return [one for one in changes if one.variance + LAYOUT**2 <= 4.0 * (least + LAYOUT**2)]


def elsewhere(changes: Sequence[Change]) -> Change:
    """What these let expect of one more: their median, and their scatter in full."""
    logs = [one.log for one in changes]
    variance = max(_scatter(logs) ** 2, statistics.median(one.variance for one in changes))
    return Change(statistics.median(logs), variance, max(BORROWED_FREEDOM, DEVIATION_FREEDOM * len(logs)))


@dataclass(frozen=True)
class Excess:
    """The error of a change beyond what its turns show. factor: of the variance that they show, above 1 where turns are
    alike that follow each other. variance: what is added to it, since each run is another process."""

    factor: float = 1.0
    variance: float = LAYOUT**2

    def on(self, change: Change) -> Change:
        """The change with all of its error."""
        return Change(change.log, self.factor * change.variance, change.freedom).plus(self.variance, math.inf)


def excess(residuals: Sequence[Residual]) -> Excess:
    """What makes the residuals as large as normal ones are, by their median: real changes do not matter while few.

    What a run adds shows in the half of them with the least noise of turns, the factor in the other half. Few residuals
    tell the former badly, so it comes from those one standard deviation above their median.
    """
    if len(residuals) < FEWEST:
        return Excess()
    residuals = sorted(residuals, key=lambda one: one.variance / one.parts)
    count = max(FEWEST, len(residuals) // 2)
    above = math.ceil((count + math.sqrt(count)) / 2)
    added = _least(LAYOUT**2, lambda added: _nth(residuals[:count], above, 1.0, added))
    factor = _least(1.0, lambda factor: _nth(residuals[-count:], math.ceil(count / 2), factor, added))
    return Excess(factor, added)


def _nth(residuals: Sequence[Residual], n: int, factor: float, added: float) -> float:
    """The n-th smallest |residual| in units of its error."""
    errors = (math.sqrt(factor * one.variance + added * one.parts) for one in residuals)
    return sorted(abs(one.difference) / error for one, error in zip(residuals, errors, strict=True))[n - 1]


def _least(floor: float, typical: Callable[[float], float]) -> float:
    """The least value from the floor up with which the typical residual is no larger than a normal one."""
    if typical(floor) <= MEDIAN_DEVIATION:
        return floor
    low, high = floor, 4.0 * floor
    while typical(high) > MEDIAN_DEVIATION and high < floor * 1e12:
        low, high = high, 4.0 * high
    for _ in range(30):
        between = math.sqrt(low * high)
        low, high = (between, high) if typical(between) > MEDIAN_DEVIATION else (low, between)
    return high


def bound(variance: float, freedom: float, probability: float) -> float:
    """What an error of this variance exceeds with this probability: a quantile of Student's t, times its deviation.

    Source of the quantile: Wallace, Bounds on normal approximations to Student's and the chi-square distributions
    (1959). It is never too small; for probabilities down to 0.0002 it is at most 1 % too large with 8 degrees of
    freedom, and 5 % with 4.
    """
    normal = -statistics.NormalDist().inv_cdf(probability)
    if not math.isinf(freedom):
        scaled = normal * (8.0 * freedom + 3.0) / (8.0 * freedom + 1.0)
        normal = math.sqrt(freedom * math.expm1(scaled**2 / freedom))
    return normal * math.sqrt(variance)


def median_cost(count: int) -> float:
    """The variance of a median next to that of the mean of so many values."""
    return 1.0 if count <= 2 else MEDIAN_COST


def _turns(times: Times) -> float:
    """The variance of ln(seconds) from turn to turn.

    Of n turns in order, the inclusive 20 % quantile is the one at 1 + 0.2 (n - 1). The standard normal distribution
    expects there its quantile at (that - 3/8) / (n + 1/4): Blom, Statistical Estimates and Transformed Beta-Variables
    (1958).
    """
    quantile = statistics.NormalDist().inv_cdf((0.2 * (times.runs - 1) + 0.625) / (times.runs + 0.25))
    return (math.log(times.high / times.low) / (2.0 * quantile)) ** 2


def _median(times: Times, usual: float | None) -> tuple[float, float]:
    """(variance, degrees of freedom) of the log of the median."""
    spread, freedom = (_turns(times), times.runs / 2) if times.runs > 1 else (usual or 0.0, BORROWED_FREEDOM)
    return MEDIAN_COST * spread / times.runs, freedom


def _sum(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(variance, degrees of freedom) of a sum of independent errors, after Welch and Satterthwaite."""
    total = sum(variance for variance, _ in parts)
    unknown = sum(variance**2 / freedom for variance, freedom in parts)
    return total, total**2 / unknown if unknown > 0.0 else math.inf


def _scatter(values: Sequence[float]) -> float:
    """A standard deviation, from the median of absolute deviations."""
    center = statistics.median(values)
    return statistics.median(abs(value - center) for value in values) / MEDIAN_DEVIATION
