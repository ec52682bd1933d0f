"""Pooling on the CUDA device: a thread for a few channels of a window, or of an input pixel on the way back."""

import numpy as np

from bp.cuda.device import empty
from bp.cuda.elements import channel_groups, lanes_for
from bp.cuda.kernel import FLOATS, THREADS, Kernel, Source, blocks
from bp.ops.array import Array, Shape
from bp.ops.pool import Pair, output_sizes

_max, _avg, _global = (Source(f"pool_{name}", T=FLOATS) for name in ("max", "avg", "global"))
_FLOPS = "images * out_height * out_width * channels * kernel_height * kernel_width"


def _windows(source: Source, name: str, index_bytes: int = 0) -> Kernel:
    moved = f"images * channels * (height * width * T + out_height * out_width * (T + {index_bytes}))"
    return source.kernel(name, flops=_FLOPS, bytes=moved, streaming=True)


# By the bytes of an index.
_max_forward = {1: _windows(_max, "max_pool_forward_8", 1), 2: _windows(_max, "max_pool_forward_16", 2)}
_max_backward = {1: _windows(_max, "max_pool_backward_8", 1), 2: _windows(_max, "max_pool_backward_16", 2)}
_avg_forward, _avg_backward = _windows(_avg, "avg_pool_forward"), _windows(_avg, "avg_pool_backward")
_mean_of_pixels = _global.kernel(
    "mean_of_pixels", flops="images * pixels * channels", bytes="images * (pixels + 1) * channels * T", streaming=True
)
_sums_of_chunks = _global.kernel(
    "sums_of_chunks",
    flops="images * pixels * channels",
    bytes="images * channels * (pixels * T + (pixels + chunk - 1) // chunk * 4)",
    streaming=True,
)
_mean_of_sums = _global.kernel(
    "mean_of_sums", flops="images * chunks * channels", bytes="images * channels * (chunks * 4 + T)", streaming=True
)
_spread_over_pixels = _global.kernel(
    "spread_over_pixels",
    flops="images * pixels * channels",
    bytes="images * (pixels + 1) * channels * T",
    streaming=True,
)


def max_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Array, Array]:
    sizes = output_sizes("max_pool2d", x.shape, kernel, stride, padding, dilation)
    shape = (x.shape[0], *sizes, x.shape[3])
    y, index = empty(x, shape), empty(x, shape, np.uint8 if kernel[0] * kernel[1] <= 1 << 8 else np.uint16)
    forward = _max_forward[index.dtype.itemsize]
    forward(_blocks(y), x, y, index, *x.shape, *sizes, *kernel, *stride, *padding, *dilation)
    return y, index


def max_pool2d_backward(
    dy: Array, index: Array, input_shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    dx = empty(dy, input_shape)
    backward = _max_backward[index.dtype.itemsize]
    sizes = dy.shape[1:3]
    backward(_blocks(dx), dy, index, dx, *input_shape, *sizes, *kernel, *stride, *padding, *dilation)
    return dx


def avg_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool) -> Array:
    sizes = output_sizes("avg_pool2d", x.shape, kernel, stride, padding, (1, 1))
    y = empty(x, (x.shape[0], *sizes, x.shape[3]))
    _avg_forward(_blocks(y), x, y, *x.shape, *sizes, *kernel, *stride, *padding, count_include_pad)
    return y


def avg_pool2d_backward(
    dy: Array, input_shape: Shape, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> Array:
    dx = empty(dy, input_shape)
    sizes = dy.shape[1:3]
    _avg_backward(_blocks(dx), dy, dx, *input_shape, *sizes, *kernel, *stride, *padding, count_include_pad)
    return dx


def global_avg_pool2d(x: Array) -> Array:
    images, height, width, channels = x.shape
    pixels = height * width
    y = empty(x, (images, channels))
    if not y.size:
        return y
    groups = channel_groups(channels, x.dtype.itemsize)
    lanes = lanes_for(groups)
    tasks, rows = images * -(-groups // lanes), THREADS // lanes
    chunk = _chunk(pixels, tasks, rows)
    if chunk >= pixels:
        _mean_of_pixels(min(tasks, _MAX_TASKS), x, y, images, pixels, channels, lanes)
        return y
    chunks = -(-pixels // chunk)
    sums = empty(x, (images, chunks, channels), np.float32)
    _sums_of_chunks(min(tasks * chunks, _MAX_TASKS), x, sums, images, pixels, channels, chunk, lanes)
    _mean_of_sums(min(tasks, _MAX_TASKS), sums, y, images, pixels, channels, chunks, lanes)
    return y


def global_avg_pool2d_backward(dy: Array, input_shape: Shape) -> Array:
    images, height, width, channels = input_shape
    dx = empty(dy, input_shape)
    _spread_over_pixels(_blocks(dx), dy, dx, images, height * width, channels)
    return dx


_MAX_TASKS = 1 << 20  # blocks of a launch; where there are more tasks, a block takes several
_ENOUGH_TASKS = 1024  # blocks that keep any GPU busy


def _chunk(pixels: int, tasks: int, rows: int) -> int:
    """Pixels of a block: so many that there are enough blocks, within 32 and 128 a thread."""
    wanted = -(-pixels * tasks // _ENOUGH_TASKS)
    return max(32 * rows, min(128 * rows, wanted))


def _blocks(x: Array) -> int:
    """Blocks of a grid-stride loop over the groups of channels of each pixel of x."""
    return blocks(x.size // x.shape[-1] * channel_groups(x.shape[-1], x.dtype.itemsize)) if x.size else 0
