"""Pooling layers: each window of an image becomes one number by channel, (N, H, W, C) -> (N, H', W', C)."""

import bp.ops.pool as ops
from bp.errors import ConfigurationError, ShapeError
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.ops.array import Array, Shape
from bp.ops.pool import Pair


class MaxPool2d(Layer):
    """The largest of each window; backward gives dy to the winner (see `bp.ops.pool.max_pool2d`).

    kernel_size, stride (None: the kernel size), padding (with -inf, at most half a window), dilation: one number, or
    a pair (height, width). H' = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1, and W' likewise.
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
    ) -> None:
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else _pair("stride", stride)
        self.padding = _pair("padding", padding)
        self.dilation = _pair("dilation", dilation)

    @property
    def window(self) -> tuple[Pair, Pair, Pair, Pair]:
        """(kernel, stride, padding, dilation)."""
        return self.kernel_size, self.stride, self.padding, self.dilation

    def declare(self, input_shape: Shape) -> Shape:
        return (*ops.output_sizes("max_pool2d", _image(input_shape), *self.window), input_shape[2])

    def forward(self, x: Array, ctx: Context) -> Array:
        y, index = ops.max_pool2d(x, *self.window)
        ctx.save(self, index, x.shape)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        index, input_shape = ctx.take(self)
        return ops.max_pool2d_backward(dy, index, input_shape, *self.window)


class AvgPool2d(Layer):
    """The mean of each window; backward gives every element of the window an equal share of dy.

    kernel_size, stride (None: the kernel size), padding (with zeros, at most half a window): one number, or a pair
    (height, width). count_include_pad: the zeros of the padding count in the mean. H' and W' as of `MaxPool2d`.
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        count_include_pad: bool = True,
    ) -> None:
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else _pair("stride", stride)
        self.padding = _pair("padding", padding)
        self.count_include_pad = count_include_pad

    @property
    def window(self) -> tuple[Pair, Pair, Pair]:
        """(kernel, stride, padding)."""
        return self.kernel_size, self.stride, self.padding

    def declare(self, input_shape: Shape) -> Shape:
        return (*ops.output_sizes("avg_pool2d", _image(input_shape), *self.window, (1, 1)), input_shape[2])

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.avg_pool2d(x, *self.window, self.count_include_pad)
        ctx.save(self, x.shape)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (input_shape,) = ctx.take(self)
        return ops.avg_pool2d_backward(dy, input_shape, *self.window, self.count_include_pad)


class GlobalAvgPool2d(Layer):
    """The mean over all pixels: (N, H, W, C) -> (N, C); backward gives every pixel an equal share of dy."""

    def declare(self, input_shape: Shape) -> Shape:
        return _image(input_shape)[2:]

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.global_avg_pool2d(x)
        ctx.save(self, x.shape)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (input_shape,) = ctx.take(self)
        return ops.global_avg_pool2d_backward(dy, input_shape)


def _image(input_shape: Shape) -> Shape:
    """The shape of a sample, checked to be (H, W, C)."""
    if len(input_shape) != 3:
        raise ShapeError(f"expected image samples (H, W, C), got shape {input_shape}")
    return input_shape


def _pair(name: str, size: int | Pair) -> Pair:
    """(height, width) from one number for both, or from a pair."""
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, (tuple, list)) or [type(number) for number in pair] != [int, int]:
        raise ConfigurationError(f"expected {name} as an integer or a pair of them, got {size!r}")
    return pair[0], pair[1]
