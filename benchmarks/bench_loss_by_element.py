"""Losses of single elements and their gradients: squared error and binary cross-entropy."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.benchmarks.bench_loss import mean_and_gradient
from bp.ops import loss


@dataclass(frozen=True)
class ByElement(Benchmark):
    sampled = ("x", "targets")
    sizes = Sizes(cuda=grid(n=[1 << 27]), cpu=grid(n=[1 << 10, 1 << 17, 1 << 22]), quick=grid(n=[1 << 15]))
    n: int

    def draw(self, draw):
        return {"x": draw.normal(self.n), "targets": draw.uniform(self.n)}

    def nbytes(self, itemsize):
        return 3 * self.n * itemsize  # the terms themselves need not be kept


class SquaredError(ByElement):
    name = "squared error"

    def bp(self, x, targets):
        return mean_and_gradient(loss.squared_error, self.n, x, targets)

    def numpy(self, x, targets):
        return lambda: (np.square(d := x - targets).mean(), d * np.float32(2 / self.n))

    def torch(self, x, targets):
        from torch.ops import aten

        one, mean = x.new_ones(()), 1
        return lambda: (aten.mse_loss(x, targets, mean), aten.mse_loss_backward(one, x, targets, mean))


class BinaryCrossEntropy(ByElement):
    """Of logits."""

    name = "binary cross-entropy"

    def bp(self, x, targets):
        return mean_and_gradient(loss.binary_cross_entropy, self.n, x, targets, [None])

    def numpy(self, x, targets):
        def work():
            small = np.exp(-np.abs(x))
            mean = (np.maximum(x, 0) - x * targets + np.log1p(small)).mean()
            return mean, (np.where(x > 0, 1, small) / (1 + small) - targets) / np.float32(self.n)

        return work

    def torch(self, x, targets):
        from torch.nn.functional import binary_cross_entropy_with_logits

        return lambda: (binary_cross_entropy_with_logits(x, targets), x.sigmoid().sub_(targets).div_(self.n))
