"""Warmup: a rise of the learning rate in front of any schedule."""

from collections.abc import Mapping
from typing import Any, Self

from bp.errors import ConfigurationError
from bp.schedules.schedule import Schedule, warmup_factor
from bp.schedules.whole_run import Cosine, Polynomial


class Warmup(Schedule):
    """In front of any schedule: up to its start in a straight line over `warmup_steps`, then the schedule.

    Step 0 takes 1 / (warmup_steps + 1), so that no step is wasted on a learning rate of 0, and step `warmup_steps`
    is the first one of `schedule`, which gets the rest of the run.
    Source: Goyal et al., Accurate, Large Minibatch SGD (2017), section 2.2.
    """

    def __init__(self, schedule: Schedule, warmup_steps: int) -> None:
        self.expect(warmup_steps >= 0, "warmup_steps >= 0", warmup_steps)
        self.schedule = schedule
        self.warmup_steps = warmup_steps

    def setup(self, total_steps: int | None, base_lr: float) -> Self:
        self.schedule.setup(None if total_steps is None else max(1, total_steps - self.warmup_steps), base_lr)
        return self

    def factor(self, step: int) -> float:
        return warmup_factor(step, self.warmup_steps) * self.schedule.factor(max(0, step - self.warmup_steps))

    def observe(self, value: float) -> None:
        self.schedule.observe(value)

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.schedule.load_state_dict(state)


class WarmupCosine(Warmup):
    """`Warmup`, then `Cosine` down to min_lr. total_steps: with the warmup; None takes the run's."""

    def __init__(self, warmup_steps: int = 0, min_lr: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(Cosine(min_lr, _without_warmup(total_steps, warmup_steps)), warmup_steps)


class WarmupLinear(Warmup):
    """`Warmup`, then a straight line down to min_lr. total_steps: with the warmup; None takes the run's."""

    def __init__(self, warmup_steps: int = 0, min_lr: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(Polynomial(1.0, min_lr, _without_warmup(total_steps, warmup_steps)), warmup_steps)


def _without_warmup(total_steps: int | None, warmup_steps: int) -> int | None:
    if total_steps is not None and total_steps <= warmup_steps:
        raise ConfigurationError(f"expected total_steps above the warmup_steps {warmup_steps}, got {total_steps}")
    return total_steps if total_steps is None else total_steps - warmup_steps
