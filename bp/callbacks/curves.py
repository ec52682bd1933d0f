"""Curves: the loss and the metrics of a run as a picture."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bp.callbacks.callback import Callback
from bp.callbacks.trigger import Trigger
from bp.history import History

if TYPE_CHECKING:
    from bp.trainer import Trainer

MISSING = "curves.png is not drawn: matplotlib is not installed; pip install 'bp[plot]'"


class Curves(Callback):
    """Draws `path` (PNG): losses on top, metrics, and the learning rate, all over steps.

    trigger: when to draw it, beside the end of the run ("every 10 epochs"; a drawing takes some tenths of a second).
    Without matplotlib it draws nothing and says so once.
    """

    def __init__(self, path: str | os.PathLike[str], trigger: str | Trigger | None = None) -> None:
        self.path = Path(path)
        self.trigger = None if trigger is None else Trigger.parse(trigger)

    def on_step_end(self, trainer: "Trainer", *, epoch_ended: bool) -> None:
        if self.trigger is not None and self.trigger.fires(
            trainer.state.step, trainer.state.epoch, epoch_ended=epoch_ended
        ):
            self.on_fit_end(trainer)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if not trainer.history.records:
            return
        try:
            draw(trainer.history, self.path)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            print(MISSING)


def draw(history: History, path: Path) -> None:
    """Write the picture; raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [n for n in ("loss", "valid_loss") if history[n]]
    metrics = [n for n in history.names if n.startswith("valid_") and n != "valid_loss"]
    panels = [(losses, "loss")] + [([n], n.replace("_", " ")) for n in metrics] + [(["lr"], "learning rate")]
    panels = [(names, title) for names, title in panels if any(history[n] for n in names)]
    figure = Figure(figsize=(7.0, 2.3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (names, title) in zip(axes, panels, strict=True):
        for name in names:
            few = len(history[name]) < 40
            axis.plot(history.steps(name), history[name], label=name, marker="." if few else None, linewidth=1.4)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        values = [v for n in names for v in history[n]]
        if title == "loss" and values and min(values) > 0:
            axis.set_yscale("log")
        if len(names) > 1:
            axis.legend(frameon=False)
    axes[-1].set_xlabel("step")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    os.replace(partial, path)
