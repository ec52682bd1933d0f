"""Softmax and its logarithm over the rows of a matrix, forward and backward."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import activation

FUNCTIONS = ["softmax", "log_softmax"]


@dataclass(frozen=True)
class OfRows(Benchmark):
    sampled = ("x", "dy", "y")
    sizes = Sizes(
        cuda=grid(rows=[8192], columns=[1024, 50304], function=FUNCTIONS),
        cpu=grid(rows=[128, 16384], columns=[10], function=FUNCTIONS)
        + grid(rows=[4096], columns=[1000], function=FUNCTIONS),
        quick=grid(rows=[64], columns=[512], function=FUNCTIONS[:1]),
    )
    rows: int
    columns: int
    function: str

    def length(self):
        return self.columns


class Softmax(OfRows):
    name = "softmax"

    def draw(self, draw):
        return {"x": draw.normal(self.rows, self.columns)}

    def nbytes(self, itemsize):
        return 2 * self.rows * self.columns * itemsize

    def bp(self, x):
        operation = getattr(activation, self.function)
        return lambda: operation(x)

    def numpy(self, x):
        def softmax():
            y = np.exp(x - x.max(axis=1, keepdims=True))
            return y / y.sum(axis=1, keepdims=True)

        def log_softmax():
            y = x - x.max(axis=1, keepdims=True)
            return y - np.log(np.exp(y).sum(axis=1, keepdims=True))

        return softmax if self.function == "softmax" else log_softmax

    def cupy(self, x):
        return self.numpy(x)  # NumPy's functions compute on a GPU where they are given arrays of CuPy

    def torch(self, x):
        return lambda: getattr(x, self.function)(1)


class SoftmaxBackward(OfRows):
    name = "softmax backward"

    def draw(self, draw):
        return {"dy": draw.normal(self.rows, self.columns), "y": draw.normal(self.rows, self.columns)}

    def nbytes(self, itemsize):
        return 3 * self.rows * self.columns * itemsize

    def bp(self, dy, y):
        operation = getattr(activation, f"{self.function}_backward")
        return lambda: operation(dy, y)

    def numpy(self, dy, y):
        if self.function == "softmax":
            return lambda: y * (dy - (dy * y).sum(axis=1, keepdims=True))
        return lambda: dy - np.exp(y) * dy.sum(axis=1, keepdims=True)

    def cupy(self, dy, y):
        return self.numpy(dy, y)

    def torch(self, dy, y):
        from torch.ops import aten

        gradient = getattr(aten, f"_{self.function}_backward_data")
        return lambda: gradient(dy, y, 1, dy.dtype)
