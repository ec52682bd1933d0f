"""Convolution on the CUDA device: three products that read their operands from the images.

The transposed convolution is the data gradient of a convolution, so the three serve both (`bp.cuda.choice` has the
rungs).
"""

import math
from collections.abc import Callable
from dataclasses import replace

from bp.cuda import conv_depthwise, conv_direct, conv_mma, conv_simt, conv_tiled, conv_wgmma
from bp.cuda.choice import Choice, choose
from bp.cuda.convolution import Convolution, Moments, Sizes
from bp.cuda.device import device_of, empty
from bp.cuda.epilogue import Epilogue
from bp.cuda.norm import channel_statistics, merged_statistics
from bp.cuda.reduce import sum_rows
from bp.ops.array import Array
from bp.ops.conv import Padding, Pair, convolved_size, transposed_output_size

# The rungs that bp.cuda.choice has in its table. Each computes any of the products that the table lets it have; those
# of WITH_SUMS give the sums of dy as well.
RUNGS: dict[str, Callable[[Convolution, str], None]] = {
    "depthwise": conv_depthwise.convolve,
    "wgmma": conv_wgmma.convolve,
    "mma": conv_mma.convolve,
    "direct": conv_direct.convolve,
    "simt": conv_simt.convolve,
    "tiled": conv_tiled.convolve,
}
WITH_SUMS = ("depthwise", "tiled", "mma", "simt", "wgmma")


def conv2d(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    y, _ = conv2d_activation(x, weight, bias, "identity", False, stride, padding, dilation, groups)
    return y


def conv2d_activation(
    x: Array,
    weight: Array,
    bias: Array | None,
    activation: str,
    keep: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> tuple[Array, Array | None]:
    size = convolved_size("conv2d", x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    y = empty(x, (x.shape[0], *size, weight.shape[0]))
    before = empty(x, y.shape) if keep and activation not in ("identity", "relu") else None
    sizes = Sizes(x.shape, y.shape, weight.shape, stride, padding, dilation, groups)
    epilogue = Epilogue(bias=bias, activation=activation, before=before)
    convolve(Convolution("forward", sizes, x, weight, y, epilogue))
    return y, y if keep and activation == "relu" else before


def conv2d_statistics(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> tuple[Array, Array, Array, Array]:
    size = convolved_size("conv2d_statistics", x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    y = empty(x, (x.shape[0], *size, weight.shape[0]))
    sizes = Sizes(x.shape, y.shape, weight.shape, stride, padding, dilation, groups)
    moments = Moments()
    convolve(Convolution("forward", sizes, x, weight, y, Epilogue(bias=bias), moments=moments))
    if moments.array is None:
        return y, *channel_statistics(y)
    return y, *merged_statistics(moments.array, moments.tiles)


def conv2d_backward_input(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    return _transpose(dy, weight, Epilogue(), input_size, stride, padding, dilation, groups)


def conv2d_backward_input_activation(
    dy: Array,
    weight: Array,
    kept: Array | None,
    activation: str,
    input_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    epilogue = Epilogue(activation=activation, kept=kept)
    return _transpose(dy, weight, epilogue, input_size, stride, padding, dilation, groups)


def conv2d_backward_parameters(
    dy: Array,
    x: Array,
    dweight: Array | None,
    dbias: Array | None,
    accumulate: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    done = False
    if dweight is not None:
        sizes = Sizes(x.shape, dy.shape, dweight.shape, stride, padding, dilation, groups)
        done = _weight_gradient(sizes, dy, x, dweight, dbias, accumulate)
    if dbias is not None and not done:
        sum_rows(_pixels(dy), dbias, accumulate)


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    output_padding: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    size = transposed_output_size(
        "conv_transpose2d", x.shape[1:3], weight.shape[1:3], output_padding, stride, padding, dilation
    )
    return _transpose(x, weight, Epilogue(bias=bias), size, stride, padding, dilation, groups)


def conv_transpose2d_backward_input(
    dy: Array, weight: Array, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    return conv2d(dy, weight, None, stride, padding, dilation, groups)


def conv_transpose2d_backward_parameters(
    dy: Array,
    x: Array,
    dweight: Array | None,
    dbias: Array | None,
    accumulate: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    if dweight is not None:
        sizes = Sizes(dy.shape, x.shape, dweight.shape, stride, padding, dilation, groups)
        _weight_gradient(sizes, x, dy, dweight, None, accumulate)
    if dbias is not None:
        sum_rows(_pixels(dy), dbias, accumulate)


# The three products -----------------------------------------------------------------------------------------


def convolve(task: Convolution) -> None:
    """Compute a product of checked operands on the rung that the table has for it."""
    if not task.c.size:
        return
    chosen = _rung(task)
    RUNGS[chosen.rung](task, chosen.variant)


def _rung(task: Convolution) -> Choice:
    """One without terms, of which only a bias is left, has no tiles to read."""
    return choose(task.problem, device_of(task.a).capability) if task.product[2] else Choice("direct")


def _transpose(
    dy: Array,
    weight: Array,
    epilogue: Epilogue,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """dx from dy, which is the transposed convolution of dy where there is a bias or none."""
    dx = empty(dy, (dy.shape[0], *size, weight.shape[3] * groups))
    sizes = Sizes(dx.shape, dy.shape, weight.shape, stride, padding, dilation, groups)
    convolve(Convolution("backward_input", sizes, dy, weight, dx, epilogue))
    return dx


def _weight_gradient(sizes: Sizes, dy: Array, x: Array, dweight: Array, dbias: Array | None, accumulate: bool) -> bool:
    """dweight, and dbias where its kernel gives the sums of dy's columns on its way; returns whether it did."""
    if not dweight.size:
        return False
    task = Convolution("backward_parameters", sizes, dy, x, dweight, Epilogue(beta=float(accumulate)))
    # A rung that rounds dy to tf32 would add up what it has rounded.
    with_sums = dbias is not None and _rung(task).rung in WITH_SUMS and not task.tf32
    convolve(replace(task, sums=dbias if with_sums else None))
    return with_sums


def _pixels(images: Array) -> Array:
    """The images as a matrix with one row for each pixel."""
    return images.reshape(math.prod(images.shape[:3]), images.shape[3])
