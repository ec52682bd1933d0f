"""Callback: the base of what hangs on the training loop."""

from typing import TYPE_CHECKING, Any

from bp.history import Record

if TYPE_CHECKING:
    from bp.trainer import Trainer


class Callback:
    """Methods that the Trainer calls at fixed points; a callback overrides those it needs.

    `trainer.state` has the step and epoch, `trainer.history` the figures; setting `trainer.should_stop` ends the run
    after the current step. Callbacks run in the order given.
    """

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Before the first step (after a resume: before the first step that is left)."""

    def on_step_end(self, trainer: "Trainer", *, epoch_ended: bool) -> None:
        """After every optimizer step; `epoch_ended` says whether it was the last of its epoch."""

    def on_log(self, trainer: "Trainer", record: Record) -> None:
        """With every record that goes into the history: a log step or an evaluation."""

    def on_message(self, trainer: "Trainer", text: str) -> None:
        """With what a person should know about the run, in a sentence."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """After the last step; also when the run was stopped early or failed."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume, as plain JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
