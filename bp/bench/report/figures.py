"""What the sections read out of rows: groups, means, and who is faster."""

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Literal, TypeVar

from bp.bench import units
from bp.bench.results import Entry, Row, Times

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

Verdict = Literal["faster", "level", "slower"]
QUANTILES = f"20{units.DASH}80%"
GLYPHS: dict[Verdict, str] = {"faster": "▲", "level": "≈", "slower": "▼"}


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by key, both in the order in which they first come."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def families(rows: Iterable[Row]) -> dict[str, int]:
    """Each family's number, which is its colour in every plot."""
    return {family: index for index, family in enumerate(dict.fromkeys(row.family for row in rows))}


def times(row: Row, contestant: str = "bp") -> Times | None:
    """That contestant's times, where it was timed."""
    entry = row.entry(contestant)
    return entry.times if entry is not None and entry.times is not None and entry.times.median > 0.0 else None


def timed(row: Row) -> list[tuple[Entry, Times]]:
    """Who was timed, with the times."""
    return [(entry, entry.times) for entry in row.entries if entry.times is not None and entry.times.median > 0.0]


def geometric_mean(values: list[float]) -> float:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def ratios(rows: Iterable[Row]) -> list[float]:
    """Time of the best peer / time of bp, of the rows that have both."""
    return [row.ratio for row in rows if row.ratio is not None and row.ratio > 0.0]


def verdict(row: Row, peer: str, ratio: float) -> Verdict:
    """Whether bp is faster than that peer by more than the noise: between the 20 % and 80 % quantiles of both."""
    ours, theirs = times(row), times(row, peer)
    if ours is not None and theirs is not None and ours.low <= theirs.high and theirs.low <= ours.high:
        return "level"
    return "faster" if ratio > 1.0 else "slower" if ratio < 1.0 else "level"


def spread(measured: Times) -> str:
    """The quantiles in a line."""
    return units.span(measured.low, measured.high)


def describe(row: Row) -> str:
    """A row in some lines, for the box that opens over its mark."""
    lines = [" · ".join(filter(None, [row.benchmark, row.shape, row.precision]))]
    if (ours := times(row)) is not None:
        speeds = [units.bandwidth(row.nbytes / ours.median)] if row.nbytes > 0.0 else []
        speeds += [units.compute(row.flops / ours.median)] if row.flops > 0.0 else []
        lines.append(", ".join([units.seconds(ours.median), *speeds]))
    if row.percent is not None:
        lines.append(f"{units.percent(row.percent)} of the {row.bound} limit".replace("  ", " "))
    if row.ratio is not None:
        lines.append(f"{units.ratio(row.ratio)} the speed of {row.best_peer}, the fastest peer")
    return "\n".join(lines)
