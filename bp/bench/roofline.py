"""The roofline of a training step: each kernel by layer and pass beside the limits of the machine, and what to improve.

The least time that a piece of work can take is that of its bytes at the rate of a copy, or of its FLOPs at the peak of
its precision, whichever is longer; and where both are shorter than the smallest possible launch, that of a launch.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bp.bench import units
from bp.bench.results import About, Limits
from bp.bench.watched_step import Piece, WatchedStep

Bound = Literal["memory", "compute", "launch", ""]

OUTSIDE = {"cpu": "outside operations", "cuda": "outside kernels"}
IMPROVED = 3


@dataclass(frozen=True)
class Line:
    """What one kernel (on the CPU: operation) does for one layer in one pass; in a sum over layers both are "".

    runs: of it in a step. share: of the step's seconds, in percent. flops, nbytes: of all runs; None where not known.
    limit_seconds: what the limits allow all of them at best, None where that is not known; bound: by which limit, for
    most of that time. seconds, share: None where no clock says anything.
    """

    layer: str
    phase: str
    kernel: str
    runs: int
    seconds: float | None = None
    share: float | None = None
    flops: float | None = None
    nbytes: float | None = None
    limit_seconds: float | None = None
    bound: Bound = ""

    @property
    def percent(self) -> float | None:
        """Of the limit that is reached; more than 100 where less had to move than is counted, as caches allow."""
        if not self.seconds or self.limit_seconds is None:
            return None
        return 100 * self.limit_seconds / self.seconds

    @property
    def worth(self) -> float | None:
        """Seconds that would be saved at the limit."""
        if self.seconds is None or self.limit_seconds is None:
            return None
        return max(0.0, self.seconds - self.limit_seconds)


@dataclass(frozen=True)
class Roofline:
    """A training step beside the limits.

    samples: in a step. seconds: of a step, which the shares divide; None where no clock says anything. whole_seconds:
    of a step that nobody watches; times: how many of these were taken; how: it runs. fetch_seconds: that the Loader
    takes for the batches of a step. lines: in the order in which they begin; what of the step is outside of all kernels
    has one. kernels: the same summed over layers and passes, those that take longest first.
    """

    recipe: str
    device: str
    precision: str
    samples: int
    how: str
    seconds: float | None
    whole_seconds: float | None
    times: int
    fetch_seconds: float
    limits: Limits
    lines: list[Line]
    kernels: list[Line]
    remarks: list[str] = field(default_factory=list)

    @property
    def improve(self) -> list[Line]:
        """The kernels that are worth most at their limits, at most three."""
        worthy = [line for line in self.kernels if line.worth]
        return sorted(worthy, key=lambda line: -(line.worth or 0.0))[:IMPROVED]


def least_seconds(piece: Piece, limits: Limits) -> tuple[float | None, Bound]:
    """The least time for a piece of work, and what bounds it; (None, "") where that is not known.

    A piece that is shorter than the shortest launch that was measured is as short as it can be.
    """
    if piece.flops is None or piece.nbytes is None:
        return None, ""
    seconds, bound = limits.seconds(piece.flops, piece.nbytes, piece.precision)
    if seconds is None and (piece.flops or piece.nbytes):
        return None, ""
    launch = limits.launch_seconds
    if launch is not None and (seconds or 0.0) < launch:
        return (launch if piece.seconds is None else min(launch, piece.seconds)), "launch"
    return seconds, bound


def roofline(
    step: WatchedStep, limits: Limits, *, recipe: str, device: str, precision: str, samples: int, fetch_seconds: float
) -> Roofline:
    """The roofline of a step that was watched; samples, fetch_seconds: see `Roofline`."""
    remarks = list(step.remarks)
    timed = [piece.seconds for piece in step.pieces if piece.seconds is not None]
    seconds = None
    if step.seconds is not None:
        seconds = max(step.seconds, sum(timed))
        if sum(timed) > 1.02 * step.seconds:
            remarks.append(
                f"one by one the pieces take {units.seconds(sum(timed))}, more than a step: shares are of their sum"
            )
    lines = _lines(step.pieces, lambda piece: (piece.layer, piece.phase, piece.name), limits, seconds)
    kernels = _lines(step.pieces, lambda piece: ("", "", piece.name), limits, seconds)
    kernels.sort(key=lambda line: -(line.seconds or 0.0))
    if seconds is not None:
        rest = seconds - sum(timed)
        lines.append(Line("", "", OUTSIDE[device], 1, rest, _percent(rest, seconds)))
    return Roofline(
        recipe, device, precision, samples, step.how, seconds, step.seconds, step.times, fetch_seconds, limits, lines,
        kernels, remarks,
    )  # fmt: skip


def _lines(
    pieces: Iterable[Piece], key: Callable[[Piece], tuple[str, str, str]], limits: Limits, whole: float | None
) -> list[Line]:
    grouped: dict[tuple[str, str, str], list[Piece]] = {}
    for piece in pieces:
        grouped.setdefault(key(piece), []).append(piece)
    return [_line(*names, of_line, limits, whole) for names, of_line in grouped.items()]


def _line(layer: str, phase: str, kernel: str, pieces: Sequence[Piece], limits: Limits, whole: float | None) -> Line:
    seconds, leasts = _sum(piece.seconds for piece in pieces), [least_seconds(piece, limits) for piece in pieces]
    by_bound: dict[Bound, float] = {}
    for least, bound in leasts:
        by_bound[bound] = by_bound.get(bound, 0.0) + (least or 0.0)
    limit = _sum(least for least, _ in leasts)
    return Line(
        layer, phase, kernel, len(pieces), seconds, _percent(seconds, whole), _sum(piece.flops for piece in pieces),
        _sum(piece.nbytes for piece in pieces), limit,
        "" if limit is None else max(by_bound, key=lambda bound: by_bound[bound]),
    )  # fmt: skip


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _percent(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else 100 * part / whole


def write_json(found: Roofline, about: About, path: Path) -> None:
    """The figures, and what they were made on; what is not known is null."""
    document = {"about": asdict(about), **asdict(found)}
    for name in ("lines", "kernels"):
        document[name] = [_with_figures(line) for line in getattr(found, name)]
    document["improve"] = [
        {
            "kernel": line.kernel,
            "worth_seconds": line.worth,
            "step_seconds": (found.seconds or 0.0) - (line.worth or 0.0),
        }
        for line in found.improve
    ]
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _with_figures(line: Line) -> dict[str, Any]:
    return asdict(line) | {"percent": line.percent, "worth_seconds": line.worth}
