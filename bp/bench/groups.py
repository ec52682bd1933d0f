"""Rows that belong together, such as the layers of a network: one figure for each contestant beside the others."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from bp.bench.results import Group, Row


def groups_of(rows: Iterable[Row]) -> list[Group]:
    """The groups of these rows, by benchmark, and where several benchmarks have rows in one, of all of them too.

    "bp" is compared with each other contestant, and every rung of bp with the fastest peer. Refused rows do not count.
    """
    collected: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row.group and not row.refused:
            for benchmark in (row.benchmark, ""):
                collected.setdefault((row.family, benchmark, row.group, row.precision), []).append(row)
    found: list[Group] = []
    for key, members in collected.items():
        if key[1] or len({row.benchmark for row in members}) > 1:
            found += _compared(key, members)
    return found


def _compared(key: tuple[str, str, str, str], rows: Sequence[Row]) -> Iterator[Group]:
    names = list(dict.fromkeys(entry.contestant for row in rows for entry in row.entries if entry.times))
    ours = [name for name in names if name.partition(" ")[0] == "bp"]
    pairs = [("bp", ""), *(("bp", name) for name in names if name != "bp")]
    pairs += [(name, "") for name in ours if name != "bp"]
    for contestant, beside in pairs:
        ratios = [(ratio, row) for row in rows if (ratio := _ratio(row, contestant, beside)) is not None]
        if not ratios:
            continue
        values = [ratio for ratio, _ in ratios]
        least, worst = min(ratios, key=lambda pair: pair[0])
        percents = [share for row in rows if (share := _percent(row, contestant)) is not None]
        yield Group(
            *(*key, contestant, beside, len(values)),
            mean=math.exp(statistics.fmean(map(math.log, values))),
            median=statistics.median(values),
            least=least,
            worst=f"{worst.benchmark} {worst.shape}" if not key[1] else worst.shape,
            percent=statistics.median(percents) if percents else None,
        )


def _time(row: Row, contestant: str) -> float | None:
    """Of a contestant; of the fastest peer where it is ""."""
    if not contestant:
        return min((entry.times.median for entry in row.entries if entry.times and not entry.ours), default=None)
    entry = row.entry(contestant)
    return None if entry is None or entry.times is None else entry.times.median


def _ratio(row: Row, contestant: str, beside: str) -> float | None:
    ours, theirs = _time(row, contestant), _time(row, beside)
    return None if ours is None or theirs is None else theirs / ours


def _percent(row: Row, contestant: str) -> float | None:
    ours = _time(row, contestant)
    return None if ours is None or row.limit_seconds is None else 100 * row.limit_seconds / ours
