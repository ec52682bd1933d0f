"""Batch norm of images in training, forward and backward: each channel is normalised over the whole batch."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.benchmarks.bench_conv import nchw
from bp.ops import norm

MOMENTUM, EPSILON = 0.1, 1e-5


@dataclass(frozen=True)
class Images(Benchmark):
    """(batch, side, side, channels). torch: in channels_last, which is this; torch_nchw: in its own order."""

    sizes = Sizes(
        cuda=[
            {"batch": 128, "side": 56, "channels": 64},
            {"batch": 128, "side": 28, "channels": 512},
            {"batch": 128, "side": 7, "channels": 2048},
        ],
        cpu=grid(batch=[64], side=[32], channels=[16]) + grid(batch=[64], side=[8], channels=[64]),
        quick=grid(batch=[8], side=[8], channels=[32]),
    )
    batch: int
    side: int
    channels: int

    def draw(self, draw):
        x = draw.normal(self.batch, self.side, self.side, self.channels)
        return {"x": x, "gamma": draw.normal(self.channels), "beta": draw.normal(self.channels)}

    def draw_gradients(self, draw):
        dy = draw.normal(self.batch, self.side, self.side, self.channels)
        return {"dy": dy} | {name: draw.zeros(self.channels, wide=True) for name in ("dgamma", "dbeta")}

    def nbytes(self, itemsize):
        return 2 * self.batch * self.side**2 * self.channels * itemsize

    def length(self):
        return self.batch * self.side**2

    def torch(self, **arrays):
        return self.in_torch(**{name: a.movedim(-1, 1) if a.ndim == 4 else a for name, a in arrays.items()})

    def torch_nchw(self, **arrays):
        return self.torch(**{name: nchw(a) if a.ndim == 4 else a for name, a in arrays.items()})


class BatchNorm(Images):
    name = "batch norm"

    def draw(self, draw):
        statistics = {"mean": draw.normal(self.channels, wide=True), "var": draw.uniform(self.channels, wide=True)}
        return super().draw(draw) | statistics

    def bp(self, x, gamma, beta, mean, var):
        return lambda: norm.batch_norm(x, gamma, beta, mean, var, True, MOMENTUM, EPSILON)[0]

    def numpy(self, x, gamma, beta, mean, var):
        count = self.batch * self.side**2

        def batch_norm():
            centred = x - (of_batch := x.mean(axis=(0, 1, 2)))
            square = np.square(centred).mean(axis=(0, 1, 2))
            mean[...] += MOMENTUM * (of_batch - mean)
            var[...] += MOMENTUM * (square * count / (count - 1) - var)
            return centred / np.sqrt(square + EPSILON) * gamma + beta

        return batch_norm

    def in_torch(self, x, gamma, beta, mean, var):
        from torch.nn.functional import batch_norm

        gamma, beta = gamma.float(), beta.float()  # which stay so under autocast
        return lambda: batch_norm(x, mean, var, gamma, beta, True, MOMENTUM, EPSILON).movedim(1, -1)


class BatchNormBackward(Images):
    name = "batch norm backward"

    def draw(self, draw):
        return super().draw(draw) | self.draw_gradients(draw)

    def nbytes(self, itemsize):
        return 3 * self.batch * self.side**2 * self.channels * itemsize

    def bp(self, x, gamma, beta, dy, dgamma, dbeta):
        _, mean, rstd = norm.batch_norm(x, gamma, beta, None, None, True, MOMENTUM, EPSILON)
        backward = norm.batch_norm_backward
        return lambda: (backward(dy, x, gamma, mean, rstd, dgamma, dbeta, False, True), dgamma, dbeta)

    def in_torch(self, x, gamma, beta, dy, dgamma, dbeta):
        """Through what chooses between its own kernels and those of cuDNN."""
        from torch.ops import aten

        gamma, beta = gamma.float(), beta.float()  # which stay so under autocast
        forward = aten._batch_norm_impl_index(x, gamma, beta, None, None, True, MOMENTUM, EPSILON, True)
        _, mean, rstd, reserve, choice = forward
        given = (choice, x, dy, gamma, None, None, mean, rstd, True, EPSILON, [True] * 3, reserve)

        def backward():
            dx, dgamma, dbeta = aten._batch_norm_impl_index_backward(*given)
            return dx.movedim(1, -1), dgamma, dbeta

        return backward
