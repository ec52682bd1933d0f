"""Pooling: one number for each window of an image and channel, its maximum or its mean, and the gradients.

Output o of an axis looks at the input positions o stride - padding + tap dilation, tap = 0..kernel - 1; those outside
the image are padding. Axes: (N, H, W, C); kernel, stride, padding and dilation are pairs (height, width).
"""

from bp.errors import ConfigurationError, ShapeError
from bp.ops.array import Array, Shape
from bp.ops.checks import has_rank, has_shape
from bp.ops.operation import operation

Pair = tuple[int, int]


@operation
def max_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Array, Array]:
    """y = the largest of each window; returns (y, index), the tap of each winner: row * kernel width + column.

    The first of equal ones wins, padding counts as -inf and never wins, and NaN beats every number: a window with a NaN
    gives NaN. x: (N, H, W, C); y: (N, H', W', C); index: of the shape of y, uint8 where a window has at most 256
    taps, else uint16. Raises ShapeError where the window does not fit, ConfigurationError on sizes below 1, a padding
    of more than half a window, or more than 65536 taps.
    Source: Ranzato, Huang, Boureau, LeCun (2007).
    """
    _checked_output("max_pool2d", x, kernel, stride, padding, dilation)
    if kernel[0] * kernel[1] > 1 << 16:
        raise ConfigurationError(f"max_pool2d expected a kernel of at most 65536 elements, got {kernel}")


@operation
def max_pool2d_backward(
    dy: Array, index: Array, input_shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """dx = for each input element, the sum of dy over the windows in which it is the winner.

    The maximum is, near almost every x, the identity of its winner, so dy goes there whole; windows that overlap may
    share a winner, and their gradients add. dy, index: (N, H', W', C); returns dx of input_shape, (N, H, W, C).
    """
    has_shape("max_pool2d_backward", "dy", dy, index.shape)


@operation
def avg_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool) -> Array:
    """y = the mean of each window, padding counted as zeros; without count_include_pad, the mean of what is no padding.

    x: (N, H, W, C); y: (N, H', W', C). Raises ShapeError where the window does not fit, ConfigurationError on sizes
    below 1 or a padding of more than half a window. Source: LeCun et al., Gradient-Based Learning (1998), section II.
    """
    _checked_output("avg_pool2d", x, kernel, stride, padding, (1, 1))


@operation
def avg_pool2d_backward(
    dy: Array, input_shape: Shape, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> Array:
    """dx = for each input element, the sum of dy / count over the windows that hold it, where its weight is 1 / count.

    dy: (N, H', W', C); returns dx of input_shape, (N, H, W, C).
    """
    sizes = output_sizes("avg_pool2d_backward", input_shape, kernel, stride, padding, (1, 1))
    has_shape("avg_pool2d_backward", "dy", dy, (input_shape[0], *sizes, input_shape[3]))


@operation
def global_avg_pool2d(x: Array) -> Array:
    """y = the mean over all pixels: (N, H, W, C) -> (N, C).

    Raises ShapeError on another rank or an image without pixels.
    Source: Lin, Chen, Yan, Network in Network (2014), section 3.2.
    """
    has_rank("global_avg_pool2d", "x", x, 4, "(N, H, W, C)")
    if x.shape[1] * x.shape[2] == 0:
        raise ShapeError(f"global_avg_pool2d expected at least one pixel, got shape {x.shape}")


@operation
def global_avg_pool2d_backward(dy: Array, input_shape: Shape) -> Array:
    """dx = dy / (H W) at every pixel, its weight in the mean. dy: (N, C); returns dx of input_shape, (N, H, W, C)."""
    has_shape("global_avg_pool2d_backward", "dy", dy, (input_shape[0], input_shape[3]))


def output_sizes(
    name: str, input_shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, int]:
    """(H', W') for an input (..., H, W, C); raises as the operations do, in the name of `name`."""
    sizes = []
    for axis in (0, 1):
        size, span = input_shape[axis - 3], dilation[axis] * (kernel[axis] - 1) + 1
        if min(kernel[axis], stride[axis], dilation[axis]) < 1:
            raise ConfigurationError(
                f"{name} expected kernel, stride and dilation of at least 1, got {kernel}, {stride} and {dilation}"
            )
        if not 0 <= padding[axis] <= span // 2:
            raise ConfigurationError(
                f"{name} expected a padding from 0 to half a window, {span // 2}, along axis {axis} of the image, "
                f"got {padding[axis]}"
            )
        if size < 1 or size + 2 * padding[axis] < span:
            raise ShapeError(
                f"{name} expected images of at least {max(1, span - 2 * padding[axis])} along axis {axis} for a window "
                f"of {span} with padding {padding[axis]}, got shape {input_shape}"
            )
        sizes.append((size + 2 * padding[axis] - span) // stride[axis] + 1)
    return sizes[0], sizes[1]


def _checked_output(name: str, x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    has_rank(name, "x", x, 4, "(N, H, W, C)")
    output_sizes(name, x.shape, kernel, stride, padding, dilation)
