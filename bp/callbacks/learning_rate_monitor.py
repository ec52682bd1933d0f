"""LearningRateMonitor: the learning rate of every step, for plots finer than the log steps."""

from typing import TYPE_CHECKING

from bp.callbacks.callback import Callback

if TYPE_CHECKING:
    from bp.trainer import Trainer


class LearningRateMonitor(Callback):
    """Keeps `steps` and `values`: the learning rate that each optimizer step of this run used."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []

    def on_step_end(self, trainer: "Trainer", *, epoch_ended: bool) -> None:
        self.steps.append(trainer.state.step)
        self.values.append(trainer.optimizer.lr)
