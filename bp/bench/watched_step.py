"""A training step taken apart: what runs in it, for which layer and in which pass, and how long each piece takes.

The step is that of the recipe's own Trainer, on batches of its own data. Three ways to watch it:

* on a GPU the launches of a step are recorded, and launched again one after the other between events;
* on the CPU each operation is timed where it is dispatched, and what it has to compute and move comes from the launches
  that the same operation makes on the planning device;
* where no clock says anything (the emulator, a plan) the launches are listed.
"""

import itertools
import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bp.callbacks import Callback
from bp.cuda.ledger import Launch, Ledger
from bp.data import Loader
from bp.data.dataset import Batch
from bp.errors import ConfigurationError
from bp.ops import scope
from bp.ops.operation import watch_operations
from bp.trainer import Trainer

SECONDS = 4.0  # to time steps for
WARM_UP = 5  # steps, and runs of a list of launches
FEWEST, MOST = 5, 500  # times that are taken of a step
RECORDED = 6  # steps: by then a step that can be replayed is
IN_A_ROW = 10  # steps between two waits for a GPU, or before they are watched, or are no longer
HELD = 16  # batches
FOREVER = 10**9  # steps: more than are watched, so that none is the last or one that is logged
CHUNK = 64  # launches that are queued at a time, few enough for every queue
SCRATCH = 1 << 28  # bytes that are filled before each chunk, to give the host a head start
MOST_FILLS = 256

MATRIX_FAMILIES = ("linear", "conv")  # files of kernels whose products run in the precision of the training
_PRODUCT = {"float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Piece:
    """One launch of a kernel, or on the CPU one call of an operation.

    name: of the kernel's variant, or of the operation. precision: of its arithmetic. seconds: None where no clock says
    anything. flops, nbytes: what it has to compute and move at least; None where nothing is known.
    """

    layer: str
    phase: str
    name: str
    precision: str
    seconds: float | None = None
    flops: float | None = None
    nbytes: float | None = None


@dataclass(frozen=True)
class WatchedStep:
    """pieces: in the order in which they run. how: the step runs, such as "as one CUDA graph". seconds: of a whole step
    that nobody watches, None where that says nothing; times: how many were taken, whose median counts. remarks:
    sentences that a reader of the figures should know."""

    pieces: list[Piece]
    how: str
    seconds: float | None = None
    times: int = 0
    remarks: list[str] = field(default_factory=list)


class HeldBatches(Loader):
    """The first whole batches of a Loader, fetched beforehand, again and again: a step waits for none.

    fetch_seconds: that the Loader took for each of them.
    """

    def __init__(self, loader: Loader, count: int = HELD) -> None:
        super().__init__(loader.dataset, loader.batch_size, transform=loader.transform)
        begun = time.perf_counter()
        with closing(loader.epoch(0)) as batches:
            fetched = list(itertools.islice(batches, count))
        self.fetch_seconds = (time.perf_counter() - begun) / len(fetched)
        self._held = [(x, y) for x, y in fetched if len(x) == len(fetched[0][0])]

    @property
    def samples(self) -> int:
        """In each batch."""
        return len(self._held[0][0])

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch]:
        """They never end."""
        yield from itertools.cycle(self._held)


# Steps ------------------------------------------------------------------------------------------------------


class _Protocol(Callback):
    """Lets a generator watch a training: one step runs at each of its `yield`s, and when it ends the training ends."""

    def __init__(self, steps: Iterator[None]) -> None:
        self.messages: list[str] = []
        self._goes_on = itertools.chain((True for _ in steps), [False])

    def on_fit_start(self, trainer: Trainer) -> None:
        next(self._goes_on)

    def on_step_end(self, trainer: Trainer, *, epoch_ended: bool) -> None:
        trainer.should_stop = not next(self._goes_on)

    def on_message(self, trainer: Trainer, text: str) -> None:
        self.messages.append(text)


def run(trainer: Trainer, batches: HeldBatches, steps: Generator[None]) -> list[str]:
    """Train for as many steps as the generator yields; returns what the Trainer had to say.

    No step of them is logged, evaluated or the last of a run: each does what steps ordinarily do.
    """

    def in_scopes() -> Generator[None]:
        with _scopes_outside_layers(trainer):  # once the training has begun, which makes the average
            yield from steps

    with closing(in_scopes()) as watching:
        protocol = _Protocol(watching)
        trainer.callbacks[:] = [protocol]
        trainer.log_every_n_steps = FOREVER
        trainer.fit(batches, max_steps=FOREVER)
    return protocol.messages


@contextmanager
def _scopes_outside_layers(trainer: Trainer) -> Iterator[None]:
    """Within this block loss, optimizer and average of the weights enter scopes, as layers do."""
    optimizer = type(trainer.optimizer).__name__
    methods: list[tuple[Any, str, str, str]] = [
        (trainer.loss, "forward", trainer.loss.label, "forward"),
        (trainer.loss, "backward", trainer.loss.label, "backward"),
        (trainer.optimizer, "clip_by_value", optimizer, "step"),
        (trainer.optimizer, "clip_by_global_norm", optimizer, "step"),
        (trainer.optimizer, "step", optimizer, "step"),
    ]
    if trainer.average is not None:
        methods.append((trainer.average, "update", type(trainer.average).__name__, "step"))
    with ExitStack() as undo:
        for owner, method, label, phase in methods:
            setattr(owner, method, _within(getattr(owner, method), label, phase))
            undo.callback(delattr, owner, method)
        yield


def _within(method: Callable[..., Any], label: str, phase: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        with scope.enter(label, phase):
            return method(*arguments, **named)

    return call


# Operations -------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A call of an operation: the seconds and the launches in it that belong to no operation which it calls itself."""

    layer: str
    phase: str
    operation: str
    seconds: float = 0.0
    launches: list[Launch] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is, in whichever step and on whichever device."""
        return self.layer, self.phase, self.operation


class Calls:
    """The calls of operations in a stretch of work, in the order in which they begin."""

    def __init__(self, ledger: Ledger | None) -> None:
        self.made: list[Call] = []
        self._ledger = ledger
        self._open: list[Call] = []
        self._since = 0.0
        self._launched = 0

    def take(self) -> list[Call]:
        """Those that were made so far, which begin anew."""
        made, self.made = self.made, []
        return made

    def begin(self, operation: str) -> Callable[[], None]:
        """An operation begins; returns what ends it."""
        self._settle()
        self._open.append(Call(*scope.current(), operation))
        self.made.append(self._open[-1])
        self._since = time.perf_counter()
        return self._end

    def _end(self) -> None:
        self._settle()
        self._open.pop()
        self._since = time.perf_counter()

    def _settle(self) -> None:
        """What came since the last beginning or end belongs to the innermost operation that is open."""
        now = time.perf_counter()
        launches = [] if self._ledger is None else self._ledger.launches
        if self._open:
            self._open[-1].seconds += now - self._since
            self._open[-1].launches += launches[self._launched :]
        self._launched = len(launches)


@contextmanager
def watching_calls(ledger: Ledger | None = None) -> Iterator[Calls]:
    """Within this block operations are watched. ledger: one that is being written, whose launches they are to get."""
    calls = Calls(ledger)
    with scope.watch(), watch_operations(calls.begin):
        yield calls


def on_cpu(trainer: Trainer, planned: Trainer, batches: HeldBatches) -> WatchedStep:
    """The operations of a step on the CPU. planned: a Trainer made alike, in fp32 on the planning device, no graph.

    Some steps that are watched and some that are not take turns: watching takes time of its own, outside of operations.
    A piece takes what it took on average in those of the watched steps that took about as long as half of them did: so
    the pieces add up to a step, also where the machine has other things to do in between.
    """
    whole: list[float] = []
    watched: list[tuple[float, list[Call]]] = []

    def steps() -> Generator[None]:
        for _ in range(WARM_UP):
            yield
        begun = time.monotonic()
        while len(whole) < MOST and (not whole or time.monotonic() - begun < SECONDS):
            for _ in range(IN_A_ROW):
                mark = time.perf_counter()
                yield
                whole.append(time.perf_counter() - mark)
            with watching_calls() as calls:
                for _ in range(IN_A_ROW):
                    mark = time.perf_counter()
                    yield
                    watched.append((time.perf_counter() - mark, calls.take()))

    run(trainer, batches, steps())
    keys = [call.key for call in watched[-1][1]]
    same = [step for step in watched if [call.key for call in step[1]] == keys]
    remarks = []
    if len(same) < len(watched):
        remarks.append(f"{len(watched) - len(same)} of {len(watched)} steps called other operations: they are left out")
    same.sort(key=lambda step: step[0])
    middle = same[2 * len(same) // 5 : 3 * len(same) // 5 + 1]
    costs = planned_costs(planned, batches)
    pieces = []
    for position, key in enumerate(keys):
        taken = statistics.fmean(calls[position].seconds for _, calls in middle)
        flops, nbytes = costs[key].popleft() if costs[key] else (None, None)
        pieces.append(Piece(*key, trainer.precision, taken, flops, nbytes))
    unknown = sum(piece.flops is None for piece in pieces)
    if unknown:
        remarks.append(f"{unknown} operations are none of the planned step: what they compute and move is not known")
    return WatchedStep(pieces, "operation by operation", statistics.median(whole), len(whole), remarks)


def planned_costs(trainer: Trainer, batches: HeldBatches) -> dict[tuple[str, str, str], deque[tuple[float, float]]]:
    """(FLOPs, bytes) of the launches in each call of an operation, by what it is and in the order of calls."""
    device: Any = trainer.device
    made: list[Call] = []

    def steps() -> Generator[None]:
        yield  # in which a layer may make what it keeps
        with device.recording() as ledger, watching_calls(ledger) as calls:
            yield
        made.extend(calls.take())

    run(trainer, batches, steps())
    costs: dict[tuple[str, str, str], deque[tuple[float, float]]] = defaultdict(deque)
    for call in made:
        costs[call.key].append((sum(k.flops for k in call.launches), sum(k.nbytes for k in call.launches)))
    return costs


# Launches ---------------------------------------------------------------------------------------------------


def on_plan(trainer: Trainer, batches: HeldBatches) -> WatchedStep:
    """The launches of a step, without times."""
    ledgers: list[Ledger] = []
    messages = run(trainer, batches, _recorded(trainer.device, ledgers))
    step, how, remarks = _whole_step(ledgers)
    return WatchedStep(
        [_piece(launch, trainer.precision) for launch in step.launches], how, None, 0, messages + remarks
    )


def on_gpu(trainer: Trainer, batches: HeldBatches) -> WatchedStep:
    """The launches of a step with their times, and the time of the whole step as the Trainer runs it.

    First whole steps are timed, many in a row. Then the launches of one are launched again, on the memory that it left,
    each between two events, and queued ahead of the device: else a short kernel would be charged with the time that
    the host takes to launch it.
    """
    device: Any = trainer.device
    ledgers: list[Ledger] = []
    whole: list[float] = []

    def steps() -> Generator[None]:
        yield from _recorded(device, ledgers)
        for _ in range(WARM_UP):
            yield
        begun = time.monotonic()
        while len(whole) < MOST and (len(whole) < FEWEST or time.monotonic() - begun < SECONDS / 2):
            device.synchronize()
            mark = time.perf_counter()
            for _ in range(IN_A_ROW):
                yield
            device.synchronize()
            whole.append((time.perf_counter() - mark) / IN_A_ROW)

    messages = run(trainer, batches, steps())
    step, how, remarks = _whole_step(ledgers)
    with device.running(trainer.precision):
        times = launch_times(device, step.launches)
    pieces = [_piece(launch, trainer.precision, t) for launch, t in zip(step.launches, times, strict=True)]
    return WatchedStep(pieces, how, statistics.median(whole), len(whole) * IN_A_ROW, messages + remarks)


def _recorded(device: Any, ledgers: list[Ledger]) -> Generator[None]:
    for _ in range(RECORDED):
        with device.recording() as ledger:
            yield
        ledgers.append(ledger)


def _whole_step(ledgers: Sequence[Ledger]) -> tuple[Ledger, str, list[str]]:
    """The last step that ran launch by launch, how steps run in the end, and what is to be said of it.

    Of a replayed step a ledger has at most what brings the batch: nothing of a layer.
    """
    launched = [ledger for ledger in ledgers if any(launch.layer for launch in ledger.launches)]
    if not launched:
        raise ConfigurationError("expected a training step that launches kernels, got one that launches none")
    how = "launch by launch" if launched[-1] is ledgers[-1] else "as one CUDA graph"
    difference = launched[-2].difference(launched[-1]) if len(launched) > 1 else None
    remarks = [] if difference is None else [f"steps differ ({difference}): the launches are those of the last"]
    return launched[-1], how, remarks


def _piece(launch: Launch, training: str, seconds: float | None = None) -> Piece:
    arithmetic = precision_of(launch, training)
    return Piece(
        launch.layer,
        launch.phase,
        str(launch.variant).removesuffix("[]"),
        arithmetic,
        seconds,
        launch.flops,
        launch.nbytes,
    )


def precision_of(launch: Launch, training: str) -> str:
    """Products of matrices run in the precision of their elements, or in tf32; all other arithmetic is in float32."""
    unit = launch.variant.unit
    if unit.source.name.partition("_")[0] not in MATRIX_FAMILIES:
        return "fp32"
    return _PRODUCT.get(dict(unit.defines).get("T", ""), "tf32" if training == "tf32" else "fp32")


def launch_times(device: Any, launches: Sequence[Launch]) -> list[float]:
    """Median seconds of each launch, of all launched again in their order, several times.

    Before each chunk of them the device gets enough to do for the host to queue the chunk meanwhile.
    """
    scratch = device.allocate((SCRATCH // 4,), np.float32)
    device.fill(scratch, 0.0)
    mark = device.mark()
    device.fill(scratch, 0.0)
    fill = device.since(mark)()
    chunks = [launches[start : start + CHUNK] for start in range(0, len(launches), CHUNK)]
    fills = [1] * len(chunks)
    turns: list[list[float]] = []
    begun = time.monotonic()
    while len(turns) < MOST and (len(turns) < WARM_UP + FEWEST or time.monotonic() - begun < SECONDS / 2):
        turns.append([])
        for number, chunk in enumerate(chunks):
            device.synchronize()
            for _ in range(fills[number]):
                device.fill(scratch, 0.0)
            queueing = time.perf_counter()
            with device.recording(timed=True) as ledger:
                for launch in chunk:
                    device.launch(launch.variant, launch.grid, launch.values)
            twice = 2 * (time.perf_counter() - queueing)
            fills[number] = min(math.ceil(twice / fill) if fill > 0 else 1, MOST_FILLS)
            turns[-1] += [launch.seconds or 0.0 for launch in ledger.launches]
    return [statistics.median(taken) for taken in zip(*turns[WARM_UP:], strict=True)]
