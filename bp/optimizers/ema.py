"""ExponentialMovingAverage: averaged weights, which often generalise better than the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

import bp.ops.optimizer as ops
from bp.errors import BuildError, ConfigurationError
from bp.layers.layer import Layer
from bp.optimizers.optimizer import check_names_and_shapes


class ExponentialMovingAverage:
    """averages = d averages + (1 - d) weights after each step, in the arena's layout.

    model: built; the averages start as its weights. decay d: near 1; the average looks back some 1 / (1 - d) steps.
    warmup: d = min(decay, (1 + t) / (10 + t)) at update t, so that the random start is forgotten at first.

        average = bp.ExponentialMovingAverage(model)
        ...optimizer.step(); average.update()...
        with average.applied():
            evaluate(model)

    Trainable parameters only: buffers such as the running statistics of batch normalisation are averages already.
    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992), with exponential weights.
    """

    def __init__(self, model: Layer, decay: float = 0.999, warmup: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ConfigurationError(f"ExponentialMovingAverage expected decay in [0, 1), got {decay}")
        self.arena = model.arena
        self.decay = decay
        self.warmup = warmup
        self.averages = self.arena.zeros_like()
        self.arena.device.copy(self.averages, self.arena.values)
        self._updates = self.arena.device.zeros((1,), np.float64)
        self._applied = False

    @property
    def updates(self) -> int:
        """How many times `update` was called."""
        return int(self.arena.device.to_host(self._updates)[0])

    def update(self) -> None:
        """Take in the weights as they are now; to be called after each optimizer step."""
        self._expect_not_applied("update")
        ops.moving_average(self.averages, self.arena.values, self._updates, self.decay, self.warmup)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this block the model has the averaged weights; afterwards, bit for bit, those it had before."""
        self._expect_not_applied("applied")
        copy, low_precision = self.arena.device.copy, self.arena.low_precision
        kept = self.arena.zeros_like()
        copy(kept, self.arena.values)
        if low_precision is not None:  # rounded stochastically, it does not come from the values again
            kept_low = self.arena.device.zeros(low_precision.shape, low_precision.dtype)
            copy(kept_low, low_precision)
        copy(self.arena.values, self.averages)
        self.arena.refresh_low_precision()
        self._applied = True
        try:
            yield
        finally:
            copy(self.arena.values, kept)
            if low_precision is not None:
                copy(low_precision, kept_low)
            self._applied = False

    def state_dict(self) -> dict[str, np.ndarray]:
        """Host copies of the averages as "average/0.weight", and "updates" (shape (1,), float64)."""
        device = self.arena.device
        state = {"updates": np.array(device.to_host(self._updates))}
        for parameter in self.arena.parameters:
            array = device.to_host(self.arena.view(self.averages, parameter))
            state[f"average/{parameter.name}"] = np.array(array)
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over a `state_dict`, by name; raises CheckpointError before anything changes where it does not fit."""
        self._expect_not_applied("load_state_dict")
        shapes = {f"average/{parameter.name}": parameter.shape or () for parameter in self.arena.parameters}
        check_names_and_shapes("ExponentialMovingAverage", state, {**shapes, "updates": (1,)})
        device = self.arena.device
        for parameter in self.arena.parameters:
            average = self.arena.view(self.averages, parameter)
            device.copy(average, np.asarray(state[f"average/{parameter.name}"], average.dtype))
        device.copy(self._updates, np.asarray(state["updates"], np.float64))

    def _expect_not_applied(self, what: str) -> None:
        if self._applied:
            raise BuildError(f"ExponentialMovingAverage: {what}() inside applied(), where the weights are the averages")
