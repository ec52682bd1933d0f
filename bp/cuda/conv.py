"""Convolution on the CUDA device: a matrix product that reads its operands from the images, or the definition itself.

The transposed convolution is the data gradient of a convolution, so there are three products, each in two rungs:
`conv_tiled.cu` and `conv_direct.cu` (`bp.cuda.choice` has the table).
"""

import math
from dataclasses import dataclass

from bp.cuda.choice import choose, cut
from bp.cuda.device import device_of, empty
from bp.cuda.kernel import FLOATS, Source, blocks
from bp.cuda.linear import TILE, Parts, uses_tf32
from bp.cuda.reduce import sum_rows
from bp.errors import ShapeError
from bp.ops.array import Array, Shape
from bp.ops.conv import Padding, Pair, convolved_size, transposed_output_size

_LONGEST_RUN = 8192  # pixels that a block of direct_backward_parameters sums, an eighth of them in each thread
_LANES = 32  # weights that it computes

_X, _Y, _WEIGHTS = "images * h * w * channels", "images * p * q * out", "out * kh * kw * (channels // groups)"
_FLOPS = f"2 * images * p * q * {_WEIGHTS}"
_BYTES = f"({_X} + {_Y} + {_WEIGHTS}) * T"
_WIDE_BYTES = f"({_X} + {_Y}) * T + {_WEIGHTS} * 4"  # gradients of weights are float32

_tiled = Source("conv_tiled", T=FLOATS)
_forward = _tiled.kernel("conv_forward", flops=_FLOPS, bytes=_BYTES)
_backward_input = _tiled.kernel("conv_backward_input", flops=_FLOPS, bytes=_BYTES)
_backward_parameters = _tiled.kernel("conv_backward_parameters", flops=_FLOPS, bytes=_WIDE_BYTES)
_direct = Source("conv_direct", T=FLOATS)
_direct_forward = _direct.kernel("direct_forward", flops=_FLOPS, bytes=_BYTES)
_direct_backward_input = _direct.kernel("direct_backward_input", flops=_FLOPS, bytes=_BYTES)
_direct_backward_parameters = _direct.kernel("direct_backward_parameters", flops=_FLOPS, bytes=_WIDE_BYTES)


def conv2d(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    size = convolved_size("conv2d", x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    y = empty(x, (x.shape[0], *size, weight.shape[0]))
    _convolve(_Convolution(x.shape, y.shape, weight.shape, stride, padding, dilation, groups), x, weight, bias, y)
    return y


def conv2d_backward_input(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    return _transpose(dy, weight, None, input_size, stride, padding, dilation, groups)


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
        convolution = _Convolution(x.shape, dy.shape, dweight.shape, stride, padding, dilation, groups)
        done = _weight_gradient(convolution, dy, x, dweight, dbias, accumulate)
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
    return _transpose(x, weight, bias, size, stride, padding, dilation, groups)


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
        convolution = _Convolution(dy.shape, x.shape, dweight.shape, stride, padding, dilation, groups)
        _weight_gradient(convolution, x, dy, dweight, None, accumulate)
    if dbias is not None:
        sum_rows(_pixels(dy), dbias, accumulate)


# The three products -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Convolution:
    """The sizes of a convolution, in whichever direction it is run. wide: of what it reads, narrow: of its result."""

    wide: Shape
    narrow: Shape
    weight: Shape
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int

    def __post_init__(self) -> None:
        if max(*self.wide[1:3], *self.narrow[1:3]) + max(map(sum, self.padding)) >= 2**31:
            raise ShapeError(f"convolutions expected padded images of less than 2^31 rows and columns, got {self.wide}")

    @property
    def arguments(self) -> tuple[int, ...]:
        """As all kernels take them: images h w p q channels out kh kw groups stride top left dilation."""
        return (
            *self.wide[:3],
            *self.narrow[1:3],
            self.wide[3],
            self.narrow[3],
            *self.weight[1:3],
            self.groups,
            *self.stride,
            self.padding[0][0],
            self.padding[1][0],
            *self.dilation,
        )

    @property
    def group_in(self) -> int:
        """Channels that one output channel sees."""
        return self.weight[3]

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.narrow[3] // self.groups

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return self.weight[1] * self.weight[2]


def _convolve(convolution: _Convolution, x: Array, weight: Array, bias: Array | None, y: Array) -> None:
    pixels, depth = math.prod(y.shape[:3]), convolution.taps * convolution.group_in
    if not y.size:
        return
    if _rung(x, pixels, convolution.group_out, depth) == "direct":
        _direct_forward(blocks(y.size), x, weight, bias, y, *convolution.arguments, uses_tf32(x))
        return
    tiles = _tiles(pixels, convolution.group_out)
    parts, part = cut(tiles * convolution.groups, depth)
    grid, arguments = (tiles, parts, convolution.groups), (*convolution.arguments, part, uses_tf32(x))
    if parts == 1:
        _forward(grid, x, weight, bias, y, None, *arguments)
        return
    work = Parts(x, parts, y.size)
    _forward(grid, x, weight, None, None, work.products, *arguments)
    work.sum(y.shape[3], bias=bias, y=y)


def _transpose(
    dy: Array,
    weight: Array,
    bias: Array | None,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """dx from dy, which is the transposed convolution of dy where there is a bias or none."""
    dx = empty(dy, (dy.shape[0], *size, weight.shape[3] * groups))
    convolution = _Convolution(dx.shape, dy.shape, weight.shape, stride, padding, dilation, groups)
    if not dx.size:
        return dx
    # The largest class of pixels (Residue in conv_operands.cuh), and the most taps that one has.
    periods = [s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    pixels = dx.shape[0] * math.prod(-(-n // s) for n, s in zip(size, stride, strict=True))
    depth = convolution.group_out * math.prod(-(-k // p) for k, p in zip(weight.shape[1:3], periods, strict=True))
    if _rung(dy, pixels, convolution.group_in, depth) == "direct":
        _direct_backward_input(blocks(dx.size), dy, weight, bias, dx, *convolution.arguments, uses_tf32(dy))
        return dx
    tiles, classes = _tiles(pixels, convolution.group_in), math.prod(stride)
    parts, part = cut(tiles * groups * classes, depth)
    grid, arguments = (tiles, parts, groups * classes), (*convolution.arguments, *periods, part, uses_tf32(dy))
    if parts == 1:
        _backward_input(grid, dy, weight, bias, dx, None, *arguments)
        return dx
    work = Parts(dy, parts, dx.size)
    _backward_input(grid, dy, weight, None, None, work.products, *arguments)
    work.sum(dx.shape[3], bias=bias, y=dx)
    return dx


def _weight_gradient(
    convolution: _Convolution, dy: Array, x: Array, dweight: Array, dbias: Array | None, accumulate: bool
) -> bool:
    """dweight, and dbias where its kernel gives the sums of dy's columns on its way; returns whether it did."""
    pixels, columns = math.prod(dy.shape[:3]), convolution.taps * convolution.group_in
    if not dweight.size:
        return False
    tf32 = uses_tf32(x)
    if _rung(x, convolution.group_out, columns, pixels) == "direct":
        across = -(-dy.shape[3] * convolution.group_in // _LANES)
        parts, part = cut(across * convolution.taps, pixels, _LONGEST_RUN)
        kernel, grid, sums = _direct_backward_parameters, (across, parts, convolution.taps), None
    else:
        tiles = _tiles(convolution.group_out, columns)
        parts, part = cut(tiles * convolution.groups, pixels)
        kernel, grid = _backward_parameters, (tiles, parts, convolution.groups)
        sums = None if tf32 else dbias  # with tf32 the kernel has dy rounded
    # The kernel of the first rung has no argument for the sums.
    if parts == 1:
        given = (dweight,) if kernel is _direct_backward_parameters else (dweight, sums)
        kernel(grid, dy, x, *given, *convolution.arguments, part, accumulate, tf32)
    else:
        work = Parts(x, parts, dweight.size, 0 if sums is None else sums.size)
        given = (work.products,) if kernel is _direct_backward_parameters else (work.products, work.sums)
        kernel(grid, dy, x, *given, *convolution.arguments, part, False, tf32)
        work.sum(columns, wide=dweight, dbias=sums, accumulate=accumulate)
    return sums is not None


def _rung(x: Array, m: int, n: int, k: int) -> str:
    """The rung for one group's product; one without terms, of which only a bias is left, has no tiles to read."""
    return choose("conv", m, n, k, x.dtype, device_of(x).capability) if k else "direct"


def _tiles(m: int, n: int) -> int:
    return -(-m // TILE) * -(-n // TILE)


def _pixels(images: Array) -> Array:
    """The images as a matrix with one row for each pixel."""
    return images.reshape(math.prod(images.shape[:3]), images.shape[3])
