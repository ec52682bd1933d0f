"""One product on every rung and tile that can compute it: each checked against the naive rung, then timed in turn.

A rung that is wrong is not timed, so it cannot win. What is exact is compared to the bit: -1, 0 and 1 at random, so few
of them that no sum leaves what 8 bits of mantissa hold, whatever is added first. Then numbers of N(0, 1), where two
right results lie no further apart than rounding explains of both.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np

from bp.bench import check, noise
from bp.bench.benchmark import Work
from bp.bench.contest import BESIDE, FEWEST_TURNS, SHORT, summary
from bp.bench.drawing import Draw, Drawn
from bp.bench.libraries.ours import OursOnDevice
from bp.bench.products import LayerProduct
from bp.bench.results import Times
from bp.bench.worker import LAUNCHES, MOST_SETS, ROTATED
from bp.cuda import choice
from bp.cuda.choice import Choice, Problem
from bp.errors import BPError
from bp.ops.array import Array, known_dtype
from bp.ops.device import PRECISIONS

REFERENCE = {"linear": Choice("naive"), "conv": Choice("direct")}
TURNS, SECONDS = 21, 2.0

# The probability that a choice is replaced by one that is no faster.
FALSE_ALARMS = 0.02

LONGEST_REASON = 160  # characters

# What a product may fail by: bp refuses it, or CuPy does, the driver, or cuBLAS; there is no memory.
FAILURES = (BPError, RuntimeError, MemoryError)

_LARGEST_SUM = 256.0  # up to which bfloat16 has every integer
_DEVIATIONS = 8.0  # that the sums of random terms stay within


@dataclass(frozen=True)
class Tried:
    """What became of one choice. times: None where it was not timed; reason: why not, or why it is "wrong" or
    "failed"."""

    choice: Choice
    status: Literal["right", "wrong", "failed"]
    reason: str = ""
    times: Times | None = None


@dataclass(frozen=True)
class Trial:
    """problem: the product as the choice sees it. built_in: what the built-in rules have. tried: all that can compute
    it, the fastest first, those without a time last. winner: what is worth having in place of the built-in choice; None
    where nothing is."""

    product: LayerProduct
    problem: Problem
    built_in: Choice
    tried: list[Tried]
    winner: Tried | None = None

    @property
    def flops(self) -> float:
        """Floating-point operations of the product."""
        return self.product.layer.flops

    def of(self, wanted: Choice) -> Tried:
        """What became of that choice."""
        return next(tried for tried in self.tried if tried.choice == wanted)


class NotTried(BPError):
    """Nothing can be said of a product: the naive rung cannot compute it, or its arrays have no room."""


def try_all(
    product: LayerProduct,
    library: OursOnDevice,
    *,
    timed: bool = True,
    libraries: bool = False,
    turns: int = TURNS,
    seconds: float = SECONDS,
    seed: int = 0,
) -> Trial:
    """Try a product on the device of `library`, which has the clock.

    timed: whether its clock says anything. libraries: whether the vendor's may win too; they are timed all the same.
    turns, seconds: of each choice, and of all of them together once each has had some.
    Raises NotTried, and another BPError where the device does nothing more for this process.
    """
    device = library.own
    with library.running(product.precision), _Attempt(library) as attempt:
        problem = product.layer.task(product.way, device, product.precision).problem
        built_in = choice.by_rule(problem, device.capability)
        bench = _Bench(product, problem, library, seed)
        tried = bench.checked(choice.candidates(problem, device.capability))
        if timed:
            tried = bench.timed(tried, turns, seconds)
    if attempt.reason:
        raise NotTried(attempt.reason)
    tried.sort(key=lambda one: math.inf if one.times is None else one.times.median)
    trial = Trial(product, problem, built_in, tried)
    return replace(trial, winner=_winner(trial, libraries))


class _Broken(BPError):
    """The device does nothing more for this process, as after a wrong access to its memory."""


class _Attempt(AbstractContextManager["_Attempt"]):
    """What fails within the block is kept in words, and others go on without it."""

    def __init__(self, library: OursOnDevice) -> None:
        self.library, self.reason = library, ""

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, FAILURES) or isinstance(error, _Broken):
            return False
        self.reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        try:
            self.library.synchronize()
        except FAILURES as broken:
            raise _Broken(f"the device does nothing more for this process: {self.reason}") from broken
        return True


def _winner(trial: Trial, libraries: bool) -> Tried | None:
    """The fastest, if it beats the built-in choice by more than the noise of both, or if that is wrong."""
    allowed = [
        one
        for one in trial.tried
        if one.times is not None and (libraries or not choice.find(trial.problem.family, one.choice.rung).library)
    ]
    if not allowed or allowed[0].choice == trial.built_in:
        return None
    before, best = trial.of(trial.built_in).times, allowed[0]
    if before is None or best.times is None:
        return best
    found = noise.Excess().on(noise.change(before, best.times, None))
    # As many comparisons as there are others, each of which may look faster by chance.
    margin = noise.bound(found.variance, found.freedom, FALSE_ALARMS / max(len(allowed) - 1, 1))
    return best if found.log + margin < 0.0 else None


class _Bench:
    """The arrays of a product, and its runs on one choice or another."""

    def __init__(self, product: LayerProduct, problem: Problem, library: OursOnDevice, seed: int) -> None:
        self.product, self.problem, self.library, self.seed = product, problem, library, seed
        self.memory = library.memory()

    # Right or wrong -----------------------------------------------------------------------------------------

    def checked(self, choices: Sequence[Choice]) -> list[Tried]:
        """Each of these choices, right or not, by exact numbers and by random ones."""
        tried = {one: Tried(one, "right") for one in choices}
        for exact in (True, False):
            arrays = self._drawn(exact)
            expected = self._host(self._run(REFERENCE[self.problem.family], arrays), exact)
            for one in choices:
                if tried[one].status != "right":
                    continue
                with _Attempt(self.library) as attempt:
                    actual = self._host(self._run_twice(one, arrays), exact)
                if attempt.reason:
                    tried[one] = Tried(one, "failed", attempt.reason)
                elif difference := self._difference(actual, expected, exact):
                    tried[one] = Tried(one, "wrong", difference)
        return list(tried.values())

    def _drawn(self, exact: bool) -> dict[str, Array]:
        """The arrays of the product on the device."""
        layer, way, precision = self.product.layer, self.product.way, self.product.precision
        draw, generator = Draw(self.seed, precision), np.random.default_rng(self.seed)
        arrays = {}
        for name, shape in layer.operands(way).items():
            drawn = draw.normal(*shape)
            if exact:
                drawn = Drawn(self._integers(generator, drawn.block.size), shape)
            arrays[name] = self.library.place(drawn)
        for name, shape in layer.destinations(way).items():
            arrays[name] = self.library.own.allocate(shape, "float32")
            self.library.poison(arrays[name])
        return arrays

    def _integers(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """-1, 0 and 1, so many of them 0 that sums stay below `_LARGEST_SUM`."""
        share = min(2 / 3, _LARGEST_SUM / _DEVIATIONS / math.sqrt(max(self.problem.k, 1)))
        signs = generator.integers(0, 2, count, np.int8) * 2 - 1
        chosen = generator.random(count, np.float32) < share
        return (signs * chosen).astype(known_dtype(PRECISIONS[self.product.precision]))

    def _run(self, one: Choice, arrays: dict[str, Array]) -> list[Array]:
        with choice.only(self.problem.family, one):
            written: list[Array] = self._work(arrays, self.memory)()
            return written

    def _run_twice(self, one: Choice, arrays: dict[str, Array]) -> list[Array]:
        """The second time over memory that holds no right result: who writes nothing is found out."""
        written = self._run(one, arrays)
        while written:  # kept by nobody, so that its memory is taken again
            self.library.poison(written.pop())
        return self._run(one, arrays)

    def _host(self, arrays: Sequence[Array], exact: bool) -> list[np.ndarray]:
        if exact:
            return [np.array(self.library.own.to_host(array)) for array in arrays]
        return [self.library.host(array, _ends(array)) for array in arrays]

    def _difference(self, actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], exact: bool) -> str:
        """What is wrong with a result; "" where nothing is."""
        if exact:
            differing = sum(map(_differing, actual, expected))
            return f"{differing} elements differ where sums are exact" if differing else ""
        problem = self.problem
        length = max(problem.k, problem.m if problem.way in ("tn", "backward_parameters") else 1)
        error = check.error(actual, list(expected), self.product.precision, length)
        # Each of the two may be off by what is allowed.
        return "" if error <= 2.0 else f"{error:.3g} times the error that rounding allows"

    # Fast or slow -------------------------------------------------------------------------------------------

    def timed(self, tried: Sequence[Tried], turns: int, seconds: float) -> list[Tried]:
        """Those that are right, one run of each in turn, so that a clock that changes meets all."""
        after = {one.choice: one for one in tried}
        clocks = self._clocks(after)
        taken: dict[Choice, list[float]] = {one: [] for one in clocks}
        begun = time.monotonic()
        for turn in range(turns):
            for one in _from(turn, list(clocks)):
                with _Attempt(self.library) as attempt, choice.only(self.problem.family, one):
                    taken[one].append(clocks[one]())
                if attempt.reason:
                    after[one] = Tried(one, "failed", attempt.reason)
                    del clocks[one]
            if time.monotonic() - begun > seconds and turn + 1 >= FEWEST_TURNS:
                break
        return [
            replace(one, times=summary(taken[one.choice])) if one.choice in clocks else one for one in after.values()
        ]

    def _clocks(self, tried: dict[Choice, Tried]) -> dict[Choice, Callable[[], float]]:
        """What times one run of each choice that is right, after a first run of each. Of the others `tried` says why
        they are not timed.

        Where the fastest is so short that launches and events would be what is timed, it and others as short run as
        graphs of many, as in `bp bench`.
        """
        run = self._work(self._drawn(exact=False), self.memory)

        def by_itself() -> float:
            return self.library.seconds(run, 1, cold=True)

        first: dict[Choice, float] = {}
        for one in [one for one, found in tried.items() if found.status == "right"]:
            with _Attempt(self.library) as attempt, choice.only(self.problem.family, one):
                first[one] = by_itself()
            if attempt.reason:
                tried[one] = Tried(one, "failed", attempt.reason)
        clocks: dict[Choice, Callable[[], float]] = dict.fromkeys(first, by_itself)
        if min(first.values(), default=SHORT) >= SHORT:
            return clocks
        works = self._several()
        for one in [one for one in first if first[one] < BESIDE * SHORT]:
            del clocks[one]
            if choice.find(self.problem.family, one.rung).library:
                reason = "CuPy cannot record it in a graph, and one run alone is too short to time"
                tried[one] = replace(tried[one], reason=reason)
                continue
            with _Attempt(self.library) as attempt:
                clocks[one] = self._graph(one, works)
            if attempt.reason:
                tried[one] = Tried(one, "failed", attempt.reason)
        return clocks

    def _several(self) -> list[Work]:
        """The same work on so many sets of arrays that a cache has forgotten the first when it is its turn again."""
        operands = self.product.layer.operands(self.product.way).values()
        nbytes = sum(map(math.prod, operands)) * known_dtype(PRECISIONS[self.product.precision]).itemsize
        sets = min(max(math.ceil(ROTATED / max(nbytes, 1)), 2), MOST_SETS)
        return [self._work(self._drawn(exact=False), self.library.memory()) for _ in range(sets)]

    def _graph(self, one: Choice, works: Sequence[Work]) -> Callable[[], float]:
        """What times a choice by a graph of all these works, several times over."""
        rounds = math.ceil(LAUNCHES / len(works))
        with choice.only(self.problem.family, one):
            for work in works:
                work()  # what is made at a first run cannot be made while a graph is captured
            replay = self.library.graph([*works] * rounds)
        return lambda: self.library.seconds(replay, 1, cold=False) / (rounds * len(works))

    def _work(self, arrays: dict[str, Array], memory: AbstractContextManager[Any]) -> Work:
        def run() -> list[Array]:
            with memory:
                return self.product.layer.compute(self.product.way, arrays)

        return run


def _from(turn: int, choices: Sequence[Choice]) -> Iterator[Choice]:
    """Each turn begins with another, so that nobody always follows the same one."""
    first = turn % max(len(choices), 1)
    yield from choices[first:]
    yield from choices[:first]


def _ends(array: Array) -> int | None:
    """Rows from both ends that are compared in float64; None for all, where they are not too many."""
    return None if array.size <= check.WHOLE else max(1, check.WHOLE // 2 // (array.size // array.shape[0]))


def _differing(actual: np.ndarray, expected: np.ndarray) -> int:
    """Elements that are not the same number."""
    if actual.shape != expected.shape:
        return max(actual.size, expected.size)
    bits = np.dtype(f"u{actual.itemsize}")
    if np.array_equal(actual.view(bits), expected.view(bits)):
        return 0
    return int(np.count_nonzero(~(actual == expected)))
