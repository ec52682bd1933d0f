"""Dropout forward and backward: bp draws its mask again in the backward, where others have kept it."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import control as block
from bp.ops import dropout

RATE = 0.125  # which 16 random bits carry out exactly, so that all scale by the same factor
SCALE = 1 / (1 - RATE)
CALL_SITE = 3


@dataclass(frozen=True)
class Masked(Benchmark):
    """What both have in common. x: what a mask is laid over; in the backward it is the gradient."""

    sampled = ("x",)
    axis = "n"
    sizes = Sizes(cuda=grid(n=[1 << 24, 1 << 28]), cpu=grid(n=[1 << 16, 1 << 19, 1 << 22]), quick=grid(n=[1 << 15]))
    n: int

    def draw(self, draw):
        control = np.zeros(block.SIZE)
        control[[block.FORWARD_COUNTER, block.SEED_LOW, block.SEED_HIGH]] = 2, 12345, 678
        return {"x": draw.normal(self.n), "control": draw.exactly(control)}

    def nbytes(self, itemsize):
        return 2 * self.n * itemsize

    def reference(self, x, control):
        """Where x is both ends of the whole, the elements of the second keep their places in it."""
        first, second = np.array_split(x, 2)
        return np.concatenate(
            [
                dropout.dropout(first, control, CALL_SITE, 0, RATE),
                dropout.dropout(second, control, CALL_SITE, self.n - len(second), RATE),
            ]
        )

    def expected_of_peer(self, y, x, control):
        """x by the mask that shows in y; nothing is right where that mask keeps too few or too many."""
        kept = y != 0
        chance = 6 * np.sqrt(RATE * (1 - RATE) / len(x))
        return SCALE * x * (kept if abs(kept.mean() - (1 - RATE)) < chance else np.nan)


class Dropout(Masked):
    name = "dropout"

    def bp(self, x, control):
        return lambda: dropout.dropout(x, control, CALL_SITE, 0, RATE)

    def numpy(self, x, control):
        generator = np.random.default_rng()
        return lambda: np.where(generator.random(self.n, np.float32) >= RATE, SCALE * x, 0)

    def torch(self, x, control):
        from torch.nn import functional

        return lambda: functional.dropout(x, RATE)


class DropoutBackward(Masked):
    name = "dropout backward"

    def bp(self, x, control):
        return lambda: dropout.dropout_backward(x, control, CALL_SITE, 0, RATE)

    def numpy(self, x, control):
        mask = np.random.default_rng().random(self.n, np.float32) >= RATE
        return lambda: x * mask * SCALE

    def torch(self, x, control):
        from torch.ops import aten

        _, mask = aten.native_dropout(x, RATE, True)
        return lambda: aten.native_dropout_backward(x, mask, SCALE)
