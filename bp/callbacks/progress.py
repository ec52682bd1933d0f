"""Progress: a bar on a terminal, one line per log step in a pipe."""

import sys
from typing import TYPE_CHECKING, Any, TextIO

from bp.callbacks.callback import Callback
from bp.history import Record

if TYPE_CHECKING:
    from bp.trainer import Trainer


class Progress(Callback):
    """Shows step, loss, gradient norm, learning rate and speed, and every evaluation.

    stream: where to (default: standard output). On a terminal a bar is redrawn in place and evaluations scroll
    above it; elsewhere every record is one plain line, so a log file can be read and searched.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._bar: Any = None
        self._task: Any = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        stream = self.stream or sys.stdout
        if not stream.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=Console(file=stream),
        )
        self._task = self._bar.add_task(
            "train", total=trainer.total_steps, completed=trainer.state.step, epoch=_epoch(trainer), figures=""
        )
        self._bar.start()

    def on_step_end(self, trainer: "Trainer", *, epoch_ended: bool) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.state.step, epoch=_epoch(trainer))

    def on_log(self, trainer: "Trainer", record: Record) -> None:
        figures = " | ".join(_figures(record))
        evaluation = "loss" not in record
        if self._bar is None:
            stream = self.stream or sys.stdout
            print(f"step {record['step']}/{trainer.total_steps} | {figures}", file=stream, flush=True)
        elif evaluation:
            self._bar.console.print(f"step {record['step']}/{trainer.total_steps} | {figures}", highlight=False)
        else:
            self._bar.update(self._task, figures=figures)

    def on_message(self, trainer: "Trainer", text: str) -> None:
        if self._bar is None:
            print(text, file=self.stream or sys.stdout, flush=True)
        else:
            self._bar.console.print(text, highlight=False)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _epoch(trainer: "Trainer") -> str:
    return f"{min(trainer.state.epoch + 1, trainer.total_epochs)}/{trainer.total_epochs}"


def _figures(record: Record) -> list[str]:
    """The figures of a record, each with its name and unit."""
    forms = {
        "lr": lambda v: f"lr {v:.1e}",
        "ms_per_step": lambda v: f"{v:.3g} ms/step",
        "samples_per_second": lambda v: f"{_thousands(v)} samples/s",
    }
    shown = []
    for name, value in record.items():
        if name in ("step", "epoch", "time") or value is None:
            continue
        shown.append(forms[name](value) if name in forms else f"{name} {value:.4g}")
    return shown


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
