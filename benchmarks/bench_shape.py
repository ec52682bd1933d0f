"""Shape: arrays joined, cut and turned, which moves bytes and computes nothing."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import shape


@dataclass(frozen=True)
class Parts(Benchmark):
    """Matrices side by side: the whole is (rows, parts * columns)."""

    sampled = ("a", "b", "x")
    sizes = Sizes(
        cuda=grid(rows=[1 << 17], columns=[64, 1024]),
        cpu=grid(rows=[128], columns=[256]) + grid(rows=[25088], columns=[32]),
        quick=grid(rows=[100], columns=[96]),
    )
    rows: int
    columns: int


class Concatenate(Parts):
    """Two, as of a skip connection."""

    name = "concatenate"

    def draw(self, draw):
        return {"a": draw.normal(self.rows, self.columns), "b": draw.normal(self.rows, self.columns)}

    def nbytes(self, itemsize):
        return 4 * self.rows * self.columns * itemsize

    def bp(self, a, b):
        return lambda: shape.concatenate(a, [b], 1)

    def numpy(self, a, b):
        return lambda: np.concatenate((a, b), 1)

    def cupy(self, a, b):
        return self.numpy(a, b)  # NumPy hands its arrays on to it

    def torch(self, a, b):
        from torch import cat

        return lambda: cat((a, b), 1)


class Split(Parts):
    """Three, as of queries, keys and values; each in memory of its own."""

    name = "split"

    def draw(self, draw):
        return {"x": draw.normal(self.rows, 3 * self.columns)}

    def nbytes(self, itemsize):
        return 6 * self.rows * self.columns * itemsize

    def bp(self, x):
        return lambda: shape.split(x, [self.columns] * 3, 1)

    def numpy(self, x):
        return lambda: tuple(x[:, i * self.columns : (i + 1) * self.columns].copy() for i in range(3))

    cupy = numpy

    def torch(self, x):
        return lambda: tuple(part.contiguous() for part in x.split(self.columns, 1))


@dataclass(frozen=True)
class Transpose(Benchmark):
    """Images (n, h, w, c) into another order: "nchw" for a library that wants it so, "nwhc" as of attention's heads."""

    name = "transpose"
    sampled = ("x",)
    sizes = Sizes(
        cuda=grid(n=[256], height=[56], width=[56], channels=[256], order=["nchw", "nwhc"])
        + grid(n=[64], height=[2048], width=[16], channels=[64], order=["nwhc"]),
        cpu=grid(n=[128], height=[28], width=[28], channels=[32], order=["nchw", "nwhc"]),
        quick=grid(n=[8], height=[10], width=[12], channels=[32], order=["nchw", "nwhc"]),
    )
    n: int
    height: int
    width: int
    channels: int
    order: str

    @property
    def axes(self):
        return tuple("nhwc".index(axis) for axis in self.order)

    def draw(self, draw):
        return {"x": draw.normal(self.n, self.height, self.width, self.channels)}

    def nbytes(self, itemsize):
        return 2 * self.n * self.height * self.width * self.channels * itemsize

    def bp(self, x):
        return lambda: shape.transpose(x, self.axes)

    def numpy(self, x):
        return lambda: x.transpose(self.axes).copy()

    cupy = numpy

    def torch(self, x):
        return lambda: x.permute(self.axes).contiguous()
