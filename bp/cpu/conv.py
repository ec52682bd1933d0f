"""Convolution on the CPU: patches of a few images at a time times the weight matrix, or csrc/native/conv.cpp."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from bp.cpu import native
from bp.cpu.activation import activate, activate_backward
from bp.cpu.norm import channel_statistics
from bp.cpu.reduce import sum_rows
from bp.cpu.runtime import empty
from bp.ops.conv import Padding, Pair, convolved_size, transposed_output_size

# The patches of one block of images take at most about this many elements (one image at least).
BLOCK_ELEMENTS = 1 << 20

# Infinite and overflowing inputs give infinities and NaN, as on every device, and no warning.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    size = convolved_size("conv2d", x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    y = empty((x.shape[0], *size, weight.shape[0]), x.dtype)
    kernel = native.kernel("conv2d", x)
    if kernel is not None:
        kernel(_whole(x), _whole(weight), bias, y, stride, _before(padding), dilation, groups)
        return y
    matrix = _by_group(weight, groups)
    for images in _blocks(y, weight):
        patches = _patches(x[images], weight.shape[1:3], size, stride, padding, dilation, groups)
        for group, channels in enumerate(_channels(weight.shape[0], groups)):
            y[images, :, :, channels] = np.matmul(patches[group], matrix[group].T).reshape(*y[images].shape[:3], -1)
    if bias is not None:
        np.add(y, bias, out=y)
    return y


def conv2d_activation(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    activation: str,
    keep: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    y, kept = activate(conv2d(x, weight, bias, stride, padding, dilation, groups), activation)
    return y, kept if keep else None


def conv2d_statistics(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> tuple[np.ndarray, np.ndarray, None, np.ndarray]:
    y = conv2d(x, weight, bias, stride, padding, dilation, groups)
    mean, variance = channel_statistics(y)
    return y, mean, None, variance


def conv2d_backward_input(
    dy: np.ndarray,
    weight: np.ndarray,
    input_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    return _scatter(dy, weight, None, input_size, stride, padding, dilation, groups)


def conv2d_backward_input_activation(
    dy: np.ndarray,
    weight: np.ndarray,
    kept: np.ndarray | None,
    activation: str,
    input_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    dx = conv2d_backward_input(dy, weight, input_size, stride, padding, dilation, groups)
    return activate_backward(dx, kept, activation)


def conv2d_backward_parameters(
    dy: np.ndarray,
    x: np.ndarray,
    dweight: np.ndarray | None,
    dbias: np.ndarray | None,
    accumulate: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    if dweight is not None:
        _weight_gradient(dy, x, dweight, dbias, accumulate, stride, padding, dilation, groups)
    elif dbias is not None:
        _bias_gradient(dy, dbias, accumulate)


def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    output_padding: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    size = transposed_output_size(
        "conv_transpose2d", x.shape[1:3], weight.shape[1:3], output_padding, stride, padding, dilation
    )
    return _scatter(x, weight, bias, size, stride, padding, dilation, groups)


def conv_transpose2d_backward_input(
    dy: np.ndarray, weight: np.ndarray, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> np.ndarray:
    return conv2d(dy, weight, None, stride, padding, dilation, groups)


def conv_transpose2d_backward_parameters(
    dy: np.ndarray,
    x: np.ndarray,
    dweight: np.ndarray | None,
    dbias: np.ndarray | None,
    accumulate: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    if dweight is not None:
        _weight_gradient(x, dy, dweight, None, accumulate, stride, padding, dilation, groups)
    if dbias is not None:
        _bias_gradient(dy, dbias, accumulate)


@quiet
def _scatter(
    dy: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    """dx: every pixel of dy times the weights is added to the pixels that its window covered; plus a bias."""
    channels = weight.shape[3] * groups
    dx = empty((dy.shape[0], *size, channels), dy.dtype)
    kernel = native.kernel("conv2d_backward_input", dy)
    if kernel is not None:
        kernel(_whole(dy), _whole(weight), bias, dx, stride, _before(padding), dilation, groups)
        return dx
    matrix = _by_group(weight, groups)
    (top, bottom), (left, right) = padding
    for images in _blocks(dy, weight):
        canvas = np.zeros((dy[images].shape[0], size[0] + top + bottom, size[1] + left + right, channels), dy.dtype)
        for group, (out, into) in enumerate(
            zip(_channels(dy.shape[3], groups), _channels(channels, groups), strict=True)
        ):
            terms = np.matmul(_rows(dy[images, :, :, out]), matrix[group])
            terms = terms.reshape(*dy[images].shape[:3], *weight.shape[1:])
            for u in range(weight.shape[1]):
                for v in range(weight.shape[2]):
                    rows = slice(u * dilation[0], u * dilation[0] + (dy.shape[1] - 1) * stride[0] + 1, stride[0])
                    columns = slice(v * dilation[1], v * dilation[1] + (dy.shape[2] - 1) * stride[1] + 1, stride[1])
                    canvas[:, rows, columns, into] += terms[:, :, :, u, v]
        dx[images] = canvas[:, top : top + size[0], left : left + size[1]]
    if bias is not None:
        np.add(dx, bias, out=dx)
    return dx


@quiet
def _weight_gradient(
    dy: np.ndarray,
    x: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray | None,
    accumulate: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    size, before = dweight.shape[1:3], _before(padding)
    kernel = native.kernel("conv2d_backward_parameters", x)
    if kernel is not None:
        kernel(_whole(dy), _whole(x), dweight, dbias, accumulate, size, stride, before, dilation, groups)
        return
    if not accumulate:
        dweight[...] = 0
    matrix = _by_group(dweight, groups)
    for images in _blocks(dy, dweight):
        patches = _patches(x[images], size, dy.shape[1:3], stride, padding, dilation, groups)
        for group, channels in enumerate(_channels(dy.shape[3], groups)):
            matrix[group] += np.matmul(_rows(dy[images, :, :, channels]).T, patches[group])
    if dbias is not None:
        _bias_gradient(dy, dbias, accumulate)


@quiet
def _bias_gradient(dy: np.ndarray, dbias: np.ndarray, accumulate: bool) -> None:
    sum_rows(_rows(dy), dbias, accumulate)


def _patches(
    x: np.ndarray, kernel: Pair, size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> np.ndarray:
    """What lies under each window: (groups, N H' W', kh kw in/groups)."""
    n, _, _, c = x.shape
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    image, row, column, channel = padded.strides
    windows = as_strided(
        padded,
        (groups, n, *size, *kernel, c // groups),
        (
            c // groups * channel,
            image,
            row * stride[0],
            column * stride[1],
            row * dilation[0],
            column * dilation[1],
            channel,
        ),
        writeable=False,
    )
    patches = empty(windows.shape, x.dtype)
    patches[...] = windows
    return patches.reshape(groups, n * size[0] * size[1], kernel[0] * kernel[1] * (c // groups))


def _blocks(dy: np.ndarray, weight: np.ndarray) -> Iterator[slice]:
    """Slices of the batch, such that the patches of one stay within BLOCK_ELEMENTS."""
    _, kernel_h, kernel_w, channels = weight.shape
    each = dy.shape[1] * dy.shape[2] * kernel_h * kernel_w * channels
    step = max(1, BLOCK_ELEMENTS // each)
    for start in range(0, dy.shape[0], step):
        yield slice(start, start + step)


def _channels(channels: int, groups: int) -> list[slice]:
    each = channels // groups
    return [slice(group * each, (group + 1) * each) for group in range(groups)]


def _by_group(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weights as one matrix for each group, (groups, out / groups, kh kw in/groups), in the same memory."""
    out, kernel_h, kernel_w, channels = weight.shape
    return weight.reshape(groups, out // groups, kernel_h * kernel_w * channels)


def _rows(images: np.ndarray) -> np.ndarray:
    n, h, w, c = images.shape
    return images.reshape(n * h * w, c)


def _whole(array: np.ndarray) -> np.ndarray:
    """The array itself where it is C-contiguous, as native kernels need it, else a copy."""
    return np.ascontiguousarray(array)


def _before(padding: Padding) -> Pair:
    """(top, left): native kernels see from the size of the output how far the image is padded below and right."""
    return padding[0][0], padding[1][0]
