"""Reductions of a matrix: sum, mean and largest, and the place of the largest in each row."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import reduce

AXES = {"all": None, "last": -1, "first": 0}
PART = 4096  # terms that are added one after the other where all are summed: further sums are of such sums


@dataclass(frozen=True)
class OfMatrix(Benchmark):
    """along: which axis, "all", "last" or "first"."""

    sizes = Sizes(
        cuda=grid(rows=[1 << 16], columns=[4096], along=list(AXES)),
        cpu=grid(rows=[128, 8192], columns=[1000], along=list(AXES)),
        quick=grid(rows=[1100], columns=[300], along=["first"]),
    )
    rows: int
    columns: int
    along: str

    @property
    def sampled(self):
        return ("x",) if self.along == "last" else ()

    def draw(self, draw):
        return {"x": draw.uniform(self.rows, self.columns)}

    def nbytes(self, itemsize):
        return self.rows * self.columns * itemsize

    def length(self):
        return {"all": PART, "last": self.columns, "first": self.rows}[self.along]

    def bp(self, x):
        operation, axis = getattr(reduce, self.name), AXES[self.along]
        return lambda: operation(x, axis)

    def numpy(self, x):
        return lambda: getattr(x, self.name)(AXES[self.along])


class Sum(OfMatrix):
    """In float32 where the elements have 16 bits."""

    name = "sum"

    def cupy(self, x):
        return lambda: getattr(x, self.name)(AXES[self.along], np.float32)

    def torch(self, x):
        import torch

        dtype = torch.promote_types(x.dtype, torch.float32)
        return lambda: getattr(x, self.name)(AXES[self.along], dtype=dtype)


class Mean(Sum):
    name = "mean"


class Max(OfMatrix):
    name = "max"

    def length(self):
        return 1  # nothing is added

    def cupy(self, x):
        return self.numpy(x)

    def torch(self, x):
        return lambda: x.amax(() if self.along == "all" else AXES[self.along])


class ArgMax(Max):
    """Which class each row of predictions names."""

    name = "argmax"
    sizes = Sizes(
        cuda=grid(rows=[8192], columns=[50_304], along=["last"]),
        cpu=grid(rows=[10_000], columns=[10, 1000], along=["last"]),
        quick=grid(rows=[1100], columns=[300], along=["last"]),
    )

    def bp(self, x):
        return lambda: reduce.argmax(x)

    def torch(self, x):
        return self.numpy(x)
