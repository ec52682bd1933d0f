"""Pooling over windows of images, forward and backward: their maximum or their mean."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bp.bench import Benchmark, Sizes, grid
from bp.benchmarks.bench_conv import nchw
from bp.ops import pool

FUNCTIONS = ["max", "mean"]
HALVED = {"kernel": [2], "stride": [2], "padding": [0], "function": FUNCTIONS}  # windows that do not overlap
STEM = {"kernel": [3], "stride": [2], "padding": [1], "function": FUNCTIONS}  # as of ResNets on ImageNet


@dataclass(frozen=True)
class Windows(Benchmark):
    """Images (batch, side, side, channels). torch: in channels_last, which is this; torch_nchw: in its own order."""

    sampled = ("x", "dy")
    sizes = Sizes(
        cuda=grid(batch=[256], side=[112], channels=[64], **STEM)
        + grid(batch=[256], side=[56], channels=[256], **HALVED),
        cpu=grid(batch=[128], side=[28], channels=[32], **HALVED) + grid(batch=[16], side=[56], channels=[64], **STEM),
        quick=grid(batch=[4], side=[14], channels=[16], **HALVED | {"function": ["max"]})
        + grid(batch=[2], side=[15], channels=[16], **STEM | {"function": ["mean"]}),
    )
    batch: int
    side: int
    channels: int
    kernel: int
    stride: int
    padding: int
    function: str

    @property
    def out(self):
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1

    def nbytes(self, itemsize):
        """One array in, the other out; and a byte for each winner."""
        outputs, inputs = (self.batch * side * side * self.channels for side in (self.out, self.side))
        return (outputs + inputs) * itemsize + outputs * (self.function == "max")

    def length(self):
        return self.kernel**2

    def draw(self, draw):
        return {"x": draw.normal(self.batch, self.side, self.side, self.channels)}

    @property
    def window(self):
        """Kernel, stride and padding, along both axes."""
        return [(self.kernel,) * 2, (self.stride,) * 2, (self.padding,) * 2]

    def torch(self, **arrays):
        work = self.in_torch(**{name: array.movedim(-1, 1) for name, array in arrays.items()})
        return lambda: work().movedim(1, -1)

    def torch_nchw(self, **arrays):
        return self.torch(**{name: nchw(array) for name, array in arrays.items()})


class Pool(Windows):
    name = "pool"

    def bp(self, x):
        if self.function == "max":
            return lambda: pool.max_pool2d(x, *self.window, (1, 1))[0]
        return lambda: pool.avg_pool2d(x, *self.window, True)

    def numpy(self, x):
        edge = (self.padding, self.padding)
        fill = -np.inf if self.function == "max" else 0

        def of_windows():
            padded = np.pad(x, ((0, 0), edge, edge, (0, 0)), constant_values=fill)
            windows = sliding_window_view(padded, (self.kernel, self.kernel), (1, 2))
            return getattr(windows[:, :: self.stride, :: self.stride], self.function)((-2, -1))

        return of_windows

    def in_torch(self, x):
        from torch.nn.functional import avg_pool2d, max_pool2d

        function = max_pool2d if self.function == "max" else avg_pool2d
        return lambda: function(x, self.kernel, self.stride, self.padding)


class PoolBackward(Windows):
    name = "pool backward"

    def draw(self, draw):
        return super().draw(draw) | {"dy": draw.normal(self.batch, self.out, self.out, self.channels)}

    def bp(self, x, dy):
        if self.function == "max":
            _, index = pool.max_pool2d(x, *self.window, (1, 1))
            return lambda: pool.max_pool2d_backward(dy, index, x.shape, *self.window, (1, 1))
        return lambda: pool.avg_pool2d_backward(dy, x.shape, *self.window, True)

    def in_torch(self, x, dy):
        from torch.ops import aten

        if self.function == "mean":
            return lambda: aten.avg_pool2d_backward(dy, x, *self.window, False, True, None)
        _, index = aten.max_pool2d_with_indices(x, *self.window)
        return lambda: aten.max_pool2d_with_indices_backward(dy, x, *self.window, [1, 1], False, index)
