"""Schedules that know the step alone: constant, in drops, exponential, cosines that start again."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from bp.schedules.schedule import Schedule, floor_factor


class Constant(Schedule):
    """Factor 1 throughout."""

    def factor(self, step: int) -> float:
        return 1.0


class Step(Schedule):
    """gamma^(step // step_size): a drop every `step_size` steps."""

    def __init__(self, step_size: int, gamma: float = 0.1) -> None:
        self.expect(step_size >= 1, "step_size of at least 1", step_size)
        self.expect(gamma > 0, "gamma > 0", gamma)
        self.step_size = step_size
        self.gamma = gamma

    def factor(self, step: int) -> float:
        return float(self.gamma ** (step // self.step_size))


class MultiStep(Schedule):
    """gamma^(number of milestones reached): a drop at each step in `milestones`."""

    def __init__(self, milestones: Sequence[int], gamma: float = 0.1) -> None:
        increasing = all(a < b for a, b in pairwise(milestones))
        self.expect(increasing and all(m >= 1 for m in milestones), "increasing milestones from 1 on", milestones)
        self.expect(gamma > 0, "gamma > 0", gamma)
        self.milestones = tuple(milestones)
        self.gamma = gamma

    def factor(self, step: int) -> float:
        return float(self.gamma ** sum(step >= milestone for milestone in self.milestones))


class Exponential(Schedule):
    """gamma^step."""

    def __init__(self, gamma: float) -> None:
        self.expect(gamma > 0, "gamma > 0", gamma)
        self.gamma = gamma

    def factor(self, step: int) -> float:
        return float(self.gamma**step)


class CosineWithRestarts(Schedule):
    """Half a cosine from 1 down to min_lr over T_0 steps, then again over T_0 * T_mult, and so on.

    Source: Loshchilov and Hutter, SGDR (2017).
    """

    def __init__(self, T_0: int, T_mult: int = 1, min_lr: float = 0.0) -> None:
        self.expect(T_0 >= 1, "T_0 of at least 1", T_0)
        self.expect(T_mult >= 1, "T_mult of at least 1", T_mult)
        self.expect(0 <= min_lr < math.inf, "a finite min_lr >= 0", min_lr)
        self.T_0 = T_0
        self.T_mult = T_mult
        self.min_lr = min_lr
        self._floor = 0.0

    def setup(self, total_steps: int | None, base_lr: float) -> Self:
        self._floor = floor_factor(self, self.min_lr, base_lr)
        return self

    def factor(self, step: int) -> float:
        length = self.T_0
        if self.T_mult == 1:
            step %= length
        while step >= length:
            step -= length
            length *= self.T_mult
        return self._floor + (1.0 - self._floor) * (1.0 + math.cos(math.pi * step / length)) / 2.0
