"""Random arrays of a benchmark: described once, drawn alike in every process from one seed, at any size."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bp.ops.array import Shape, known_dtype
from bp.ops.device import PRECISIONS

BLOCK = 1 << 22  # numbers that are drawn; a larger array repeats them


@dataclass(frozen=True)
class Drawn:
    """An array before any library has it. block: its first elements, flat, in its dtype, repeated to the whole."""

    block: np.ndarray
    shape: Shape

    @property
    def size(self) -> int:
        """Elements of the whole."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.size * self.block.itemsize

    def whole(self) -> np.ndarray:
        """All of it, in memory of its own."""
        return np.resize(self.block, self.shape)

    def ends(self, count: int, axis: int = 0) -> np.ndarray:
        """What lies at its first and its last `count` places along an axis: rows, unless another is named."""
        before, places, after = self.shape[:axis], self.shape[axis], self.shape[axis + 1 :]
        picked = np.r_[0 : min(count, places), max(places - count, 0) : places]
        rows = np.arange(math.prod(before))[:, None, None] * places + picked[:, None]
        flat = (rows * math.prod(after) + np.arange(math.prod(after))) % max(self.block.size, 1)
        return self.block[flat].reshape(*before, len(picked), *after)


class Draw:
    """Draws the arrays of one case: the same for the same seed and precision, in whichever process.

    `wide` arrays stay float32 where the precision has 16 bits, as master weights and gradients of parameters do.
    """

    def __init__(self, seed: int, precision: str) -> None:
        self._generator = np.random.default_rng(seed)
        self._dtype = known_dtype(PRECISIONS[precision])

    def normal(self, *shape: int, wide: bool = False, scale: float = 1.0) -> Drawn:
        """N(0, scale^2), rounded to the precision."""
        numbers = self._generator.standard_normal(min(math.prod(shape), BLOCK), np.float32) * np.float32(scale)
        return Drawn(numbers.astype(self._floats(wide)), shape)

    def uniform(self, *shape: int, wide: bool = False) -> Drawn:
        """From [0, 1)."""
        numbers = self._generator.random(min(math.prod(shape), BLOCK), np.float32)
        return Drawn(numbers.astype(self._floats(wide)), shape)

    def integers(self, end: int, *shape: int) -> Drawn:
        """int64 in 0..end-1."""
        return Drawn(self._generator.integers(0, end, min(math.prod(shape), BLOCK)), shape)

    def zeros(self, *shape: int, wide: bool = False) -> Drawn:
        """Such as a destination of gradients."""
        return Drawn(np.zeros(min(math.prod(shape), BLOCK), self._floats(wide)), shape)

    def exactly(self, array: np.ndarray) -> Drawn:
        """This array, in its own dtype."""
        return Drawn(array.reshape(-1), array.shape)

    def _floats(self, wide: bool) -> Any:
        return np.dtype(np.float32) if wide and self._dtype.itemsize < 4 else self._dtype
