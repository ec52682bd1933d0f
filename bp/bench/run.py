"""A run of benchmarks: the limits of the machine, then a row for each case of each benchmark."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bp.bench import machine
from bp.bench.benchmark import Benchmark, case_sizes
from bp.bench.catalogue import family_name, load
from bp.bench.contest import Contest
from bp.bench.contestants import Player, known_peers, parse_use, players
from bp.bench.groups import groups_of
from bp.bench.libraries import COMPILED
from bp.bench.processes import Failed, Pool
from bp.bench.results import Entry, Limits, Results, Row, Size
from bp.bench.watch import Watch, open_gauge
from bp.bench.worker import Case
from bp.errors import ConfigurationError
from bp.ops.array import known_dtype
from bp.ops.device import DEVICE_NAMES, PRECISIONS, find_device

LIMITS = "limits"
MEMORY_SHARE = 0.5  # of the memory of the device, for the arrays of all contestants; outputs take about as much again
QUICK = "quick"
LONGEST = 0.1  # seconds of a run of another rung of bp on a GPU: one that is known to be slower is left out
CRASHES = 2  # after which a contestant is left out for the rest of the run; one that hangs is at once


@dataclass(frozen=True)
class Plan:
    """What to run.

    families: names or paths of files; precisions: empty for those of each benchmark; peers: by name, None for all;
    uses: rungs beside those that bp chooses (`linear=naive`); quick: few small cases; cold: whether caches are emptied
    before a run, None for yes on a GPU and no on a CPU; sizes: cases in place of those of the benchmarks, by the names
    of their classes: no others run; limits: of this machine, from an earlier run, None to measure them; repeats,
    seconds: turns of a row, which ends early after so many seconds; budget: seconds after which no further row begins,
    None for no end.
    """

    families: Sequence[str]
    device: str = "auto"
    precisions: Sequence[str] = ()
    peers: Sequence[str] | None = None
    uses: Sequence[str] = ()
    quick: bool = False
    cold: bool | None = None
    sizes: dict[str, list[dict[str, Size]]] = field(default_factory=dict)
    limits: Limits | None = None
    repeats: int = 15
    seconds: float = 4.0
    budget: float | None = None
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(2**32))


class Run:
    """Runs a plan; raises ConfigurationError, before anything runs, where it names what there is not.

    on_row: called with each row as it ends; on_limits: with the limits once they are measured.
    """

    def __init__(
        self,
        plan: Plan,
        on_row: Callable[[Row], object] = id,
        on_limits: Callable[[Limits], object] = id,
    ) -> None:
        self.plan, self.on_row, self.on_limits = plan, on_row, on_limits
        if plan.device not in DEVICE_NAMES:
            raise ConfigurationError(f"expected a device of {', '.join(DEVICE_NAMES)}, got '{plan.device}'")
        self.kinds = [(family, kind) for family in plan.families for kind in load(family)]
        self.device = find_device("auto").name if plan.device == "auto" else plan.device
        self._expect_known()
        if plan.sizes:
            self.kinds = [(family, kind) for family, kind in self.kinds if kind.__name__ in plan.sizes]
        self.timed = self.device != "emulator"  # whose times say nothing of a GPU's
        self.cold = self.device == "cuda" if plan.cold is None else plan.cold
        self.limits = Limits()
        self.gauge = open_gauge(self.device)
        self.needed: set[str] | None = None  # precisions beside which none is measured
        self._lost: dict[str, str] = {}  # why contestants take no part any more
        self._crashes: Counter[str] = Counter()
        self._rates: dict[tuple[str, str], float] = {}  # FLOP/s by contestant and precision
        self.room = MEMORY_SHARE * machine.memory(self.device)

    def _expect_known(self) -> None:
        plan, kinds = self.plan, [kind for _, kind in self.kinds]
        for use in plan.uses:
            parse_use(use, self.device)
        named = {kind.__name__ for kind in kinds}
        for name in plan.sizes:
            if name not in named:
                raise ConfigurationError(f"sizes of '{name}', which is none of {', '.join(sorted(named))}")
        known = known_peers(kinds)
        for peer in plan.peers or ():
            if peer not in known:
                raise ConfigurationError(f"expected a peer of {', '.join(known)}, got '{peer}'")
        for precision in plan.precisions:
            if precision not in PRECISIONS:
                raise ConfigurationError(f"expected a precision of {', '.join(PRECISIONS)}, got '{precision}'")

    def results(self, command: str) -> Results:
        """Run everything. command: the line that was typed, for the record.

        An interrupt (Ctrl-C) ends the run; what was measured until then is returned, with the setting "interrupted".
        """
        started = time.monotonic()
        rows: list[Row] = []
        settings = {"seed": str(self.plan.seed), "caches": "cold" if self.cold else "warm"}
        settings |= {"quick": "yes"} if self.plan.quick else {}
        with tempfile.TemporaryDirectory() as folder, Pool(self.device, Path(folder)) as pool:
            self.pool, self.folder = pool, Path(folder)
            try:
                if self.timed:
                    self.limits = self.measure_limits() if self.plan.limits is None else self.plan.limits
                    self.on_limits(self.limits)
                self._begun = time.monotonic()
                for family, kind in self.kinds:
                    rows.extend(self._rows(family, kind))  # row by row: an interrupt leaves those that are whole
            except KeyboardInterrupt:
                settings |= {"interrupted": "yes"}
            about = machine.about(self.device, pool.versions, settings, command)
            seconds = round(time.monotonic() - started, 1)
            return Results(about, self.limits, rows, pool.missing, seconds, groups_of(rows))

    def measure_limits(self) -> Limits:
        """What this machine can do at most: the best of all contestants of the family "limits"."""
        # With everybody who is there, whoever was asked for beside them.
        run = Run(replace(self.plan, families=[LIMITS], device=self.device, peers=None, uses=(), sizes={}, budget=None))
        run.pool, run.folder = self.pool, self.folder
        run.needed = {"fp32", *self.plan.precisions, *(p for _, kind in self.kinds for p in self._precisions(kind))}
        copy: list[tuple[float, float]] = []
        peak: dict[str, float] = {}
        launch = None
        for _, kind in run.kinds:
            for row in run._rows(LIMITS, kind):
                best = min((entry.times.low for entry in row.entries if entry.times is not None), default=None)
                if best is None or row.refused:
                    continue
                if row.flops:
                    peak[row.precision] = max(row.flops / best, peak.get(row.precision, 0.0))
                elif row.nbytes:
                    copy.append((row.nbytes, row.nbytes / best))
                elif row.ours is not None and row.ours.times is not None:
                    launch = row.ours.times.median
        return Limits(sorted(copy), peak, launch)

    def _rows(self, family: str, kind: type[Benchmark]) -> Iterator[Row]:
        """A row for each case and precision."""
        for case in self._cases(kind):
            for precision in self._precisions(kind):
                if self.device != "cuda" or case.worth(precision) or precision in self.plan.precisions:
                    row = self._row(family, case, precision)
                    self.on_row(row)
                    yield row

    def _cases(self, kind: type[Benchmark]) -> list[Benchmark]:
        if self.device not in kind.devices:
            return []
        given: Sequence[Mapping[str, Size]] | None = self.plan.sizes.get(kind.__name__)
        if given is None:
            given = getattr(kind.sizes, QUICK if self.plan.quick or self.device == "emulator" else self.device)
        try:
            return [kind(**sizes) for sizes in given]
        except TypeError as error:
            raise ConfigurationError(f"sizes of {kind.__name__}: {error}") from None

    def _precisions(self, kind: type[Benchmark]) -> list[str]:
        there = self.pool.get(("bp", ())).precisions
        for precision in self.plan.precisions:
            if precision not in there:
                raise ConfigurationError(
                    f"precision '{precision}' is not available on device '{self.device}': expected {', '.join(there)}"
                )
        wanted = there if self.needed is None else self.needed.intersection(there)
        return [precision for precision in self.plan.precisions or kind.precisions if precision in wanted]

    def _row(self, family: str, case: Benchmark, precision: str) -> Row:
        """Check and time one case."""
        plan, kind = self.plan, type(case)
        compile = not plan.quick or COMPILED in (plan.peers or ())
        playing = players(kind, self.device, plan.uses, plan.peers, compile)
        seed = random.Random(f"{plan.seed} {kind.__name__} {case} {precision}").randrange(2**32)
        told = Case(family, kind.__name__, case_sizes(case), precision, seed)
        row = Row(
            *(family_name(family), case.name, told.sizes, precision),
            *(case.flops(), case.nbytes(known_dtype(PRECISIONS[precision]).itemsize), []),
            target=case.target if self.device == "cuda" else None,
            axis=case.axis,
            group=case.group,
        )
        if plan.budget is not None and time.monotonic() - self._begun > plan.budget:
            return replace(row, entries=[Entry(p.name, p.ours, "left out", "no time was left") for p in playing])
        before = machine.clocks() if self.timed else {}
        cold = (case.cache == "cold" if case.cache else self.cold) and kind.successive == 1
        reference, left_out = str(self.folder / "reference.npz"), self._left_out(row, playing)
        # Training steps follow one another, and some of them replay a graph themselves.
        graphs = kind.successive == 1
        contest = Contest(self.pool, told, playing, cold, reference, self.room, left_out, self.timed, graphs)
        try:
            contest.prepare()
        except Failed as error:
            raise ConfigurationError(f"{kind.__name__}: its float64 reference failed: {error}") from None
        with Watch(self.gauge) as watch:
            if self.timed:
                contest.take_turns(plan.repeats, plan.seconds)
        contest.end()
        self._remember(row, contest)
        clocks = {f"{name} before": value for name, value in before.items()}
        if self.timed:
            clocks |= {f"{name} after": value for name, value in machine.clocks().items()} | watch.clocks
        row = replace(row, entries=contest.entries, clocks=clocks, throttled=watch.throttled, refused=watch.refusal)
        return judged(row, self.limits)

    def _left_out(self, row: Row, playing: Sequence[Player]) -> dict[str, str]:
        """Why contestants take no part in a row: what was lost before, and rungs that would take too long."""
        found = {player.name: self._lost[player.name] for player in playing if player.name in self._lost}
        for player in playing:
            rate = self._rates.get((player.name, row.precision))
            if self.device == "cuda" and player.environment and row.flops and rate and row.flops / rate > LONGEST:
                words = f"would take {row.flops / rate:.2g} s a run, and {LONGEST:g} s are allowed"
                found.setdefault(player.name, words)
        return found

    def _remember(self, row: Row, contest: Contest) -> None:
        """Who was lost in a row, and how fast the others were in it."""
        self._lost |= dict.fromkeys(contest.hung, "it took too long in a row before")
        self._crashes.update(contest.crashed)
        self._lost |= {name: "its process ended too often" for name, n in self._crashes.items() if n >= CRASHES}
        for entry in contest.entries:
            if entry.times is not None and row.flops:
                key, rate = (entry.contestant, row.precision), row.flops / entry.times.median
                self._rates[key] = max(rate, self._rates.get(key, 0.0))


def judged(row: Row, limits: Limits) -> Row:
    """The row with its figures beside the machine's limits and the best peer; without them where it is refused."""
    seconds, bound = limits.seconds(row.flops, row.nbytes, row.precision)
    row = replace(row, limit_seconds=seconds, bound=bound)
    if row.ours is None or row.ours.times is None or row.refused:
        return row
    ours = row.ours.times.median
    peers = [(entry.times.median, entry.contestant) for entry in row.entries if entry.times and not entry.ours]
    best, name = min(peers, default=(None, ""))
    return replace(
        row,
        percent=None if seconds is None else 100 * seconds / ours,
        ratio=None if best is None else best / ours,
        best_peer=name,
    )
