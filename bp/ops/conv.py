"""Convolution of images, its two gradients, and the transposed convolution, which is the data gradient run forward.

Images are (N, H, W, C), weights (out, kh, kw, in / groups). `stride` and `dilation` are pairs (along H, along W).
`padding` is a pair of pairs, ((top, bottom), (left, right)): rows and columns of zeros that take part in the sum like
any other pixel. With g groups, output channels [j out/g, (j+1) out/g) see input channels [j in/g, (j+1) in/g) alone;
g = in = out is a depthwise convolution. All arrays of a call have one floating dtype.

An activation, or the statistics of a batch normalisation, that follow a convolution are part of the same operation
where they can be. For activations f and what of their arguments is kept, see `bp.ops.linear`: the same holds here, with
a convolution in the place of the product, and without dropout.
"""

import math

from bp.errors import ShapeError
from bp.ops.activation import has_kept, is_fused
from bp.ops.array import Array, Shape
from bp.ops.checks import has_rank, has_shape, same_dtype, wide_dtype
from bp.ops.operation import operation

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

IMAGES = "(N, H, W, C)"
WEIGHTS = "(out, kh, kw, in / groups)"


def output_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> int:
    """Windows that fit along one axis: the last starts at the largest multiple of `stride` that keeps it inside."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def transposed_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int, output_padding: int) -> int:
    """The smallest size whose `output_size` is `size`, plus `output_padding`, which tells apart those that share it."""
    return (size - 1) * stride - sum(padding) + dilation * (kernel - 1) + 1 + output_padding


@operation
def conv2d(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """y[n, i, j, o] = b[o] + sum_{u, v, c} x[n, i s_h + u d_h - top, j s_w + v d_w - left, c] W[o, u, v, c].

    s is the stride, d the dilation, and x is zero outside the image; c runs over the channels of o's group. (A
    cross-correlation: the kernel is not flipped.) x: (N, H, W, in); weight: (out, kh, kw, in / groups); bias: (out,)
    or None; returns y: (N, H', W', out) with H' = (H + top + bottom - d_h (kh - 1) - 1) // s_h + 1.
    Raises ShapeError where ranks, channels or groups do not fit or no window does, DtypeError for mixed dtypes.
    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016).
    """
    _convolves("conv2d", x, weight, bias, stride, padding, dilation, groups)


@operation
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
    """y = f(z) with z = conv2d(x, W) + b, in one pass; returns (y, kept), what the backward of f needs.

    activation: one of `bp.ops.activation.FUSED_ACTIVATIONS`; keep: whether a backward follows; kept: None for
    "identity" or without `keep`, y itself for "relu", else z; its backward is
    `bp.ops.linear.linear_activation_backward`. The rest, and the errors, as for `conv2d`; ConfigurationError for
    another activation. In a 16-bit dtype f may be applied before z is rounded to it.
    """
    _convolves("conv2d_activation", x, weight, bias, stride, padding, dilation, groups)
    is_fused("conv2d_activation", activation)


@operation
def conv2d_statistics(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> tuple[Array, Array, Array | None, Array]:
    """(y, mean, rest, variance): y = conv2d(x, W) + b, and of each of its channels what a batch normalisation needs.

    mean_o = sum y[n, i, j, o] / K and variance_o = sum (y[n, i, j, o] - mean_o)^2 / K over the K = N H' W' values of a
    channel, of y as it is stored, that is rounded to its dtype; the sum of squares is one of deviations, never
    E[y^2] - E[y]^2. mean, rest, variance: (out,), of a precision that the device chooses, at least float32. rest: what
    mean, rounded, leaves out, which shows in y - mean where the mean is far from zero; None where mean is float64.
    Everything else, and the errors, as for `conv2d`; ShapeError also for an empty batch, which has no mean.
    """
    _convolves("conv2d_statistics", x, weight, bias, stride, padding, dilation, groups)
    if math.prod(x.shape) == 0:
        raise ShapeError(f"conv2d_statistics expected at least one value per channel, got x of shape {x.shape}")


@operation
def conv2d_backward_input(
    dy: Array, weight: Array, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """dx[n, h, w, c] = sum_{u, v, o} dy[n, i, j, o] W[o, u, v, c], i s_h + u d_h - top = h, j s_w + v d_w - left = w.

    y[n, i, j, o] holds x[n, h, w, c] times W[o, u, v, c] exactly where those two equations hold, so each such term
    passes dy W back. For one u there is a row i if (h + top - u d_h) is a multiple of s_h: the pixels of one residue of
    h + top modulo s_h see the same kernel rows, and form a convolution of stride 1 of dy with those.

    dy: (N, H', W', out); weight: (out, kh, kw, in / groups); input_size: (H, W), since several sizes give one
    output size; returns dx: (N, H, W, in).
    """
    _gives_input("conv2d_backward_input", dy, weight, input_size, stride, padding, dilation, groups)


@operation
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
    """dz = dx f'(z), dx as of `conv2d_backward_input`: the gradient of this layer's input x = f(z), carried on to z.

    z and f belong to the layer below, and kept is what its forward gave: (N, H, W, in), or None for "identity".
    Returns dz: (N, H, W, in). In a 16-bit dtype dx may stay wider until it has been multiplied.
    """
    name = "conv2d_backward_input_activation"
    _gives_input(name, dy, weight, input_size, stride, padding, dilation, groups)
    has_kept(name, kept, activation, "dy", dy, (dy.shape[0], *input_size, weight.shape[-1] * groups))


@operation
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
    """dW[o, u, v, c] = sum_{n, i, j} dy[n, i, j, o] x[n, i s_h + u d_h - top, j s_w + v d_w - left, c]; db = sum of dy.

    A weight takes part in every output pixel, each time multiplied by the input pixel at its place in the window;
    the bias enters every pixel once. Written into `dweight` and `dbias` (None: not wanted); `accumulate` adds.
    dy: (N, H', W', out); x: (N, H, W, in); dweight: (out, kh, kw, in / groups); dbias: (out,).
    """
    _parameters_fit("conv2d_backward_parameters", dy, x, dy, x, dweight, dbias, stride, padding, dilation, groups)


@operation
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
    """y[n, h, w, c] = b[c] + sum_{u, v, i} x[n, p, q, i] W[i, u, v, c].

    The sum runs over the p, q with p s_h + u d_h - top = h and q s_w + v d_w - left = w.
    Each input pixel lays down a kernel-sized stamp, `stride` apart. It is `conv2d_backward_input` of the same weight
    array plus a bias: the weight is (in, kh, kw, out / groups), in being the output channels of the convolution that
    this one transposes. x: (N, H, W, in); bias: (out,) or None; returns y: (N, H', W', out) with H' = (H - 1) s_h -
    top - bottom + d_h (kh - 1) + 1 + output_padding_h, where output_padding is less than the stride: it picks one of
    the sizes that a convolution of that stride maps to H.
    Source: Zeiler et al., Deconvolutional Networks (2010); Dumoulin and Visin (2016), chapter 4.
    """
    same_dtype("conv_transpose2d", weight=weight, x=x, bias=bias)
    has_rank("conv_transpose2d", "x", x, 4, IMAGES)
    _weight_fits("conv_transpose2d", weight, x.shape[3], weight.shape[-1] * groups, groups)
    has_shape("conv_transpose2d", "bias", bias, (weight.shape[-1] * groups,))
    transposed_output_size(
        "conv_transpose2d", x.shape[1:3], weight.shape[1:3], output_padding, stride, padding, dilation
    )


@operation
def conv_transpose2d_backward_input(
    dy: Array, weight: Array, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """dx = conv2d(dy, W): the forward is linear in x, with the transposed matrix of conv2d; transposing undoes it.

    dy: (N, H', W', out); weight: (in, kh, kw, out / groups); returns dx: (N, H, W, in).
    """
    same_dtype("conv_transpose2d_backward_input", weight=weight, dy=dy)
    has_rank("conv_transpose2d_backward_input", "dy", dy, 4, IMAGES)
    _weight_fits("conv_transpose2d_backward_input", weight, weight.shape[0], dy.shape[3], groups)
    convolved_size("conv_transpose2d_backward_input", dy.shape[1:3], weight.shape[1:3], stride, padding, dilation)


@operation
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
    """dW[i, u, v, c] = sum_{n, p, q} x[n, p, q, i] dy[n, p s_h + u d_h - top, q s_w + v d_w - left, c]; db = sum of dy.

    From the forward: W[i, u, v, c] carries x[n, p, q, i] to that pixel of y. It is the weight gradient of conv2d with
    x and dy in each other's place. dy: (N, H', W', out); x: (N, H, W, in); dweight: (in, kh, kw, out / groups);
    dbias: (out,).
    """
    _parameters_fit(
        "conv_transpose2d_backward_parameters", x, dy, dy, x, dweight, dbias, stride, padding, dilation, groups
    )


def convolved_size(operation: str, size: Shape, kernel: Shape, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    """(H', W') of a convolution; raises ShapeError where the kernel is larger than the padded image."""
    height, width = (
        output_size(size[a], kernel[a], stride[a], padding[a], dilation[a]) if min(size) > 0 else 0 for a in (0, 1)
    )
    if height < 1 or width < 1:
        raise ShapeError(
            f"{operation} expected images at least as large as the kernel, got size {tuple(size)} with padding "
            f"{padding} and kernel {tuple(kernel)} with dilation {dilation}"
        )
    return height, width


def transposed_output_size(
    operation: str, size: Shape, kernel: Shape, output_padding: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> Pair:
    """(H', W') of a transposed convolution; raises ShapeError where nothing is left or output_padding >= stride."""
    height, width = (
        transposed_size(size[a], kernel[a], stride[a], padding[a], dilation[a], output_padding[a]) for a in (0, 1)
    )
    if not all(0 <= output_padding[a] < stride[a] for a in (0, 1)):
        raise ShapeError(f"{operation} expected output_padding less than the stride {stride}, got {output_padding}")
    if min(size) < 1 or height < 1 or width < 1:
        raise ShapeError(
            f"{operation} expected an output of at least one pixel, got size {(height, width)} from images of size "
            f"{tuple(size)} with padding {padding}"
        )
    return height, width


def _convolves(
    operation: str,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    """What every forward of a convolution asks of its arrays."""
    same_dtype(operation, weight=weight, x=x, bias=bias)
    has_rank(operation, "x", x, 4, IMAGES)
    _weight_fits(operation, weight, weight.shape[0], x.shape[3], groups)
    has_shape(operation, "bias", bias, (weight.shape[0],))
    convolved_size(operation, x.shape[1:3], weight.shape[1:3], stride, padding, dilation)


def _gives_input(
    operation: str,
    dy: Array,
    weight: Array,
    input_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    """What every input gradient of a convolution asks of its arrays."""
    same_dtype(operation, weight=weight, dy=dy)
    has_rank(operation, "dy", dy, 4, IMAGES)
    _weight_fits(operation, weight, dy.shape[3], weight.shape[-1] * groups, groups)
    size = convolved_size(operation, input_size, weight.shape[1:3], stride, padding, dilation)
    has_shape(operation, "dy", dy, (dy.shape[0], *size, weight.shape[0]))


def _weight_fits(operation: str, weight: Array, out_channels: int, in_channels: int, groups: int) -> None:
    has_rank(operation, "weight", weight, 4, WEIGHTS)
    if groups < 1 or out_channels % groups or in_channels % groups:
        raise ShapeError(
            f"{operation} expected groups that divide {in_channels} input and {out_channels} output channels, "
            f"got {groups}"
        )
    has_shape(operation, "weight", weight, (out_channels, *weight.shape[1:3], in_channels // groups))


def _parameters_fit(
    operation: str,
    narrow: Array,
    wide: Array,
    dy: Array,
    x: Array,
    dweight: Array | None,
    dbias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> None:
    """`wide` is what the convolution reads and `narrow` what it writes, in whichever direction it is used."""
    same_dtype(operation, dy=dy, x=x)
    wide_dtype(operation, x, dweight=dweight, dbias=dbias)
    has_rank(operation, "dy", dy, 4, IMAGES)
    has_rank(operation, "x", x, 4, IMAGES)
    has_shape(operation, "dbias", dbias, dy.shape[3:])
    if dweight is None:
        return
    _weight_fits(operation, dweight, narrow.shape[3], wide.shape[3], groups)
    size = convolved_size(operation, wide.shape[1:3], dweight.shape[1:3], stride, padding, dilation)
    has_shape(operation, "dy" if narrow is dy else "x", narrow, (wide.shape[0], *size, narrow.shape[3]))
