"""Group norm of images, forward and backward: each image is normalised by itself, over groups of its channels."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Sizes, grid
from bp.benchmarks.bench_norm_batch import EPSILON, Images
from bp.ops import norm


@dataclass(frozen=True)
class Groups(Images):
    sampled = ("x", "dy")
    sizes = Sizes(
        cuda=grid(batch=[128], side=[56], channels=[64, 256], groups=[32]),
        cpu=grid(batch=[64], side=[32], channels=[16], groups=[4])
        + grid(batch=[64], side=[8], channels=[64], groups=[8]),
        quick=grid(batch=[8], side=[8], channels=[32], groups=[8]),
    )
    groups: int

    @property
    def size(self):
        """As PyTorch takes it: batch, channels, pixels, groups."""
        return self.batch, self.channels, self.side**2, self.groups


class GroupNorm(Groups):
    name = "group norm"

    def bp(self, x, gamma, beta):
        return lambda: norm.group_norm(x, gamma, beta, self.groups, EPSILON)[0]

    def numpy(self, x, gamma, beta):
        def group_norm():
            grouped = x.reshape(self.batch, self.side**2, self.groups, -1)
            centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
            variance = np.square(centred).mean(axis=(1, 3), keepdims=True)
            return (centred / np.sqrt(variance + EPSILON)).reshape(x.shape) * gamma + beta

        return group_norm

    def in_torch(self, x, gamma, beta):
        from torch.nn.functional import group_norm

        return lambda: group_norm(x, self.groups, gamma, beta, EPSILON).movedim(1, -1)


class GroupNormBackward(Groups):
    name = "group norm backward"

    def draw(self, draw):
        return super().draw(draw) | self.draw_gradients(draw)

    def nbytes(self, itemsize):
        return 3 * self.batch * self.side**2 * self.channels * itemsize

    def bp(self, x, gamma, beta, dy, dgamma, dbeta):
        _, mean, rstd = norm.group_norm(x, gamma, beta, self.groups, EPSILON)
        backward = norm.group_norm_backward
        return lambda: (backward(dy, x, gamma, mean, rstd, dgamma, dbeta, False), dgamma, dbeta)

    def in_torch(self, x, gamma, beta, dy, dgamma, dbeta):
        """On a GPU its kernels take no other order in memory than its own."""
        from torch.ops import aten

        if x.is_cuda:
            x, dy = x.contiguous(), dy.contiguous()
        _, mean, rstd = aten.native_group_norm(x, gamma, beta, *self.size, EPSILON)

        def backward():
            dx, dgamma, dbeta = aten.native_group_norm_backward(dy, x, mean, rstd, gamma, *self.size, [True] * 3)
            return dx.movedim(1, -1), dgamma, dbeta

        return backward
