"""Linear (GEMM): the product of activations and a weight matrix, its two gradients, and what may follow in one pass.

What follows a layer's product, an activation f and a dropout, is part of the same operation where it can be: with m_i
the mask of the dropout (0 where dropped, else 1 / q; 1 everywhere without dropout),

    z = x W^T + b, y_i = m_i f(z_i) + residual_i.

Backward, in two steps: dz_i = dL/dz_i = dy_i m_i f'(z_i), since y_i depends on z_i alone, and m does not depend on z;
then dx = dz W and dW = dz^T x as for any linear layer. Where x itself came out of a layer below as m f(z_below), the
gradient in front of that activation is (dz W)_i m_i f'(z_below_i): elementwise on the result of the product, and done
in the same pass (`linear_backward_input_activation`). The residual receives dy as it is.

What f' is taken from is `kept`: nothing for "identity" (f' = 1); for "gelu", "gelu_tanh" and "silu", which fall and
rise, z; for "relu" the result y, before or after the mask, f' being 1 where y > 0 or NaN, else 0. After the mask y > 0
exactly where z > 0 and the element was not dropped (1 / q >= 1 does not round a positive number to zero), so that m f'
is 1 / q there, else 0: a mask that is told so (`Mask.in_kept`) is not drawn again.
"""

from bp.errors import ConfigurationError
from bp.ops.activation import has_kept, is_fused
from bp.ops.array import Array
from bp.ops.checks import contiguous, floating, has_shape, last_axis, same_device, same_dtype, wide_dtype
from bp.ops.dropout import Mask
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
def linear_activation(
    x: Array, weight: Array, bias: Array | None, activation: str, keep: bool, mask: Mask | None, residual: Array | None
) -> tuple[Array, Array | None]:
    """y = m f(x W^T + b) + residual in one pass; returns (y, kept), what the backward of f needs (see above).

    x: (..., in); weight: (out, in); bias: (out,) or None; activation: one of `bp.ops.activation.FUSED_ACTIVATIONS`,
    where "gelu" is `gelu` with approximate "none" and "gelu_tanh" with "tanh"; keep: whether a backward follows; mask:
    that of a dropout of y, whose elements have the indices of y.ravel() (None: no dropout); residual: of the shape and
    dtype of y, or None. Returns y: (..., out), and kept: None for "identity" or without `keep`, y itself for "relu",
    else z, of the shape and dtype of y.
    In a 16-bit dtype f may be applied before z is rounded to it. An element that the mask drops is 0 also where it is
    not finite.
    Raises ShapeError or DtypeError where these do not fit, ConfigurationError for another activation, or where a
    residual comes with an activation: then y does not tell where z > 0.
    """
    last_axis("linear_activation", "x", x, weight.shape[1])
    has_shape("linear_activation", "bias", bias, (weight.shape[0],))
    floating("linear_activation", "weight", weight)
    same_dtype("linear_activation", weight=weight, x=x, bias=bias, residual=residual)
    is_fused("linear_activation", activation)
    if residual is not None:
        has_shape("linear_activation", "residual", residual, (*x.shape[:-1], weight.shape[0]))
        if activation != "identity":
            raise ConfigurationError(f"linear_activation expected a residual with 'identity' only, got {activation!r}")
    if mask is not None:
        same_device("linear_activation", "mask.control", mask.control, "x", x)


@operation
def linear_activation_backward(dy: Array, kept: Array | None, activation: str, mask: Mask | None) -> Array:
    """dz = dy m f'(z), elementwise: the gradient in front of the activation, f' from `kept` (see above).

    dy: any shape; kept: as `linear_activation` gave it, of that shape, None for "identity"; mask: that of the forward,
    which may be in_kept for "relu" only (ConfigurationError).
    Returns dz of the shape of dy; for "identity" without a mask that is dy itself.
    """
    floating("linear_activation_backward", "dy", dy)
    has_kept("linear_activation_backward", kept, activation, "dy", dy, dy.shape)
    _gradient_mask("linear_activation_backward", mask, activation, dy)


@operation
def linear_backward_input(dy: Array, weight: Array) -> Array:
    """dx = dy W: since y_o = sum_i W_oi x_i, dL/dx_i = sum_o dL/dy_o W_oi.

    dy: (..., out); weight: (out, in); returns dx: (..., in).
    """
    last_axis("linear_backward_input", "dy", dy, weight.shape[0])
    floating("linear_backward_input", "weight", weight)
    same_dtype("linear_backward_input", weight=weight, dy=dy)


@operation
def linear_backward_input_activation(
    dy: Array, weight: Array, kept: Array | None, activation: str, mask: Mask | None
) -> Array:
    """dz = (dy W) m f'(z): the gradient of this layer's input x = m f(z), carried on to z in the same pass.

    z, f and m belong to the layer below; kept and mask are as in its `linear_activation_backward`. dy: (..., out);
    weight: (out, in); kept: (..., in), or None for "identity"; returns dz: (..., in). In a 16-bit dtype dy W may stay
    wider until it has been multiplied.
    """
    name = "linear_backward_input_activation"
    last_axis(name, "dy", dy, weight.shape[0])
    floating(name, "weight", weight)
    same_dtype(name, weight=weight, dy=dy)
    has_kept(name, kept, activation, "dy", dy, (*dy.shape[:-1], weight.shape[1]))
    _gradient_mask(name, mask, activation, dy)


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


def _gradient_mask(name: str, mask: Mask | None, activation: str, dy: Array) -> None:
    if mask is None:
        return
    same_device(name, "mask.control", mask.control, "dy", dy)
    if mask.in_kept and activation != "relu":
        raise ConfigurationError(f"{name} expected a mask that is in_kept with 'relu' only, got {activation!r}")
