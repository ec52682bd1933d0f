"""Trainer: the training loop, top to bottom: epochs, forward, loss, backward, optimizer step, evaluation."""

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import bp.ops.reduce as reduce
from bp import resuming
from bp.callbacks import Callback, Curves, JSONLLog, ModelCheckpoint, Progress, Trigger
from bp.checkpoint import Snapshot, read_snapshot, step_folders
from bp.data import ArrayDataset, Loader
from bp.errors import BPError, ConfigurationError
from bp.history import History, Record
from bp.interruption import InterruptedBetweenSteps, deferred_interrupt
from bp.layers import Context, Layer
from bp.losses import Loss
from bp.metrics import Metric
from bp.ops import control as block
from bp.ops.array import Array, is_floating, known_dtype
from bp.ops.device import PRECISIONS, Device, StepSettings, find_device, resolve_precision
from bp.ops.memory import only_caller_holds
from bp.optimizers import ExponentialMovingAverage, Optimizer
from bp.resuming import State
from bp.schedules import Constant, Schedule

Batch = tuple[np.ndarray, np.ndarray]
Data = Loader | tuple[np.ndarray, np.ndarray]


class DivergedError(BPError, ArithmeticError):
    """The loss is no longer a finite number; training further would change nothing for the better."""


class Trainer:
    """Drives epochs, loss and optimizer steps over a model.

    model: built by `fit` from the first batch's shape, unless it is built already. loss, optimizer: as named.
    schedule: the learning rate over the steps (default: constant). device: "cpu", "cuda", "emulator", or "auto", which
    takes a GPU that works, else the CPU. precision: fp32 or fp64 on the CPU, fp32, tf32, bf16 or fp16 on a GPU; "auto"
    is fp32 on the CPU, bf16 on a GPU that has it. cuda_graph: "auto" replays whole steps as one CUDA graph where they
    allow it, and says why where they do not; "on" raises then, "off" launches each kernel. The weights are the same.
    fuse: False runs each layer of a Sequential by itself (see `bp.layers.fusion`); the results are the same but for
    rounding.
    seed: of initial values and dropout. accumulate_grad_batches: batches per optimizer step; the gradient equals that
    of one batch of all their samples (batch normalisation excepted, which sees each batch alone). max_grad_norm: clips
    the global norm; clip_value: clips each element. metrics: what evaluations measure beside the loss. ema_decay: keep
    an exponential moving average of the weights, and evaluate with it.
    log_every_n_steps; eval_every_n_steps (default: every epoch); save_every_n_steps (default: every epoch).
    output_dir: where metrics.jsonl, curves.png and checkpoints go; None writes nothing. callbacks: run after the
    standard ones and before the checkpoint, which holds their state. progress: False shows nothing.
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        *,
        precision: str = "auto",
        device: str | Device = "auto",
        cuda_graph: str = "auto",
        fuse: bool = True,
        seed: int = 0,
        accumulate_grad_batches: int = 1,
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        metrics: Sequence[Metric] = (),
        ema_decay: float | None = None,
        log_every_n_steps: int = 50,
        eval_every_n_steps: int | None = None,
        save_every_n_steps: int | None = None,
        save_total_limit: int | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        callbacks: Iterable[Callback] = (),
        progress: bool = True,
    ) -> None:
        for name, value in (
            ("accumulate_grad_batches", accumulate_grad_batches),
            ("log_every_n_steps", log_every_n_steps),
            ("eval_every_n_steps", eval_every_n_steps),
            ("save_every_n_steps", save_every_n_steps),
            ("save_total_limit", save_total_limit),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"Trainer expected {name} to be an integer of at least 1, got {value}")
        for name, limit in (("max_grad_norm", max_grad_norm), ("clip_value", clip_value)):
            if limit is not None and not limit > 0:
                raise ConfigurationError(f"Trainer expected {name} > 0, got {limit}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ConfigurationError(f"Trainer expected ema_decay in [0, 1), got {ema_decay}")
        if not 0 <= seed < 2**64:
            raise ConfigurationError(f"Trainer expected seed in 0..2^64 - 1, got {seed}")
        if cuda_graph not in ("auto", "on", "off"):
            raise ConfigurationError(f"Trainer expected cuda_graph 'auto', 'on' or 'off', got {cuda_graph!r}")
        if loss.reduction == "none":
            raise ConfigurationError("Trainer expected a loss with reduction 'mean' or 'sum', got 'none'")
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule or Constant()
        self.device = find_device(device) if isinstance(device, str) else device
        resuming.kernel_choice(self)  # raises here, rather than in a step, where what the environment asks for is not
        self.precision = resolve_precision(precision, self.device)
        self.dtype = known_dtype(PRECISIONS[self.precision])
        self.cuda_graph = cuda_graph
        self.fuse = fuse
        self.seed = seed
        self.accumulate_grad_batches = accumulate_grad_batches
        self.max_grad_norm = max_grad_norm
        self.clip_value = clip_value
        self.metrics = list(metrics)
        self.ema_decay = ema_decay
        self.average: ExponentialMovingAverage | None = None
        self.log_every_n_steps = log_every_n_steps
        self.eval_trigger = _trigger(eval_every_n_steps)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.callbacks: list[Callback] = [Progress()] if progress else []
        if self.output_dir is not None:
            self.callbacks += [JSONLLog(self.output_dir / "metrics.jsonl"), Curves(self.output_dir / "curves.png")]
        self.callbacks += callbacks
        if self.output_dir is not None:
            # Last, so that a checkpoint holds the state of the other callbacks after the step.
            folder, trigger = self.output_dir / "checkpoints", _trigger(save_every_n_steps)
            self.callbacks.append(ModelCheckpoint(folder, trigger, save_total_limit=save_total_limit))
        self.state = State()
        self.history = History()
        self.should_stop = False
        self.failed = False
        self.total_steps = 0
        self.total_epochs = 0
        self._memory = self.device.StepMemory()
        self._graph = None if cuda_graph == "off" else self.device.step_graph()
        if cuda_graph == "on" and self._graph is None:
            raise ConfigurationError(f"cuda_graph='on' needs a GPU, got device '{self.device.name}'")
        self.loss_sum: Array = self.device.zeros((), np.float64)
        self._clock = (0.0, 0, 0)  # time, step and samples at the last log step
        self.identity: dict[str, Any] = {}
        self._output_shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._layers: list[Layer] = []

    # Training ---------------------------------------------------------------------------------------------

    def fit(
        self,
        train: Data,
        valid: Data | None = None,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for `max_epochs` or `max_steps` (optimizer steps), whichever ends first; returns the history.

        train, valid: a Loader, or a pair (x, y) of arrays, taken in shuffled batches of 32. resume: "auto" goes on
        from the last checkpoint of the output directory where there is one; a path, from that checkpoint or output
        directory. Going on gives bitwise the weights of a run that never stopped; where other kernels are chosen, or
        `fuse` is another, the last bits may differ, and a message says so. Without `resume` a second call trains on
        from the model and optimizer as they are, with a new count of steps; an output directory takes one run.
        Raises DivergedError where the loss at a log step, or a weight to be saved, is not finite. Ctrl-C ends the step
        in progress, saves, and raises KeyboardInterrupt; a second one interrupts at once and saves nothing.
        """
        train = as_loader(train, shuffle=True, seed=self.seed)
        if max_epochs is None and max_steps is None:
            raise ConfigurationError("fit expected max_epochs or max_steps")
        for name, limit in (("max_epochs", max_epochs), ("max_steps", max_steps)):
            if limit is not None and limit < 1:
                raise ConfigurationError(f"fit expected {name} of at least 1, got {limit}")
        steps_per_epoch = -(-len(train) // self.accumulate_grad_batches)
        limits = [n for n in (max_steps, None if max_epochs is None else max_epochs * steps_per_epoch) if n is not None]
        self.total_steps = min(limits)
        self.total_epochs = -(-self.total_steps // steps_per_epoch)
        self.prepare(train.sample_shape)
        self._start(train, resume)

        with self.device.running(self.precision), self._closing_callbacks(), deferred_interrupt() as interrupted:
            for callback in self.callbacks:
                callback.on_fit_start(self)
            self._clock = time.perf_counter(), self.state.step, self.state.samples
            while self.state.step < self.total_steps and not self.should_stop:
                with closing(train.epoch(self.state.epoch, self.state.batch)) as batches:
                    while group := list(islice(batches, self.accumulate_grad_batches)):
                        self._step(group)
                        self.state.batch += len(group)
                        epoch_ended = self.state.batch >= len(train)
                        if epoch_ended:
                            self.state.epoch, self.state.batch = self.state.epoch + 1, 0
                        self._after_step(valid, len(train), epoch_ended)
                        if self.state.step >= self.total_steps or self.should_stop or interrupted.is_set():
                            break
                if interrupted.is_set():
                    raise InterruptedBetweenSteps
        return self.history

    def prepare(self, sample_shape: tuple[int, ...]) -> None:
        """Build the model for samples of that shape, unless it is built, and attach the optimizer to it."""
        if not self.model.built:
            self.model.build(sample_shape, device=self.device, dtype=self.dtype, seed=self.seed)
        arena = self.model.arena
        if arena.dtype != self.dtype or arena.device is not self.device:
            raise ConfigurationError(
                f"the model is built in {arena.dtype} on {arena.device.name}, the Trainer expected {self.dtype} "
                f"on {self.device.name}: pass precision and device that agree with model.build()"
            )
        self._layers = [layer for _, layer in self.model.named_layers()]
        if self.precision == "fp16" and not self.optimizer.scales_loss:
            self.optimizer.enable_loss_scaling()
        if not self.optimizer.is_setup_for(self.model):
            self.optimizer.setup(self.model)
        if self.ema_decay is not None and self.average is None:
            self.average = ExponentialMovingAverage(self.model, self.ema_decay)

    def _step(self, batches: list[Batch]) -> None:
        """One optimizer step from the gradient of one or several batches."""
        batches = [(self._floats(x), self._checked_targets(x, y)) for x, y in batches]
        count = sum(self.loss.count(y) for _, y in batches)
        self._write_control(count)
        # What somebody read or wrote of the gradients between steps belongs to none; a step begins the same every time.
        self.optimizer.arena.consume_gradients()
        if self._graph is None:
            with self._memory:
                self._compute([(self.device.from_host(x), self.device.from_host(y)) for x, y in batches])
        else:
            known = self._graph.reason
            flat = [array for batch in batches for array in batch]

            def work(arrays: Sequence[Array]) -> None:
                self._compute(list(zip(arrays[::2], arrays[1::2], strict=True)))

            self._graph.run(flat, work, self._step_settings)
            if self._graph.reason != known:
                self._no_graph(self._graph.reason)
        self.state.step += 1
        self.state.samples += sum(len(x) for x, _ in batches)
        self.state.loss_count += count

    def _no_graph(self, reason: str | None) -> None:
        if self.cuda_graph == "on":
            raise ConfigurationError(f"cuda_graph='on', but the step cannot be replayed as a graph: {reason}")
        for callback in self.callbacks:
            callback.on_message(self, f"steps run launch by launch, not as one graph: {reason}")

    def _step_settings(self) -> StepSettings:
        """By owner, all that decides which launches a step makes beside the shapes of its batches."""
        own = ("model", "loss", "optimizer", "average", "max_grad_norm", "clip_value", "fuse")
        rule = {name: value for name, value in vars(self.optimizer).items() if name not in ("base_lr", "_lr")}
        return {
            "Trainer": {name: getattr(self, name) for name in own} | {"kernels": resuming.kernel_choice(self)},
            self.loss.label: dict(vars(self.loss)),
            type(self.optimizer).__name__: rule,  # the learning rate is in the control block
            "ExponentialMovingAverage": {} if self.average is None else dict(vars(self.average)),
        } | {layer.label: dict(vars(layer)) for layer in self._layers}

    def _write_control(self, count: float) -> None:
        """What changes from step to step, into the control block, before the step."""
        self.optimizer.lr = self.optimizer.base_lr * self.schedule.factor(self.state.step)
        entries = self.optimizer.control[block.LOSS_DENOMINATOR : block.FORWARD_COUNTER + 1]
        self.device.copy(entries, np.array([self.loss.denominator(count), self.state.step], np.float64))

    def _compute(self, batches: Sequence[tuple[Array, Array]]) -> None:
        """The step itself, from arrays on the device: every step launches the same work on the same memory."""
        control = self.optimizer.control
        first_sample = 0
        for x, y in batches:
            ctx = Context(training=True, sample_offset=first_sample, fuse=self.fuse, control_block=control)
            predictions = self.model.forward(x, ctx)
            ctx.predictions_unneeded = only_caller_holds(predictions)
            value = self.loss.forward(predictions, y, ctx)
            reduce.accumulate(self.loss_sum, value, control)
            self.model.backward_parameters(self.loss.backward(ctx), ctx)
            first_sample += len(x)
        if self.clip_value is not None:
            self.optimizer.clip_by_value(self.clip_value)
        logs = (self.state.step + 1) % self.log_every_n_steps == 0 or self.state.step + 1 == self.total_steps
        if self.max_grad_norm is not None or logs or self._graph is not None:  # a graph does the same in every step
            self.optimizer.clip_by_global_norm(math.inf if self.max_grad_norm is None else self.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def _after_step(self, valid: Data | None, batches_per_epoch: int, epoch_ended: bool) -> None:
        """Log, evaluate, and let the callbacks act."""
        state = self.state
        position = state.epoch + state.batch / batches_per_epoch
        if state.step % self.log_every_n_steps == 0 or state.step == self.total_steps:
            self._log(self._training_record(position))
        due = self.eval_trigger.fires(state.step, state.epoch, epoch_ended=epoch_ended)
        if valid is not None and (due or state.step == self.total_steps):
            figures = self.evaluate(valid)
            if due:  # an evaluation that only the end of the run brings must not change how a longer run goes on
                self.schedule.observe(figures["loss"])
            self._log({"step": state.step, "epoch": position, **{f"valid_{k}": v for k, v in figures.items()}})
            self._clock = time.perf_counter(), state.step, state.samples
        for callback in self.callbacks:
            callback.on_step_end(self, epoch_ended=epoch_ended)

    def _training_record(self, position: float) -> Record:
        """The running loss per term since the last log step, and how fast the steps were."""
        state = self.state
        loss = self._running_loss()
        since, first_step, first_sample = self._clock
        seconds = max(time.perf_counter() - since, 1e-9)
        steps = state.step - first_step
        self._clock = time.perf_counter(), state.step, state.samples
        self.device.fill(self.loss_sum, 0.0)
        state.loss_count = 0.0
        return {
            "step": state.step,
            "epoch": position,
            "loss": loss,
            "grad_norm": float(self.device.to_host(self.optimizer.control)[block.GRADIENT_NORM]),
            "lr": self.optimizer.lr,
            "ms_per_step": 1e3 * seconds / steps if steps else None,
            "samples_per_second": (state.samples - first_sample) / seconds,
        }

    def _running_loss(self) -> float:
        """The mean loss per term since the last log step; raises DivergedError where that is not a number."""
        total, count = float(self.device.to_host(self.loss_sum)), self.state.loss_count
        if not math.isfinite(total):
            raise DivergedError(
                f"the loss is {total} at step {self.state.step}: lower the learning rate (now {self.optimizer.lr:g}), "
                "set max_grad_norm, or look for the layer with bp.check"
            )
        return total / count if count else 0.0

    def _log(self, record: Record) -> None:
        record["time"] = time.time()
        self.history.append(record)
        for callback in self.callbacks:
            callback.on_log(self, record)

    # Evaluation and prediction ------------------------------------------------------------------------------

    def evaluate(self, data: Data) -> dict[str, float]:
        """{"loss": mean per term over all of `data`, and each metric by name}, in inference mode."""
        loader = as_loader(data)
        self.prepare(loader.sample_shape)
        for metric in self.metrics:
            metric.reset()
        total = self.device.zeros((), np.float64)
        count = 0.0
        with self.device.running(self.precision), self._averaged(), self._memory:
            for x, y in loader.in_order():
                y = self._checked_targets(x, y)
                ctx = Context(denominator=self.loss.count(y), fuse=self.fuse)
                predictions = self.model.forward(self._inputs(x), ctx)
                value = self.loss.forward(predictions, self.device.from_host(y), ctx)
                reduce.accumulate(total, value, ctx.control_beside(predictions))
                count += self.loss.count(y)
                host = as_float32(self.device.to_host(predictions))
                for metric in self.metrics:
                    metric.update(host, y)
        figures = {"loss": float(self.device.to_host(total)) / count if count else 0.0}
        return figures | {metric.name: metric.compute() for metric in self.metrics}

    def predict(self, data: Data | np.ndarray, batch_size: int = 256) -> np.ndarray:
        """The model's outputs for all samples, in their order, in inference mode, as one host array.

        Of float32 also in a 16-bit precision: NumPy knows no bfloat16, and its float16 overflows in sums.
        data: inputs as an array, a pair (x, y), or a Loader, whose dataset and transform are used in stored order.
        """
        loader = as_loader((data, np.zeros(len(data))) if isinstance(data, np.ndarray) else data, batch_size=batch_size)
        self.prepare(loader.sample_shape)
        outputs = []
        with self.device.running(self.precision), self._averaged(), self._memory:
            for x, _ in loader.in_order():
                outputs.append(self._predicted(x))
        return np.concatenate(outputs)

    def _predicted(self, x: np.ndarray) -> np.ndarray:
        y = self.model.forward(self._inputs(x), Context(fuse=self.fuse))
        return np.array(as_float32(self.device.to_host(y)))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.average is None or not self.average.updates:
            yield
            return
        with self.average.applied():
            yield

    def _inputs(self, x: np.ndarray) -> Array:
        """A host batch on the device, floating inputs in the dtype of the model; integers stay as they are."""
        return self.device.from_host(self._floats(x))

    def _floats(self, x: np.ndarray) -> np.ndarray:
        return x.astype(self.dtype, copy=False) if is_floating(x.dtype) else x

    def _checked_targets(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Host targets, floating ones in the dtype of the model, checked against the shape that x will lead to."""
        y = self._floats(y)
        sample = tuple(x.shape[1:])
        if sample not in self._output_shapes:
            self._output_shapes[sample] = self.model.declare(sample)
        self.loss.check((len(x), *self._output_shapes[sample]), y)
        return y

    # Stopping and going on ------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """All that another Trainer, made alike, needs to go on from here; DivergedError where that is past saving."""
        self._running_loss()
        taken = resuming.snapshot(self)
        for name, array in taken.model.items():
            if not np.isfinite(array).all():
                raise DivergedError(f"'{name}' is not finite at step {self.state.step}: nothing is left to save")
        return taken

    def restore(self, snapshot: Snapshot, source: str = "checkpoint") -> None:
        """Take over weights, optimizer, schedule, position and history.

        Raises CheckpointError where the run was made with other data or settings; then everything is as it was.
        """
        resuming.restore(self, snapshot, source)

    def _start(self, train: Loader, resume: str | os.PathLike[str] | None) -> None:
        """Set the position to the beginning, or to where the checkpoint says."""
        self.should_stop = self.failed = False
        self.optimizer.arena.consume_gradients()  # of a step that an error cut short
        if self.average is not None and not self.average.updates:
            self.average = ExponentialMovingAverage(self.model, self.average.decay)  # of the weights as they are now
        self.identity = resuming.identity(self, train)
        seed = np.array([self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF], np.float64)
        self.device.copy(self.optimizer.control[block.SEED_LOW : block.SEED_HIGH + 1], seed)
        self.schedule.setup(self.total_steps, self.optimizer.base_lr)
        folder = None if resume is None else resuming.folder_of(resume, self.output_dir)
        if folder is not None:
            self.restore(read_snapshot(folder), str(folder))
        elif self.output_dir is not None and step_folders(self.output_dir / "checkpoints"):
            raise ConfigurationError(
                f"{self.output_dir} holds the checkpoints of another run: resume it, or name another output_dir"
            )
        else:
            self.state, self.history = State(), History()
            self.device.fill(self.loss_sum, 0.0)

    @contextmanager
    def _closing_callbacks(self) -> Iterator[None]:
        """Call every callback at the end, whatever happens, even where one of them fails."""
        with ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback.on_fit_end, self)
            try:
                yield
            except BaseException as error:
                self.failed = not isinstance(error, InterruptedBetweenSteps)
                raise


def as_loader(data: Data, *, batch_size: int = 32, shuffle: bool = False, seed: int = 0) -> Loader:
    """The loader itself, or one over a pair of arrays."""
    if isinstance(data, Loader):
        return data
    return Loader(ArrayDataset(*data), batch_size, shuffle=shuffle, seed=seed)


def as_float32(array: np.ndarray) -> np.ndarray:
    """Host floats of 16 bits as float32; anything else as it is."""
    return array.astype(np.float32) if is_floating(array.dtype) and array.dtype.itemsize == 2 else array


def _trigger(every_n_steps: int | None) -> Trigger:
    return Trigger(1, "epoch") if every_n_steps is None else Trigger(every_n_steps, "step")
