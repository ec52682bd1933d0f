"""The process of one library: it draws the arrays of a case, checks its contestants, and times them when asked.

Every library has a process of its own, as it has at its users': two thread pools in one process take each other's
cores, and what crashes takes nothing else along. Commands come in on standard input and answers go out on standard
output, each a pickled object; what a library prints goes to standard error.
"""

import math
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from bp.bench import check
from bp.bench.benchmark import Benchmark, Measured, Work
from bp.bench.catalogue import load
from bp.bench.drawing import Draw, Drawn
from bp.bench.libraries import COMPILED, library_of, open_library
from bp.bench.libraries.library import Library
from bp.bench.results import Size
from bp.errors import BPError

TURN_SECONDS = 2e-3  # work that takes less is repeated within a turn, on a CPU, for about this long
STEPS_SECONDS = 0.1  # the same for training steps, which in a training follow one another
MOST_RUNS = 10_000
ROTATED = 1 << 28  # bytes of the sets of arrays that launches of a graph take in turn: several second-level caches
MOST_SETS = 64
LAUNCHES = 64  # of a graph, at least
IN_GRAPH = "launches_in_graph"  # the fact of those that are timed by one
LONGEST_SPIN = 0.1  # OpenBLAS's threads spin for 25 ms before they sleep
SPIN_CHECK = 5e-4


@dataclass(frozen=True)
class Case:
    """A benchmark at one size, as it travels between processes."""

    family: str
    benchmark: str
    sizes: dict[str, Size]
    precision: str
    seed: int

    def make(self) -> Benchmark:
        """The benchmark itself."""
        kinds = {kind.__name__: kind for kind in load(self.family)}
        return kinds[self.benchmark](**self.sizes)


@dataclass
class Contestant:
    """Work that was checked, and how many runs of it make a turn. method, variant: what it is made of. replay: what
    launches a graph of so many runs, where it is timed by one; kept: what holds the memory that the graph works on."""

    run: Work
    runs: int = 1
    error: float | None = None
    facts: dict[str, float] = field(default_factory=dict)
    method: str = ""
    variant: str = ""
    replay: Callable[[], object] | None = None
    kept: Sequence[Work] = ()


class Worker:
    """Answers commands; holds the contestants of one case at a time."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.contestants: dict[str, Contestant] = {}
        self._drawn: dict[Benchmark, dict[str, Drawn]] = {}
        self._stack = ExitStack()

    def end(self) -> None:
        """Forget the case."""
        self.contestants.clear()
        self._drawn.clear()
        self._stack.close()
        self._stack = ExitStack()
        self.library.release()

    def begin(self, case: Case) -> None:
        """Take up a case in place of the one before."""
        self.end()
        self.case, self.benchmark = case, case.make()
        self._stack.enter_context(self.library.running(case.precision))
        self._draw(self.benchmark)  # while other processes draw as well

    def reference(self, path: str) -> int:
        """Compute the outputs in float64 and leave them in a file; outputs that were not computed are left out.

        Returns the bytes of the arrays that a contestant is given.
        """
        benchmark = self.benchmark.checked()
        drawn = self._draw(benchmark)
        ends, axes = _sample(benchmark, drawn)
        arrays: dict[str, np.ndarray] = {}
        lengths: set[int] = set()
        for name, array in drawn.items():
            axis = axes.get(name)
            if axis is None:
                host = array.whole()
            else:
                # Where both ends are all of it, what a contestant gives is compared as a whole too.
                host = array.ends(ends, axis) if 2 * ends < array.shape[axis] else array.whole()
                lengths.add(host.shape[axis])
            arrays[name] = host if host.dtype.kind in "iub" else host.astype(np.float64)
        expected = benchmark.reference(**arrays)
        given = drawn if benchmark is self.benchmark else self._draw(self.benchmark)
        nbytes = sum(array.nbytes for array in given.values())
        if expected is None:
            Path(path).unlink(missing_ok=True)  # that of the case before
            return nbytes
        outputs = check.as_outputs(expected)
        kept = {
            str(place): np.asarray(output, np.float64)
            for place, output in enumerate(outputs)
            if not axes or (np.ndim(output) and len(output) in lengths)
        }
        np.savez(path, count=len(outputs), ends=ends, **kept)  # type: ignore[arg-type]  # of names and arrays
        return nbytes

    def prepare(self, method: str, variant: str, reference: str) -> Contestant | None:
        """Make a contestant, run it, and compare what it gave with the reference in that file, if there is one.

        None where its library has nothing for this case.
        """
        library, checked = self.library, self.benchmark.checked()
        is_part = getattr(getattr(self.benchmark, method), "is_part", False)
        compared, error = bool(reference) and Path(reference).exists() and not is_part, None
        if compared and checked is not self.benchmark:
            arrays = self._place(checked)
            run, _ = self._make(checked, method, variant, arrays)
            if run is not None:
                error = self._error(checked, run, arrays, reference, library_of(method) == "bp")
            compared = False
        if self.benchmark.measures_memory and library.device != "emulator":
            # What a library takes for itself when it is first used, for threads and plans, is none of the work's; nor
            # is what cuDNN's slower algorithms took when it chose.
            run, _ = self._make(self.benchmark, method, variant, self._place(self.benchmark))
            if run is not None:
                run()
        run = None  # the memory of those before is given back
        arrays = self._place(self.benchmark)
        library.start_peak()
        run, facts = self._make(self.benchmark, method, variant, arrays)
        if run is None:
            return None
        if compared:
            error = self._error(self.benchmark, run, arrays, reference, library_of(method) == "bp")
        else:
            run()
        library.synchronize()  # what fails on the device fails here, not in who comes next
        contestant = Contestant(run, error=error, facts=facts(), method=method, variant=variant)
        if self.benchmark.measures_memory:
            peak = library.peak_bytes()
            contestant.facts |= {} if peak is None else {"peak_bytes": peak}
        return contestant

    def _draw(self, benchmark: Benchmark) -> dict[str, Drawn]:
        if benchmark not in self._drawn:
            self._drawn[benchmark] = benchmark.draw(Draw(self.case.seed, self.case.precision))
        return self._drawn[benchmark]

    def _place(self, benchmark: Benchmark) -> dict[str, Any]:
        """Its arrays, as the library has them."""
        return {name: self.library.place(array) for name, array in self._draw(benchmark).items()}

    def _make(
        self, benchmark: Benchmark, method: str, variant: str, arrays: dict[str, Any]
    ) -> tuple[Work | None, Callable[[], dict[str, float]]]:
        """(the work of a contestant, what gives its facts); (None, ...) where its library has nothing for this case."""
        made = getattr(benchmark, method)(**arrays)
        if made is None:
            return None, dict
        measured = made if isinstance(made, Measured) else Measured(made)
        work, memory = measured.run, self.library.memory()
        if variant == COMPILED:
            work = self.library.compiled(work)

        def run() -> Any:
            with memory:
                return work()

        return run, measured.facts

    def _error(self, benchmark: Benchmark, run: Work, inputs: dict[str, Any], path: str, ours: bool) -> float:
        """The error of what it returns, in units of what is allowed. inputs: the arrays that it was given."""
        library, successive = self.library, benchmark.successive
        with np.load(path) as file:
            count, ends = int(file["count"]), int(file["ends"]) or None
            expected = [file.get(str(place)) for place in range(count)]
        if successive > 1:
            # What a run that does nothing leaves behind is the result of the run before.
            actual = [library.host(output, None) for _ in range(successive) for output in check.as_outputs(run())]
            # In 16 bits rounding allows more than a step changes, but not that nothing changes at all.
            if actual and _stand_still(actual) and not _stand_still(expected):
                return math.inf
            return check.error(actual, expected, self.case.precision, benchmark.length())
        returned = check.as_outputs(run())
        spans = [library.span(array) for array in inputs.values()]
        if not any(_overlap(library.span(output), spans) for output in returned):
            # A second run, over memory that holds no right result: one that writes nothing is found out.
            for output in returned:
                library.poison(output)
            del returned
            returned = check.as_outputs(run())
        if len(returned) != count:
            return math.inf
        actual = []
        for output, wanted in zip(returned, expected, strict=True):
            actual.append(np.empty(0) if wanted is None else library.host(output, ends))
        if not ours and type(benchmark).expected_of_peer is not Benchmark.expected_of_peer:
            cut = benchmark.sampled
            given = {name: library.host(array, ends if name in cut else None) for name, array in inputs.items()}
            expected = check.as_outputs(benchmark.expected_of_peer(*actual, **given))
        return check.error(actual, expected, self.case.precision, benchmark.length())

    def calibrate(self, name: str, cold: bool) -> float:
        """Choose how many runs make a turn; returns about how many seconds one takes."""
        contestant = self.contestants[name]
        once = self.library.seconds(contestant.run, 1, cold)
        if self.library.device == "cpu" or not cold:
            turn = STEPS_SECONDS if self.benchmark.successive > 1 else TURN_SECONDS
            contestant.runs = min(max(1, math.ceil(turn / max(once, 1e-9))), MOST_RUNS)
        return once

    def as_graph(self, name: str, cold: bool) -> None:
        """Time a contestant by a graph of many runs from here on: a launch and two events take longer than its work.

        Cold, the runs take several sets of arrays in turn, so many that the second-level cache has forgotten the first
        when it is its turn again; where even `MOST_SETS` of them fit into it, they are warm in a training too.
        """
        contestant = self.contestants[name]
        nbytes = sum(drawn.nbytes for drawn in self._draw(self.benchmark).values())
        sets = min(max(math.ceil(ROTATED / max(nbytes, 1)), 2), MOST_SETS) if cold else 1
        works = [contestant.run]
        for _ in range(sets - 1):
            run, _ = self._make(self.benchmark, contestant.method, contestant.variant, self._place(self.benchmark))
            assert run is not None  # as it was the first time
            run()  # what is made at a first run cannot be made while a graph is captured
            works.append(run)
        rounds = math.ceil(LAUNCHES / sets)
        contestant.replay, contestant.kept = self.library.graph(works * rounds), works
        contestant.runs = rounds * sets
        contestant.facts |= {IN_GRAPH: float(contestant.runs), "rotated_bytes": float(nbytes * sets)}

    def turn(self, name: str, cold: bool) -> float:
        """Seconds of one run of a contestant."""
        contestant = self.contestants[name]
        if contestant.replay is not None:
            return self.library.seconds(contestant.replay, 1, False) / contestant.runs
        seconds = self.library.seconds(contestant.run, contestant.runs, cold)
        if self.library.device == "cpu":
            _fall_asleep()
        return seconds


def _sample(benchmark: Benchmark, drawn: dict[str, Drawn]) -> tuple[int, dict[str, int]]:
    """(places at each end that are checked, along which axis of which arrays); (0, {}) where everything is."""
    given = (item if isinstance(item, tuple) else (item, 0) for item in benchmark.sampled)
    axes = {name: axis for name, axis in given if name in drawn}
    if not axes:
        return 0, {}
    if benchmark.flops() <= check.FLOPS and all(drawn[name].size <= check.WHOLE for name in axes):
        return 0, {}
    return min(check.sample_length(drawn[name].shape) for name in axes), axes


def _fall_asleep() -> None:
    """Wait until the threads of this process do: a pool that still spins would slow down who is next."""
    deadline = time.monotonic() + LONGEST_SPIN
    while time.monotonic() < deadline:
        begun = time.process_time()
        time.sleep(SPIN_CHECK)
        if time.process_time() - begun < 0.5 * SPIN_CHECK:
            return


def _stand_still(arrays: Sequence[Any]) -> bool:
    return all(np.array_equal(arrays[0], array) for array in arrays)


def _overlap(span: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool:
    return any(span[0] < end and begin < span[1] for begin, end in others)


def answer(worker: Worker, command: str, arguments: dict[str, Any]) -> Any:
    """Carry out one command."""
    if command == "begin":
        return worker.begin(**arguments)
    if command == "end":
        return worker.end()
    if command == "reference":
        return worker.reference(**arguments)
    if command == "prepare":
        name, cold, timed = (arguments.pop(word) for word in ("name", "cold", "timed"))
        contestant = worker.prepare(**arguments)
        if contestant is None:
            return None
        seconds = None
        if contestant.error is None or contestant.error <= 1.0:
            worker.contestants[name] = contestant
            seconds = worker.calibrate(name, cold) if timed else None
        return {"error": contestant.error, "facts": contestant.facts, "seconds": seconds}
    if command == "as_graph":
        worker.as_graph(**arguments)
        return worker.contestants[arguments["name"]].facts
    return worker.turn(**arguments)


class Reported(AbstractContextManager["Reported"]):
    """What a library raises within the block, whatever it is, is kept in words: the run goes on without it."""

    error: str | None = None

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        traceback.print_exception(error, file=sys.stderr)
        self.error = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return True


def main(library_name: str, device: str) -> None:
    """Serve until standard input ends."""
    commands: BinaryIO = os.fdopen(os.dup(0), "rb")
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # what a library starts, such as a compiler, takes no command away
    os.dup2(2, 1)  # whatever prints, prints to standard error

    def send(kind: str, what: Any) -> None:
        pickle.dump((kind, what), answers)
        answers.flush()

    try:
        library = open_library(library_name, device)
    except BPError as error:
        send("missing", str(error))
        return
    send("ready", {"versions": library.versions, "precisions": library.precisions})
    worker = Worker(library)
    while True:
        try:
            command, arguments = pickle.load(commands)
        except EOFError:
            return
        with Reported() as reported:
            done = answer(worker, command, arguments)
        if reported.error is None:
            send("done", done)
            continue
        # After a wrong access to its memory a GPU does nothing more for this process.
        with Reported() as waiting:
            library.synchronize()
        send("failed" if waiting.error is None else "broken", reported.error)
