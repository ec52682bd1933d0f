"""Linear (GEMM): the product of activations and a weight matrix, and its two gradients."""

from bp.ops.array import Array
from bp.ops.checks import contiguous, floating, has_shape, last_axis, same_dtype, wide_dtype
from bp.ops.operation import operation


@operation
def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """y = x W^T + b.

    x: (..., in); weight: (out, in); bias: (out,) or None; returns y: (..., out). One floating dtype throughout.
    Raises ShapeError or DtypeError where these do not fit.
    Source: Goodfellow, Bengio, Courville, Deep Learning (2016), section 6.5.
    """
    last_axis("linear", "x", x, weight.shape[1])
    has_shape("linear", "bias", bias, (weight.shape[0],))
    floating("linear", "weight", weight)
    same_dtype("linear", weight=weight, x=x, bias=bias)


@operation
def linear_backward_input(dy: Array, weight: Array) -> Array:
    """dx = dy W: since y_o = sum_i W_oi x_i, dL/dx_i = sum_o dL/dy_o W_oi.

    dy: (..., out); weight: (out, in); returns dx: (..., in).
    """
    last_axis("linear_backward_input", "dy", dy, weight.shape[0])
    floating("linear_backward_input", "weight", weight)
    same_dtype("linear_backward_input", weight=weight, dy=dy)


@operation
def linear_backward_parameters(
    dy: Array, x: Array, dweight: Array | None, dbias: Array | None, accumulate: bool
) -> None:
    """dW = dy^T x and db = sum of dy over all rows, written into `dweight` and `dbias` (None: not wanted).

    Each row contributes dL/dW_oi = dy_o x_i and dL/db_o = dy_o; a weight that serves many rows receives the
    sum. dy: (..., out); x: (..., in); dweight: (out, in); dbias: (out,). `accumulate` adds to what the
    destinations hold, otherwise they are overwritten. Destinations are C-contiguous and of the dtype of x and dy,
    float32 where these are 16-bit floats; ShapeError or DtypeError where they are not.
    """
    floating("linear_backward_parameters", "dy", dy)
    same_dtype("linear_backward_parameters", dy=dy, x=x)
    wide_dtype("linear_backward_parameters", x, dweight=dweight, dbias=dbias)
    has_shape("linear_backward_parameters", "dy", dy, x.shape[:-1] + dy.shape[-1:])
    has_shape("linear_backward_parameters", "dweight", dweight, dy.shape[-1:] + x.shape[-1:])
    has_shape("linear_backward_parameters", "dbias", dbias, dy.shape[-1:])
    contiguous("linear_backward_parameters", "dweight", dweight)
    contiguous("linear_backward_parameters", "dbias", dbias)
