"""EarlyStopping: end the run when the watched figure no longer improves."""

import math
from typing import TYPE_CHECKING, Any

from bp.callbacks.callback import Callback
from bp.errors import ConfigurationError
from bp.history import Record

if TYPE_CHECKING:
    from bp.trainer import Trainer


def lower_is_better(name: str) -> bool:
    """Losses and errors fall; accuracies and scores rise."""
    return any(part in name for part in ("loss", "error"))


def expect_monitor(callback: Callback, monitor: str, record: Record) -> None:
    """Raise ConfigurationError where an evaluation lacks the figure that a callback watches."""
    figures = [name for name in record if name.startswith("valid_")]
    if figures:
        raise ConfigurationError(f"{type(callback).__name__} expected monitor to be one of {figures}, got '{monitor}'")


class EarlyStopping(Callback):
    """Stops after `patience` evaluations in a row without an improvement of `monitor` by more than `min_delta`.

    monitor: a name in the evaluation records, such as "valid_loss" or "valid_accuracy"; mode: "min", "max", or "auto"
    (losses and errors fall, all else rises). A figure that is not a number counts as no improvement.
    """

    def __init__(
        self, monitor: str = "valid_loss", patience: int = 3, min_delta: float = 0.0, mode: str = "auto"
    ) -> None:
        if mode not in ("auto", "min", "max"):
            raise ConfigurationError(f"EarlyStopping expected mode auto, min or max, got {mode!r}")
        if patience < 1 or min_delta < 0:
            raise ConfigurationError(
                f"EarlyStopping expected patience >= 1 and min_delta >= 0, got {patience} and {min_delta}"
            )
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.sign = 1.0 if (lower_is_better(monitor) if mode == "auto" else mode == "min") else -1.0
        self.best = math.inf
        self.waited = 0

    def on_fit_start(self, trainer: "Trainer") -> None:
        if trainer.state.step == 0:
            self.best, self.waited = math.inf, 0
        # A run that stopped early and is resumed has nothing left to do.
        if self.waited >= self.patience:
            trainer.should_stop = True

    def on_log(self, trainer: "Trainer", record: Record) -> None:
        if self.monitor not in record:
            expect_monitor(self, self.monitor, record)
            return
        value = self.sign * record[self.monitor]
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best if math.isfinite(self.best) else None, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = math.inf if state["best"] is None else state["best"]
        self.waited = state["waited"]
