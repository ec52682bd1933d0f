"""ModelCheckpoint: save the run while it trains."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bp.callbacks.callback import Callback
from bp.callbacks.early_stopping import expect_monitor, lower_is_better
from bp.callbacks.trigger import Trigger
from bp.checkpoint import point_to, step_folders, write_snapshot
from bp.errors import ConfigurationError
from bp.history import Record

if TYPE_CHECKING:
    from bp.trainer import Trainer


class ModelCheckpoint(Callback):
    """Saves `folder/step-XXXXXXXX/` whenever `trigger` fires and at the end; `last` and `best` point to two of them.

    monitor: the evaluation figure that decides `best`; a step is saved as well whenever it sets a new best.
    save_total_limit: at most so many step folders stay; the oldest go first, never those that `last` or `best` name.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        trigger: str | Trigger = "every 1 epoch",
        monitor: str = "valid_loss",
        save_total_limit: int | None = None,
    ) -> None:
        if save_total_limit is not None and save_total_limit < 1:
            raise ConfigurationError(f"save_total_limit expected at least 1, got {save_total_limit}")
        self.folder = Path(folder)
        self.trigger = Trigger.parse(trigger)
        self.monitor = monitor
        self.save_total_limit = save_total_limit
        self.best: float | None = None
        self.best_step: int | None = None
        self._saved_now = (-1, -1)  # step and samples of the last save
        self._new_best = False

    def on_fit_start(self, trainer: "Trainer") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._new_best = False
        best = None if self.best_step is None else self._name(self.best_step)
        if trainer.state.step == 0 or best is None or not self._saved(best):
            self.best = self.best_step = None  # of another run, or in another folder: not to be had here
        else:
            point_to(self.folder / "best", best)

    def on_log(self, trainer: "Trainer", record: Record) -> None:
        if self.monitor not in record:
            expect_monitor(self, self.monitor, record)
            return
        value = record[self.monitor]
        sign = 1.0 if lower_is_better(self.monitor) else -1.0
        if value == value and (self.best is None or sign * value < sign * self.best):
            self.best, self.best_step, self._new_best = value, trainer.state.step, True

    def on_step_end(self, trainer: "Trainer", *, epoch_ended: bool) -> None:
        # Evaluations come before this call, so that a checkpoint knows whether its own step is the best.
        fires = self.trigger.fires(trainer.state.step, trainer.state.epoch, epoch_ended=epoch_ended)
        if fires or self._new_best:
            self.save(trainer)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if trainer.state.step > 0 and not trainer.failed:
            self.save(trainer)

    def save(self, trainer: "Trainer") -> None:
        """Save the current step unless it is saved already, move the pointers, and drop what is over the limit."""
        name = self._name(trainer.state.step)
        if self._saved_now != (trainer.state.step, trainer.state.samples) or not self._saved(name):
            write_snapshot(self.folder / name, trainer.snapshot())
            self._saved_now = trainer.state.step, trainer.state.samples
        point_to(self.folder / "last", name)
        if self._new_best:
            point_to(self.folder / "best", name)
            self._new_best = False
        if self.save_total_limit is not None:
            kept = {name, (self.folder / "best").resolve().name}
            kept = {n for n in kept if self._saved(n)}
            others = [folder for folder in step_folders(self.folder) if folder.name not in kept]
            for folder in others[: max(0, len(others) + len(kept) - self.save_total_limit)]:
                shutil.rmtree(folder)

    def _name(self, step: int) -> str:
        return f"step-{step:08d}"

    def _saved(self, name: str) -> bool:
        return (self.folder / name / "state.json").exists()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step = state["best"], state["best_step"]
