"""What a run of benchmarks found: rows of contestants, the limits of the machine, what it ran on; and its JSON and CSV.

The JSON document is `Results` as nested objects, keys as the fields are named. `SCHEMA` counts up with every change of
their meaning, and a document of another number is refused: figures are compared by what they say, not by what they
might have said.
"""

import bisect
import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1

Size = int | float | str | bool

# timed: checked and timed. checked: right, but no clock says anything here (the emulator's). wrong: its result is not
# the float64 reference's. failed: it raised, crashed or took too long. left out: it can, but was not asked for or has
# no room. not installed: the library is missing, or cannot run here.
Status = Literal["timed", "checked", "wrong", "failed", "left out", "not installed"]


@dataclass(frozen=True)
class Times:
    """Seconds of one run of the work: the median, and the 20 % and 80 % quantiles. runs: how many were taken."""

    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Entry:
    """One contestant in a row.

    contestant: such as "bp", "bp cpu=numpy", "bp linear=naive", "torch", "torch-compile". ours: whether it is bp.
    error: the largest relative error against float64 in units of what is allowed, so right is at most 1; None where
    nothing was compared. reason: why there are no times. facts: figures beside the time, such as "launches" and
    "peak_bytes".
    """

    contestant: str
    ours: bool
    status: Status
    reason: str = ""
    error: float | None = None
    times: Times | None = None
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One piece of work at one size, and everybody's times.

    family: of the file, such as "norm". benchmark: such as "layer norm backward". sizes: by name, such as
    {"rows": 8192, "columns": 1024}. flops, nbytes: what the work has to compute and to move at least. limit_seconds:
    what the machine's measured limits allow it at best, with bound: which of them it is; None and "" where no limit was
    measured. percent: 100 * limit_seconds / the time of "bp". ratio: the time of the fastest peer / the time of "bp",
    so above 1 bp is faster; best_peer: whose. target: of percent, to reach on the GPU that the project aims at. axis:
    the size along which rows of one benchmark make a curve, else "". group: the name of the rows that one figure is
    wanted of, else "". clocks: of the machine before and after, in MHz, by name, and of a GPU the extremes of what was
    sampled while the row was timed. throttled: by reason, the share of these samples in which the GPU held its clocks
    back. refused: why the row has no ratio and no percent although it was timed, such as a GPU that was too hot; "" for
    a row that stands.
    """

    family: str
    benchmark: str
    sizes: dict[str, Size]
    precision: str
    flops: float
    nbytes: float
    entries: list[Entry]
    limit_seconds: float | None = None
    bound: Literal["memory", "compute", ""] = ""
    percent: float | None = None
    ratio: float | None = None
    best_peer: str = ""
    target: float | None = None
    axis: str = ""
    group: str = ""
    clocks: dict[str, float] = field(default_factory=dict)
    throttled: dict[str, float] = field(default_factory=dict)
    refused: str = ""

    @property
    def key(self) -> str:
        """What it is, in a line: the same in two runs that measure the same."""
        return " ".join(filter(None, [self.family, self.benchmark, self.shape, self.precision]))

    @property
    def shape(self) -> str:
        """The sizes in a line: numbers joined by x, words after them."""
        numbers = "x".join(str(size) for size in self.sizes.values() if not isinstance(size, str))
        return " ".join(filter(None, [numbers, *(size for size in self.sizes.values() if isinstance(size, str))]))

    def entry(self, contestant: str) -> Entry | None:
        """That contestant's, if it is there."""
        return next((entry for entry in self.entries if entry.contestant == contestant), None)

    @property
    def ours(self) -> Entry | None:
        """The entry of bp as it runs where nothing else is asked for."""
        return self.entry("bp")


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most, as measured in the same run by whoever was fastest at it.

    copy: (bytes moved, bytes a second) of copies, from small to large: small ones stay in caches. peak: FLOP/s of a
    large matrix product by precision. launch_seconds: of the smallest possible piece of work; None where not measured.
    """

    copy: list[tuple[float, float]] = field(default_factory=list)
    peak: dict[str, float] = field(default_factory=dict)
    launch_seconds: float | None = None

    def bandwidth(self, nbytes: float) -> float | None:
        """Bytes a second for work that moves so many: of the fastest copy of at least as many, or of the largest.

        Between two copies they lie between theirs: work that moves a little more than a cache holds gains from it too.
        """
        if not self.copy:
            return None
        sizes = [moved for moved, _ in self.copy]
        rates = [max(rate for _, rate in self.copy[place:]) for place in range(len(sizes))]
        place = bisect.bisect_left(sizes, nbytes)
        if place in (0, len(sizes)):
            return rates[min(place, len(sizes) - 1)]
        part = math.log(nbytes / sizes[place - 1]) / math.log(sizes[place] / sizes[place - 1])
        return float(rates[place - 1] ** (1.0 - part) * rates[place] ** part)

    def seconds(
        self, flops: float, nbytes: float, precision: str
    ) -> tuple[float | None, Literal["memory", "compute", ""]]:
        """(the least time for such work, by which limit); (None, "") where the limit it needs was not measured."""
        bandwidth, peak = self.bandwidth(nbytes), self.peak.get(precision)
        memory = nbytes / bandwidth if bandwidth else 0.0
        compute = flops / peak if peak else 0.0
        if max(memory, compute) <= 0.0:
            return None, ""
        return (memory, "memory") if memory >= compute else (compute, "compute")


@dataclass(frozen=True)
class Group:
    """What the rows of a group say of one contestant of bp beside another.

    family, benchmark, group, precision: of the rows; benchmark is "" where it is those of several. contestant: such as
    "bp" or "bp linear=mma"; beside: another one, "" for the fastest peer of each row. rows: in which both have times.
    mean, median, least: of the time of the other / that of the contestant, so above 1 the contestant is faster; mean is
    the geometric one. worst: the sizes of the row with the least. percent: of what the limits of the machine allow, the
    median; None where no limit was measured.
    """

    family: str
    benchmark: str
    group: str
    precision: str
    contestant: str
    beside: str
    rows: int
    mean: float
    median: float
    least: float
    worst: str
    percent: float | None = None


@dataclass(frozen=True)
class About:
    """What the figures were made on. machine: what has to agree for two runs to be compared, such as the names of CPU
    and GPU and the number of cores. versions: of libraries, drivers and compilers, by name. revision: of bp's sources,
    with "+" where they were changed since. settings: of the run, such as the seed, environment variables and thread
    counts."""

    device: str
    machine: dict[str, str]
    versions: dict[str, str]
    revision: str
    date: str
    command: str
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """A run. missing: why a peer took no part, by name. seconds: how long the run took. groups: of its rows."""

    about: About
    limits: Limits
    rows: list[Row]
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    groups: list[Group] = field(default_factory=list)
    schema: int = SCHEMA


COLUMNS = [
    *("family", "benchmark", "shape", "precision", "contestant", "status", "reason", "error"),
    *("median_s", "low_s", "high_s", "runs", "flops", "nbytes", "limit_s", "bound", "facts", "clocks"),
    *("throttled", "refused", "device", "machine", "versions", "revision", "date"),
]


def write_json(results: Results, path: Path) -> None:
    """Write the document; numbers that JSON lacks (NaN, infinity) become null."""
    path.write_text(json.dumps(_finite(asdict(results)), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def write_csv(results: Results, path: Path) -> None:
    """A line for each contestant of each row, and in each line what it was measured on."""
    about = results.about
    common = [about.device, _words(about.machine), _words(about.versions), about.revision, about.date]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in results.rows:
            for entry in row.entries:
                times = entry.times
                measured = ["", "", "", ""] if times is None else [times.median, times.low, times.high, times.runs]
                limit = "" if row.limit_seconds is None else row.limit_seconds
                what = [row.family, row.benchmark, row.shape, row.precision, entry.contestant]
                checked = [entry.status, entry.reason, "" if entry.error is None else entry.error]
                costs = [row.flops, row.nbytes, limit, row.bound, _words(entry.facts), _words(row.clocks)]
                writer.writerow([*what, *checked, *measured, *costs, _words(row.throttled), row.refused, *common])


def _words(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}={value}" for name, value in values.items())
