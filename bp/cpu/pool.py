"""Pooling on the CPU: NumPy as the readable reference, native kernels for float32."""

from collections.abc import Iterator

import numpy as np

from bp.cpu import native
from bp.cpu.runtime import empty
from bp.ops.array import Shape
from bp.ops.pool import Pair, output_sizes

Slices = tuple[slice, slice, slice]

# Sums with infinities in the data show as infinity or NaN in the results, not as warnings.
_quiet = np.errstate(over="ignore", invalid="ignore")


@_quiet
def max_pool2d(
    x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[np.ndarray, np.ndarray]:
    shape = _output_shape(x.shape, kernel, stride, padding, dilation)
    y = empty(shape, x.dtype)
    index = empty(shape, np.uint8 if kernel[0] * kernel[1] <= 1 << 8 else np.uint16)
    pool = native.kernel("max_pool2d", x)
    if pool is not None:
        pool(np.ascontiguousarray(x), kernel, stride, padding, dilation, y, index)
        return y, index
    y[...] = -np.inf
    index[...] = 0
    seen = np.zeros((*shape[1:3], 1), bool)
    for tap, outputs, inputs in _taps(x.shape, shape, kernel, stride, padding, dilation):
        candidate, best = x[inputs], y[outputs]
        # The first one in the image wins against nothing, else a window of -inf alone would have no winner.
        wins = (candidate > best) | np.isnan(candidate) | ~seen[outputs[1:]]
        np.copyto(best, candidate, where=wins)
        np.copyto(index[outputs], tap, where=wins)
        seen[outputs[1:]] = True
    return y, index


@_quiet
def max_pool2d_backward(
    dy: np.ndarray,
    index: np.ndarray,
    input_shape: Shape,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> np.ndarray:
    dx = empty(input_shape, dy.dtype)
    scatter = native.kernel("max_pool2d_backward", dy)
    if scatter is not None:
        scatter(np.ascontiguousarray(dy), index, kernel, stride, padding, dilation, dx)
        return dx
    dx[...] = 0
    for tap, outputs, inputs in _taps(input_shape, dy.shape, kernel, stride, padding, dilation):
        dx[inputs] += np.where(index[outputs] == tap, dy[outputs], 0)
    return dx


@_quiet
def avg_pool2d(x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool) -> np.ndarray:
    shape = _output_shape(x.shape, kernel, stride, padding, (1, 1))
    y = empty(shape, x.dtype)
    weights = _weights(x, shape, kernel, stride, padding, count_include_pad)
    pool = native.kernel("avg_pool2d", x)
    if pool is not None:
        pool(np.ascontiguousarray(x), weights, kernel, stride, padding, y)
        return y
    sums = empty(shape, np.float64)
    sums[...] = 0
    for _, outputs, inputs in _taps(x.shape, shape, kernel, stride, padding, (1, 1)):
        sums[outputs] += x[inputs]
    return np.multiply(sums, weights[:, :, None], out=y)


@_quiet
def avg_pool2d_backward(
    dy: np.ndarray, input_shape: Shape, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> np.ndarray:
    dx = empty(input_shape, dy.dtype)
    weights = _weights(dx, dy.shape, kernel, stride, padding, count_include_pad)
    spread = native.kernel("avg_pool2d_backward", dy)
    if spread is not None:
        spread(np.ascontiguousarray(dy), weights, kernel, stride, padding, dx)
        return dx
    dx[...] = 0
    shares = np.multiply(dy, weights[:, :, None], out=empty(dy.shape, dy.dtype))
    for _, outputs, inputs in _taps(input_shape, dy.shape, kernel, stride, padding, (1, 1)):
        dx[inputs] += shares[outputs]
    return dx


@_quiet
def global_avg_pool2d(x: np.ndarray) -> np.ndarray:
    images, height, width, channels = x.shape
    y = empty((images, channels), x.dtype)
    pool = native.kernel("avg_pool2d", x)
    if pool is not None:
        weight = np.array([[1 / (height * width)]], x.dtype)
        means = y.reshape(images, 1, 1, channels)
        pool(np.ascontiguousarray(x), weight, (height, width), (1, 1), (0, 0), means)
        return y
    # A sum of all pixels in float32 would lose more of each the larger it grows.
    y[...] = x.mean(axis=(1, 2), dtype=np.float64)
    return y


def global_avg_pool2d_backward(dy: np.ndarray, input_shape: Shape) -> np.ndarray:
    dx = empty(input_shape, dy.dtype)
    dx[...] = (dy * (1 / (input_shape[1] * input_shape[2])))[:, None, None, :]
    return dx


def _output_shape(shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Shape:
    return (shape[0], *output_sizes("pool", shape, kernel, stride, padding, dilation), shape[3])


def _taps(
    inputs: Shape, outputs: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[int, Slices, Slices]]:
    """(tap, slices of outputs, slices of inputs) for each tap of the window: the outputs whose tap is no padding, and
    the inputs it looks at there."""
    for row in range(kernel[0]):
        rows_out, rows_in = _overlap(inputs[1], outputs[1], row * dilation[0] - padding[0], stride[0])
        for column in range(kernel[1]):
            offset = column * dilation[1] - padding[1]
            columns_out, columns_in = _overlap(inputs[2], outputs[2], offset, stride[1])
            everything = slice(None)
            yield row * kernel[1] + column, (everything, rows_out, columns_out), (everything, rows_in, columns_in)


def _overlap(inputs: int, outputs: int, offset: int, stride: int) -> tuple[slice, slice]:
    """Along one axis: the outputs o with 0 <= o stride + offset < inputs, and these inputs."""
    first = max(0, -(offset // stride))
    count = max(0, min(outputs, (inputs - 1 - offset) // stride + 1) - first)
    start = first * stride + offset
    return slice(first, first + count), slice(start, start + count * stride, stride)


def _weights(
    x: np.ndarray, outputs: Shape, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> np.ndarray:
    """1 / count of each window, (H', W'), in the dtype of the input image `x`."""
    counts = []
    for axis in (0, 1):
        start = np.arange(outputs[1 + axis]) * stride[axis] - padding[axis]
        inside = np.minimum(start + kernel[axis], x.shape[1 + axis]) - np.maximum(start, 0)
        counts.append(np.full_like(inside, kernel[axis]) if count_include_pad else inside)
    return (1 / np.multiply.outer(*counts)).astype(x.dtype)
