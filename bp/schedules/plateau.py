"""ReduceOnPlateau: lowers the learning rate when the validation metric stops improving."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from bp.schedules.schedule import Schedule, floor_factor


class ReduceOnPlateau(Schedule):
    """Times `factor` whenever the validation metric has not improved for more than `patience` evaluations.

    mode: whether "min" or "max" is better. threshold: the least improvement that counts, relative to the best value
    ("rel") or not ("abs"). cooldown: evaluations after a reduction in which none is counted. min_lr: absolute.
    A metric that is NaN is no improvement.
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        mode: Literal["min", "max"] = "min",
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        self.expect(0 < factor < 1, "factor in (0, 1)", factor)
        self.expect(patience >= 0, "patience >= 0", patience)
        self.expect(mode in ("min", "max"), "mode 'min' or 'max'", repr(mode))
        self.expect(threshold >= 0, "threshold >= 0", threshold)
        self.expect(threshold_mode in ("rel", "abs"), "threshold_mode 'rel' or 'abs'", repr(threshold_mode))
        self.expect(cooldown >= 0, "cooldown >= 0", cooldown)
        self.expect(0 <= min_lr < math.inf, "a finite min_lr >= 0", min_lr)
        self.reduction = factor
        self.patience = patience
        self.mode = mode
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.min_lr = min_lr
        self._floor = 0.0
        self._start()

    def setup(self, total_steps: int | None, base_lr: float) -> Self:
        self._floor = floor_factor(self, self.min_lr, base_lr)
        self._start()
        return self

    def _start(self) -> None:
        self._current = 1.0
        self._best: float | None = None
        self._bad = 0
        self._cooling = 0

    def factor(self, step: int) -> float:
        return self._current

    def observe(self, value: float) -> None:
        if self._improves(value):
            self._best = value
            self._bad = 0
        else:
            self._bad += 1
        if self._cooling > 0:
            self._cooling -= 1
            self._bad = 0
        if self._bad > self.patience:
            self._current = max(self._current * self.reduction, self._floor)
            self._cooling = self.cooldown
            self._bad = 0

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return not math.isnan(value)
        margin = self.threshold * (abs(self._best) if self.threshold_mode == "rel" else 1.0)
        return value < self._best - margin if self.mode == "min" else value > self._best + margin

    def state_dict(self) -> dict[str, Any]:
        return {"current": self._current, "best": self._best, "bad": self._bad, "cooling": self._cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._current, self._best = state["current"], state["best"]
        self._bad, self._cooling = state["bad"], state["cooling"]
