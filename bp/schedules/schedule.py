"""Schedule: the learning rate over a run, as a factor on the optimizer's base learning rate."""

from collections.abc import Mapping
from typing import Any, Self

from bp.errors import CheckpointError, ConfigurationError


class Schedule:
    """A function from the step about to be taken (0-based, optimizer steps) to a factor on the base learning rate.

    The Trainer calls `setup` once the length of the run is known, `factor` before every step, and `observe` with the
    validation loss after every evaluation. By hand: optimizer.lr = optimizer.base_lr * schedule.factor(step).
    A schedule of its own writes `factor`.
    """

    def setup(self, total_steps: int | None, base_lr: float) -> Self:
        """Learn the length of the run (None: unknown) and the learning rate that `factor` is of; start anew."""
        return self

    def factor(self, step: int) -> float:
        """The factor for the step with that number."""
        raise NotImplementedError(f"{type(self).__name__} has no factor")

    def observe(self, value: float) -> None:
        """Take in the validation metric of an evaluation; most schedules do not care."""

    def state_dict(self) -> dict[str, Any]:
        """What `factor` depends on beside the step, as plain JSON; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of a schedule made alike; raises CheckpointError where it is of another kind."""
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise CheckpointError(
                f"{type(self).__name__} expected a state of {sorted(expected)}, got one of {sorted(state)}"
            )

    def expect(self, holds: bool, what: str, got: Any) -> None:
        """Raise ConfigurationError naming this schedule unless a setting is as it has to be."""
        if not holds:
            raise ConfigurationError(f"{type(self).__name__} expected {what}, got {got}")


def floor_factor(schedule: Schedule, min_lr: float, base_lr: float) -> float:
    """min_lr as a factor; it may not lie above the base learning rate."""
    if min_lr > base_lr:
        raise ConfigurationError(
            f"{type(schedule).__name__} expected min_lr of at most the learning rate {base_lr}, got {min_lr}"
        )
    return min_lr / base_lr if base_lr else 0.0


def warmup_factor(step: int, warmup_steps: int) -> float:
    """The rise in a straight line: 1 / (warmup_steps + 1) at step 0, 1 from step `warmup_steps` on."""
    return min(1.0, (step + 1) / (warmup_steps + 1))
