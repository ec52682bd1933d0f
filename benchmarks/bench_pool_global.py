"""The mean of every channel over a whole image, as before the last layer of a ResNet, and its gradient."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import pool


@dataclass(frozen=True)
class Whole(Benchmark):
    """Images (batch, side, side, channels). torch: in this order; torch_nchw: in the one that PyTorch prefers."""

    sampled = ("x", "dy")
    sizes = Sizes(
        cuda=grid(batch=[1024], side=[7], channels=[2048]),
        cpu=grid(batch=[64], side=[8], channels=[64]) + grid(batch=[64], side=[7], channels=[512]),
        quick=grid(batch=[8], side=[7], channels=[64]),
    )
    batch: int
    side: int
    channels: int

    def nbytes(self, itemsize):
        return self.batch * (self.side**2 + 1) * self.channels * itemsize

    def length(self):
        return self.side**2


class GlobalPool(Whole):
    name = "global pool"

    def draw(self, draw):
        return {"x": draw.normal(self.batch, self.side, self.side, self.channels)}

    def bp(self, x):
        return lambda: pool.global_avg_pool2d(x)

    def numpy(self, x):
        return lambda: x.mean(axis=(1, 2))

    def cupy(self, x):
        return lambda: x.mean(axis=(1, 2))

    def torch(self, x):
        return lambda: x.mean((1, 2))

    def torch_nchw(self, x):
        x = x.movedim(-1, 1).contiguous()
        return lambda: x.mean((2, 3))


class GlobalPoolBackward(Whole):
    name = "global pool backward"

    def draw(self, draw):
        return {"dy": draw.normal(self.batch, self.channels)}

    def bp(self, dy):
        return lambda: pool.global_avg_pool2d_backward(dy, (len(dy), self.side, self.side, self.channels))

    def numpy(self, dy):
        shape = (self.batch, self.side, self.side, self.channels)
        return lambda: np.broadcast_to((dy / self.side**2)[:, None, None], shape).copy()

    def torch(self, dy):
        shape = (self.batch, self.side, self.side, self.channels)
        return lambda: (dy / self.side**2)[:, None, None].expand(shape).contiguous()

    def torch_nchw(self, dy):
        shape = (self.batch, self.channels, self.side, self.side)
        return lambda: (dy / self.side**2)[:, :, None, None].expand(shape).contiguous().movedim(1, -1)
