"""Two runs of benchmarks on one machine: what became slower or faster beyond the noise that they measured.

    slowdown = (after / before of bp) / drift

The drift of a row is what the machine did to it between the runs: the median after / before of its peers whose
libraries did not change, which took turns with bp; in a row without such peers, the median drift of the other rows; in
a run without any, what became of the limits of the machine. `bp.bench.noise` has the errors of all this: the spread of
turns in both runs, and the scatter between runs of what should not have changed. A row has regressed where

    slowdown > 1 + allowed,   1 + allowed = exp(t * error of ln(slowdown))

and improved where 1 / slowdown is. t is the quantile of Student's distribution at FALSE_ALARMS / number of rows
(Bonferroni), since the more rows one looks at, the more of them are slow by chance.

What is wrong or failed now, and was not, has regressed whatever the noise.

Simulated: 100 rows with two peers, 7 to 30 log-normal turns with a spread of 3 to 20 % by row, a drift of 10 % from run
to run and again from row to row. Of 1,000 pairs of runs of the same code, 2 gave a false alarm; 7 where each contestant
in each run was also off by 3 % of its own, and 30 where each turn was half like the one before it. A row that took 1.3
times as long, with a spread of 5 %, was found in 98 % of 500 runs: in 71 % with 7 turns, 96 % with 10, all with 15.
"""

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from bp.bench import noise, units
from bp.bench.libraries import LIBRARIES
from bp.bench.noise import Change, Residual
from bp.bench.results import About, Entry, Limits, Results, Row, Times
from bp.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Group

# The probability that two runs of the same code give a regression, in whichever row.
FALSE_ALARMS = 0.02

# Versions of what only bp stands on.
OWN_VERSIONS = ("bp", "native kernels", "kernel choice")

# broken: right before, and wrong or failed now; mended: the reverse. not compared: one of the runs has no time of it.
Verdict = Literal["regressed", "broken", "improved", "mended", "unchanged", "not compared"]
ORDER: tuple[Verdict, ...] = ("broken", "regressed", "improved", "mended")

# What told the drift of a row.
By = Literal["peers", "rows", "limits", ""]

RIGHT = ("timed", "checked")
BAD = ("wrong", "failed")
MOST = 20.0  # of ln(1 + allowed), which then exceeds any slowdown
NAMED = 5  # rows that a note names before it counts the rest


@dataclass(frozen=True)
class Compared:
    """What became of one contestant of bp in one row.

    before, after: seconds, None where not timed. drift, slowdown: factors, above 1 for slower. allowed: by how much
    slowdown or 1 / slowdown may exceed 1. by: what told the drift. These are None and "" where a run has no time, and
    then there is a reason.
    """

    row: str
    contestant: str
    verdict: Verdict
    before: float | None = None
    after: float | None = None
    drift: float | None = None
    slowdown: float | None = None
    allowed: float | None = None
    by: By = ""
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is bp as it runs where nothing else is asked for: other rungs may be slow on purpose."""
        return self.contestant == "bp"


@dataclass(frozen=True)
class Comparison:
    """Two runs. compared: bp and its other rungs, in the order of the later run. only_before, only_after: keys of rows
    that one run has. notes: what else differs, a line each."""

    compared: list[Compared]
    only_before: list[str]
    only_after: list[str]
    notes: list[str]

    @property
    def regressed(self) -> bool:
        """Whether bp became slower than noise allows in any row, or wrong, or failed."""
        return any(one.counts and one.verdict in ("regressed", "broken") for one in self.compared)

    def __rich__(self) -> "Group":
        """What changed as a table, then the rest in numbers, as rich prints them."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        changed = [one for one in self.compared if one.verdict in ORDER]
        changed.sort(key=lambda one: (not one.counts, ORDER.index(one.verdict), -(one.slowdown or 0.0)))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("row", overflow="fold")
        for column in ("before", "after", "drift", "change", "allowed"):
            table.add_column(column, justify="right", no_wrap=True)
        for one in changed:
            # Not as markup: names may hold brackets.
            table.add_row(*(Text(cell) for cell in _cells(one)), style=_style(one))
        lines = [Text(line) for line in self._lines()]
        return Group(table, *lines) if changed else Group(*lines)

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=240, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _lines(self) -> Iterator[str]:
        own = [one for one in self.compared if one.counts]
        for one in own:
            if one.verdict == "broken":
                yield f"broken: {one.row}: {one.reason}"
        if any(not one.counts and one.verdict in ORDER for one in self.compared):
            yield "In brackets: other rungs of bp; they do not count."
        for reason, count in Counter(one.reason for one in own if one.verdict == "not compared").items():
            yield f"not compared: {count} ({reason})"
        for run, keys in (("earlier", self.only_before), ("later", self.only_after)):
            if keys:
                yield f"only in the {run} run: {_some(keys)}"
        yield from self.notes
        yield from _counts([one for one in own if one.verdict != "not compared"])


def compare(before: Results, after: Results) -> Comparison:
    """The later run against the earlier one.

    Raises ConfigurationError, with what differs, where they are of two machines or devices.
    """
    expect_one_machine(before.about, after.about)
    earlier, later = ({row.key: row for row in results.rows} for results in (before, after))
    both = [(earlier[key], row) for key, row in later.items() if key in earlier]
    pairs = [(first, second) for first, second in both if not first.refused and not second.refused]
    unfit, limits = _changed_peers(before, after), _limits(before.limits, after.limits)
    usual = noise.usual_variance(times for pair in pairs for _, *both in _timed_twice(*pair) for times in both)
    moves = [_move(pair, unfit, usual) for pair in pairs]
    residuals = _residuals(moves)
    excess = noise.excess(residuals)
    drifts = _drifts(moves, excess, limits)
    probability = None
    if usual is not None or len(residuals) >= noise.FEWEST:
        probability = FALSE_ALARMS / max(1, sum("bp" in move.ours for move in moves))
    compared = []
    for pair, move, (drift, by) in zip(pairs, moves, drifts, strict=True):
        for name in _ours(*pair):
            one = _of_statuses(name, *pair)
            if name in move.ours:
                one = _judged(one, excess.on(move.ours[name]), drift, by, probability)
            compared.append(one)
    only_before = [key for key in earlier if key not in later]
    only_after = [key for key in later if key not in earlier]
    notes = list(_notes(before, after, unfit, limits))
    if len(pairs) < len(both):
        notes.append(f"not compared: {units.counted(len(both) - len(pairs), 'row')} that one of the runs refused")
    return Comparison(compared, only_before, only_after, notes)


@dataclass(frozen=True)
class _Move:
    """The changes of a row: of bp and its other rungs by name, and of the peers that tell its drift."""

    ours: dict[str, Change]
    controls: list[Change]


def _move(pair: tuple[Row, Row], unfit: Collection[str], usual: float | None) -> _Move:
    timed = [(entry, noise.change(before, after, usual)) for entry, before, after in _timed_twice(*pair)]
    return _Move(
        {entry.contestant: change for entry, change in timed if entry.ours},
        noise.steady([change for entry, change in timed if not entry.ours and entry.contestant not in unfit]),
    )


def _timed_twice(before: Row, after: Row) -> Iterator[tuple[Entry, Times, Times]]:
    """Contestants with times in both runs, bp's and others, with their times."""
    for entry in after.entries:
        earlier = before.entry(entry.contestant)
        if entry.times is not None and earlier is not None and earlier.times is not None:
            yield entry, earlier.times, entry.times


def _residuals(moves: Sequence[_Move]) -> list[Residual]:
    """What would be 0 without noise: differences between peers of a row, and of bp to its peers.

    The latter beside what they have in common over all rows, since all of bp may have changed; and of rows without
    peers only where there are no others, since the drift from row to row is in them too.
    """
    found = [
        Residual(one.log - other.log, one.variance + other.variance, 2.0)
        for move in moves
        for one, other in combinations(move.controls, 2)
    ]
    own = []
    no_controls = not any(move.controls for move in moves)
    for move in moves:
        ours = move.ours.get("bp")
        if ours is not None and move.controls:
            peers = noise.middle(move.controls)
            shared = noise.median_cost(len(move.controls)) / len(move.controls)
            own.append(Residual(ours.log - peers.log, ours.variance + peers.variance, 1.0 + shared))
        elif ours is not None and no_controls:
            own.append(Residual(ours.log, ours.variance, 1.0))
    if len(own) > 2:  # of two, the middle is as far from one as from the other
        center = statistics.median(one.difference for one in own)
        found += [replace(one, difference=one.difference - center) for one in own]
    return found


def _drifts(moves: Sequence[_Move], excess: noise.Excess, limits: Sequence[Change]) -> list[tuple[Change, By]]:
    """What the machine did to each row, and what told it."""
    own = [noise.middle([excess.on(one) for one in move.controls]) if move.controls else None for move in moves]
    told = [drift for drift in own if drift is not None]
    other: tuple[Change, By] = (Change(0.0, 0.0, math.inf), "")
    if told:
        other = (noise.elsewhere(told), "rows")
    elif limits:
        other = (noise.elsewhere(limits), "limits")
    return [other if drift is None else (drift, "peers") for drift in own]


def _judged(one: Compared, ours: Change, drift: Change, by: By, probability: float | None) -> Compared:
    """The verdict on two times. probability: of a regression by chance, None where nothing tells what chance does."""
    if probability is None:
        return replace(one, verdict="not compared", reason="each took one turn, which tells nothing of noise")
    log = ours.log - drift.log
    error = ours.plus(drift.variance, drift.freedom)
    bound = noise.bound(error.variance, error.freedom, probability)
    verdict: Verdict = "regressed" if log > bound else "improved" if log < -bound else "unchanged"
    return replace(
        one,
        verdict=verdict,
        drift=math.exp(drift.log),
        slowdown=math.exp(log),
        allowed=math.expm1(min(bound, MOST)),
        by=by,
    )


def _of_statuses(contestant: str, before: Row, after: Row) -> Compared:
    """Times, and the verdict as far as statuses give it: "unchanged" where both runs have times."""
    earlier, later = before.entry(contestant), after.entry(contestant)
    one = Compared(after.key, contestant, "unchanged", _median(earlier), _median(later))
    if earlier is None or later is None:
        run = "later" if earlier is None else "earlier"
        return replace(one, verdict="not compared", reason=f"{contestant} took part in the {run} run only")
    if earlier.status in RIGHT and later.status in BAD:
        return replace(one, verdict="broken", reason=" ".join(f"{later.status}: {later.reason}".split()))
    if earlier.status in BAD and later.status in RIGHT:
        return replace(one, verdict="mended")
    if one.before is None or one.after is None:
        return replace(one, verdict="not compared", reason=f"{earlier.status} before, {later.status} now")
    return one


def _median(entry: Entry | None) -> float | None:
    return None if entry is None or entry.times is None else entry.times.median


def _ours(before: Row, after: Row) -> list[str]:
    """The names of bp and its rungs in either run."""
    return list(dict.fromkeys(entry.contestant for row in (after, before) for entry in row.entries if entry.ours))


def expect_one_machine(before: About, after: About) -> None:
    """Raises ConfigurationError, with what differs, where runs are of two machines or devices."""
    runs = [{"device": about.device, **about.machine} for about in (before, after)]
    differing = [f"{name} {earlier} before and {later} now" for name, earlier, later in _differing(*runs)]
    if differing:
        raise ConfigurationError(f"expected results of the same machine and device, got {', '.join(differing)}")


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(name, value before, value now) of what is not the same."""
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield name, before.get(name, "not known"), after.get(name, "not known")


def _changed_peers(before: Results, after: Results) -> list[str]:
    """Peers whose times tell nothing of the machine: the version of something that they stand on changed.

    A version belongs to the library of its name, with more words behind it or not ("liger-kernel"). Any other, such as
    that of Python or a driver, belongs to all of them.
    """
    changed = [name for name, _, _ in _differing(before.about.versions, after.about.versions)]
    changed = [name for name in changed if name not in OWN_VERSIONS]
    entries = (entry for results in (before, after) for row in results.rows for entry in row.entries)
    peers = list(dict.fromkeys(entry.contestant for entry in entries if not entry.ours))

    def owners(version: str) -> list[str]:
        return [peer for peer in peers if any(f"{version}-".startswith(f"{name}-") for name in _stands_on(peer))]

    unfit = {peer for version in changed for peer in owners(version) or peers}
    return [peer for peer in peers if peer in unfit]


def _stands_on(peer: str) -> tuple[str, ...]:
    """The library of a contestant ("torch" of "torch-compile"), and what it is imported with."""
    library = peer.partition("-")[0]
    return (library, LIBRARIES[library][1]) if library in LIBRARIES else (library,)


def _limits(before: Limits, after: Limits) -> list[Change]:
    """What became of the limits that both runs measured, as times of the same work."""
    earlier, later = dict(before.copy), dict(after.copy)
    ratios = [earlier[nbytes] / later[nbytes] for nbytes in later if nbytes in earlier]
    ratios += [before.peak[precision] / rate for precision, rate in after.peak.items() if precision in before.peak]
    if before.launch_seconds is not None and after.launch_seconds is not None:
        ratios.append(after.launch_seconds / before.launch_seconds)
    return [Change(math.log(ratio), 0.0, math.inf) for ratio in ratios]


def _notes(before: Results, after: Results, unfit: Sequence[str], limits: Sequence[Change]) -> Iterator[str]:
    earlier, later = before.about, after.about
    for kind in ("versions", "settings"):
        for name, old, new in _differing(getattr(earlier, kind), getattr(later, kind)):
            if name == "seed":  # of random data, another in every run
                continue
            yield f"{kind.removesuffix('s')} {name}: {old} before, {new} now"
    if earlier.revision != later.revision:
        yield f"revision: {earlier.revision} before, {later.revision} now"
    if unfit:
        yield f"tell nothing of the machine's drift, since versions changed: {', '.join(unfit)}"
    if limits:
        yield f"at its limits, the machine now takes {units.ratio(math.exp(noise.elsewhere(limits).log))} the time"


def _counts(own: Sequence[Compared]) -> Iterator[str]:
    allowed = [one.allowed for one in own if one.allowed is not None]
    blind = sum(part > 1.0 for part in allowed)
    if blind:
        yield f"so noisy that twice the time would not show: {blind} of the rows"
    verdicts: Counter[Verdict] = Counter(one.verdict for one in own)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in (*ORDER, "unchanged") if verdicts[verdict])
    typical = ""
    if allowed and 2 * blind < len(allowed):
        typical = f"; half of them would show a change of {_percent(statistics.median(allowed))}"
    yield f"compared: {counts}{typical}" if own else "no row was compared"


def _some(keys: Sequence[str]) -> str:
    more = f", and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def _cells(one: Compared) -> list[str]:
    verdict, row = (one.verdict, one.row) if one.counts else (f"({one.verdict})", f"{one.row}, {one.contestant}")
    before, after = ("" if time is None else units.seconds(time) for time in (one.before, one.after))
    if one.drift is None or one.slowdown is None or one.allowed is None:
        now = one.reason.partition(":")[0] if one.verdict == "broken" else after
        return [verdict, row, before, now, "", "", ""]
    drift = units.ratio(one.drift) + ("" if one.by == "peers" else f" by {one.by}" if one.by else " unknown")
    return [verdict, row, before, after, drift, _percent(one.slowdown - 1.0), _percent(one.allowed)]


def _style(one: Compared) -> str:
    color = "red" if one.verdict in ("regressed", "broken") else "green"
    return color if one.counts else f"dim {color}"


def _percent(part: float) -> str:
    return f"{100.0 * part:+.1f} %"
