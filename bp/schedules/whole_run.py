"""Schedules over the length of the run: polynomial, linear, cosine, one cycle, warmup-stable-decay."""

import math
from typing import Self

from bp.errors import ConfigurationError
from bp.schedules.schedule import Schedule, floor_factor, warmup_factor


class WholeRun(Schedule):
    """Base of the schedules that go from 1 down over the run and stay at the end value beyond it.

    total_steps: their length; None takes that of the run. min_lr: the learning rate at the end, absolute.
    """

    def __init__(self, total_steps: int | None, min_lr: float) -> None:
        self.expect(total_steps is None or total_steps >= 1, "total_steps of at least 1", total_steps)
        self.expect(0 <= min_lr < math.inf, "a finite min_lr >= 0", min_lr)
        self.total_steps = total_steps
        self.min_lr = min_lr
        self._length: int | None = None
        self._floor = 0.0

    def setup(self, total_steps: int | None, base_lr: float) -> Self:
        length = total_steps if self.total_steps is None else self.total_steps
        if length is None:
            raise ConfigurationError(f"{type(self).__name__} expected total_steps: the length of the run is not known")
        self.expect(length >= 1, "a run of at least 1 step", length)
        self._floor = floor_factor(self, self.min_lr, base_lr)
        self._length = length
        return self

    @property
    def length(self) -> int:
        """Steps from start to end; raises ConfigurationError before `setup`."""
        if self._length is None:
            raise ConfigurationError(f"{type(self).__name__}: call schedule.setup(total_steps, base_lr) first")
        return self._length

    def progress(self, step: int) -> float:
        """The part of the way that is done, in [0, 1]."""
        return min(step, self.length) / self.length

    def between(self, height: float) -> float:
        """The factor that is `height` of the way from min_lr up to the base learning rate."""
        return self._floor + (1.0 - self._floor) * height


class Polynomial(WholeRun):
    """(1 - step / total_steps)^power, from 1 down to min_lr."""

    def __init__(self, power: float = 1.0, min_lr: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(total_steps, min_lr)
        self.expect(power > 0, "power > 0", power)
        self.power = power

    def factor(self, step: int) -> float:
        return self.between((1.0 - self.progress(step)) ** self.power)


class Linear(WholeRun):
    """From start_factor to end_factor in a straight line (bp.schedules.Linear: bp.Linear is the layer)."""

    def __init__(self, start_factor: float = 1.0, end_factor: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(total_steps, 0.0)
        self.expect(start_factor >= 0, "start_factor >= 0", start_factor)
        self.expect(end_factor >= 0, "end_factor >= 0", end_factor)
        self.start_factor = start_factor
        self.end_factor = end_factor

    def factor(self, step: int) -> float:
        return self.start_factor + (self.end_factor - self.start_factor) * self.progress(step)


class Cosine(WholeRun):
    """Half a cosine, (1 + cos(pi step / total_steps)) / 2, from 1 down to min_lr.

    Source: Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts (2017), without restarts.
    """

    def __init__(self, min_lr: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(total_steps, min_lr)

    def factor(self, step: int) -> float:
        return self.between((1.0 + math.cos(math.pi * self.progress(step))) / 2.0)


class OneCycle(WholeRun):
    """Up from 1 / div_factor to 1 over the first `pct_start` of the run, then down to almost nothing, along cosines.

    The base learning rate is the highest one; the last is 1 / (div_factor final_div_factor) of it.
    Source: Smith and Topin, Super-Convergence (2018), in PyTorch's two-phase form, learning rate only.
    """

    def __init__(
        self,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        total_steps: int | None = None,
    ) -> None:
        super().__init__(total_steps, 0.0)
        self.expect(0 <= pct_start <= 1, "pct_start in [0, 1]", pct_start)
        self.expect(div_factor > 0, "div_factor > 0", div_factor)
        self.expect(final_div_factor > 0, "final_div_factor > 0", final_div_factor)
        self.pct_start = pct_start
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor

    def factor(self, step: int) -> float:
        first, last = 1.0 / self.div_factor, 1.0 / (self.div_factor * self.final_div_factor)
        end = self.length - 1
        top = self.pct_start * self.length - 1
        step = min(step, end)
        if step <= top:
            return _cosine_between(first, 1.0, step / top if top > 0 else 1.0)
        return _cosine_between(1.0, last, (step - top) / (end - top))


class WarmupStableDecay(WholeRun):
    """Up to 1 over `warmup_steps`, flat, then down to min_lr in a straight line over the last `decay_steps`.

    A run can be prolonged from any point of the flat part. In a run too short for both, the lower of the two lines
    counts. Source: Hu et al., MiniCPM (2024), with linear decay.
    """

    def __init__(
        self, warmup_steps: int, decay_steps: int, min_lr: float = 0.0, total_steps: int | None = None
    ) -> None:
        super().__init__(total_steps, min_lr)
        self.expect(warmup_steps >= 0, "warmup_steps >= 0", warmup_steps)
        self.expect(decay_steps >= 0, "decay_steps >= 0", decay_steps)
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps

    def factor(self, step: int) -> float:
        left = self.length - min(step, self.length)
        height = left / self.decay_steps if left < self.decay_steps else 1.0
        return min(warmup_factor(step, self.warmup_steps), self.between(height))


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * progress))
