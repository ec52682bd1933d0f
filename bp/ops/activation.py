"""Activations: elementwise functions y = f(x) and their gradients dx = dy f'(x), softmax, and the residual sum.

Every backward takes the one array that its derivation needs: the output y where f' is a simple function of y (the next
layer keeps y anyway, so it costs no memory), else the input x. All arrays of a call have one shape and one floating
dtype; ShapeError or DtypeError where they do not. Any finite or infinite x gives the limit of f and f' there, and NaN
gives NaN. sigma is the logistic function 1 / (1 + e^-x), with sigma' = sigma (1 - sigma).
"""

from bp.errors import ConfigurationError, ShapeError
from bp.ops.array import Array, Shape
from bp.ops.checks import contiguous, floating, has_shape, last_axis, same_dtype, wide_dtype
from bp.ops.operation import operation


def _alike(name: str, **arrays: Array) -> None:
    """Two arrays of one shape and dtype; checked at every call of every activation, so the usual case comes first."""
    first, second = arrays.values()
    if first.shape != second.shape or first.dtype != second.dtype:
        same_dtype(name, **arrays)
        has_shape(name, list(arrays)[1], second, first.shape)


@operation
def relu(x: Array) -> Array:
    """y = max(x, 0). Source: Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines (2010)."""
    floating("relu", "x", x)


@operation
def relu_backward(dy: Array, y: Array) -> Array:
    """dx = 0 where y <= 0, else dy: the slope is 1 above zero and 0 below; at zero bp, like PyTorch, takes 0.

    y is the output of `relu`, which carries the sign of x.
    """
    _alike("relu_backward", y=y, dy=dy)


@operation
def leaky_relu(x: Array, negative_slope: float) -> Array:
    """y = x where x > 0, else negative_slope x, with a slope in [0, 1].

    Source: Maas, Hannun, Ng, Rectifier Nonlinearities Improve Neural Network Acoustic Models (2013).
    """
    floating("leaky_relu", "x", x)


@operation
def leaky_relu_backward(dy: Array, y: Array, negative_slope: float) -> Array:
    """dx = negative_slope dy where y <= 0, else dy; a slope that is not negative keeps the sign of x in y."""
    _alike("leaky_relu_backward", y=y, dy=dy)


@operation
def elu(x: Array, alpha: float) -> Array:
    """y = x where x > 0, else alpha (e^x - 1), with alpha >= 0.

    Source: Clevert, Unterthiner, Hochreiter, Fast and Accurate Deep Network Learning by ELUs (2016).
    """
    floating("elu", "x", x)


@operation
def elu_backward(dy: Array, y: Array, alpha: float) -> Array:
    """dx = dy where y > 0, else dy (y + alpha): below zero, dy/dx = alpha e^x = alpha (e^x - 1) + alpha."""
    _alike("elu_backward", y=y, dy=dy)


@operation
def gelu(x: Array, approximate: str) -> Array:
    """y = x Phi(x), where Phi(x) = (1 + erf(x / sqrt 2)) / 2 is the normal distribution function.

    approximate: "none" for this, or "tanh" for Phi(x) ~ (1 + tanh u) / 2 = sigma(2 u), where
    u = sqrt(2 / pi) (x + 0.044715 x^3).
    Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016).
    """
    floating("gelu", "x", x)


@operation
def gelu_backward(dy: Array, x: Array, approximate: str) -> Array:
    """dx = dy (Phi(x) + x phi(x)), where phi = Phi' is the density e^(-x^2 / 2) / sqrt(2 pi).

    With the tanh form: dx = dy (s + x s (1 - s) (2 u)'), where s = sigma(2 u) and
    (2 u)' = sqrt(8 / pi) (1 + 3 * 0.044715 x^2).
    GELU falls and rises, so y does not tell x, and x is kept.
    """
    _alike("gelu_backward", x=x, dy=dy)


@operation
def silu(x: Array) -> Array:
    """y = x sigma(x). Source: Elfwing, Uchibe, Doya, Sigmoid-Weighted Linear Units (2018)."""
    floating("silu", "x", x)


@operation
def silu_backward(dy: Array, x: Array) -> Array:
    """dx = dy (sigma + x sigma (1 - sigma)) by the product rule; SiLU falls and rises, so x is kept."""
    _alike("silu_backward", x=x, dy=dy)


@operation
def sigmoid(x: Array) -> Array:
    """y = sigma(x) = 1 / (1 + e^-x)."""
    floating("sigmoid", "x", x)


@operation
def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dx = dy y (1 - y): with e = e^-x, dy/dx = e / (1 + e)^2 = y (1 - y)."""
    _alike("sigmoid_backward", y=y, dy=dy)


@operation
def tanh(x: Array) -> Array:
    """y = (e^x - e^-x) / (e^x + e^-x)."""
    floating("tanh", "x", x)


@operation
def tanh_backward(dy: Array, y: Array) -> Array:
    """dx = dy (1 - y^2): the quotient rule on sinh / cosh gives (cosh^2 - sinh^2) / cosh^2."""
    _alike("tanh_backward", y=y, dy=dy)


@operation
def softplus(x: Array, beta: float, threshold: float) -> Array:
    """y = log(1 + e^(beta x)) / beta, and y = x where beta x > threshold; beta > 0.

    The line differs from the curve by less than e^-threshold / beta. Computed with e^-|beta x|, so nothing overflows.
    Source: Dugas et al., Incorporating Second-Order Functional Knowledge for Better Option Pricing (2001).
    """
    floating("softplus", "x", x)


@operation
def softplus_backward(dy: Array, x: Array, beta: float, threshold: float) -> Array:
    """dx = dy sigma(beta x), and dy on the line: d/dx log(1 + e^(beta x)) / beta = e^(beta x) / (1 + e^(beta x)).

    x is kept: a small threshold makes y jump down there, so that one y belongs to two x with different slopes.
    """
    _alike("softplus_backward", x=x, dy=dy)


@operation
def mish(x: Array) -> Array:
    """y = x m, where m = tanh(log(1 + e^x)).

    Since tanh(log a) = (a^2 - 1) / (a^2 + 1), m = (w^2 + 2 w) / (w^2 + 2 w + 2) with w = e^x; for x > 0 numerator and
    denominator are divided by w^2, so that only e^-|x| occurs. Source: Misra, Mish (2019).
    """
    floating("mish", "x", x)


@operation
def mish_backward(dy: Array, x: Array) -> Array:
    """dx = dy (m + x (1 - m^2) sigma(x)): tanh' = 1 - tanh^2 and (log(1 + e^x))' = sigma(x).

    1 - m = 2 / (w^2 + 2 w + 2) is computed as such, and 1 - m^2 = (1 - m) (2 - (1 - m)), so that nothing cancels.
    """
    _alike("mish_backward", x=x, dy=dy)


@operation
def hardswish(x: Array) -> Array:
    """y = x min(max(x + 3, 0), 6) / 6. Source: Howard et al., Searching for MobileNetV3 (2019)."""
    floating("hardswish", "x", x)


@operation
def hardswish_backward(dy: Array, x: Array) -> Array:
    """dx = 0 where x < -3, dy where x > 3, and dy (x / 3 + 1 / 2) between, the derivative of (x^2 + 3 x) / 6."""
    _alike("hardswish_backward", x=x, dy=dy)


def _has_classes(name: str, x: Array) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"{name} expected x with at least one class along its last axis, got shape {x.shape}")


@operation
def softmax(x: Array) -> Array:
    """y_c = e^(x_c) / sum_k e^(x_k) along the last axis; x: (..., C) with C >= 1.

    The largest x_k is subtracted first, so no exponential overflows. A row whose largest element is not finite has no
    softmax: it is NaN. Source: Bridle (1990).
    """
    floating("softmax", "x", x)
    _has_classes("softmax", x)


@operation
def softmax_backward(dy: Array, y: Array) -> Array:
    """dx_c = y_c (dy_c - sum_k dy_k y_k): dy_k/dx_c = y_k ([k = c] - y_c), summed over k with dL/dy_k."""
    _alike("softmax_backward", y=y, dy=dy)


@operation
def log_softmax(x: Array) -> Array:
    """y_c = x_c - log sum_k e^(x_k) along the last axis; x: (..., C). As `softmax` in what it subtracts and rejects."""
    floating("log_softmax", "x", x)
    _has_classes("log_softmax", x)


@operation
def log_softmax_backward(dy: Array, y: Array) -> Array:
    """dx_c = dy_c - e^(y_c) sum_k dy_k: dy_k/dx_c = [k = c] - softmax_c, and softmax = e^y."""
    _alike("log_softmax_backward", y=y, dy=dy)


@operation
def add(a: Array, b: Array) -> Array:
    """y = a + b, of equal shapes: the sum at the end of a residual branch. Its gradient is dy for both."""
    _alike("add", a=a, b=b)


# Those that a product of matrices or a convolution applies to its result: "gelu" is the exact one.
FUSED_ACTIVATIONS = ("identity", "relu", "gelu", "gelu_tanh", "silu")


def is_fused(name: str, activation: str) -> None:
    """`activation` is one of FUSED_ACTIVATIONS; raises ConfigurationError."""
    if activation not in FUSED_ACTIVATIONS:
        raise ConfigurationError(f"{name} expected an activation of {', '.join(FUSED_ACTIVATIONS)}, got {activation!r}")


def has_kept(name: str, kept: Array | None, activation: str, like: str, reference: Array, shape: Shape) -> None:
    """`kept` is what the forward of a fused activation gave: None for "identity", else of `shape`, like `reference`."""
    is_fused(name, activation)
    if (kept is None) != (activation == "identity"):
        what = "no kept array for 'identity'" if kept is not None else f"the kept array of {activation!r}, got None"
        raise ConfigurationError(f"{name} expected {what}")
    if kept is not None and (kept.dtype != reference.dtype or kept.shape != shape or type(kept) is not type(reference)):
        same_dtype(name, **{like: reference, "kept": kept})
        has_shape(name, "kept", kept, shape)


BIAS_ACTIVATIONS = ("identity", "relu", "gelu_tanh", "silu")


def _has_bias(name: str, array: str, x: Array, bias: Array, activation: str) -> None:
    if activation not in BIAS_ACTIVATIONS:
        raise ConfigurationError(f"{name} expected an activation of {', '.join(BIAS_ACTIVATIONS)}, got {activation!r}")
    floating(name, array, x)
    same_dtype(name, **{array: x, "bias": bias})
    last_axis(name, array, x, bias.shape[-1] if bias.ndim else 0)
    has_shape(name, "bias", bias, x.shape[-1:])


@operation
def bias_activation(x: Array, bias: Array, activation: str) -> tuple[Array, Array | None]:
    """y = f(z) with z = x + b, in one pass over memory: what follows a matrix product that cannot do it itself.

    x: (..., C); bias: (C,); activation: one of BIAS_ACTIVATIONS, where "gelu_tanh" is `gelu` with its tanh form.
    Returns (y, kept), where kept is the array that backward needs, and no copy: y for "relu", whose sign is that of z;
    x for "gelu_tanh" and "silu", where y does not tell z, and to add x + b again costs less than to store z; None for
    "identity". Raises ShapeError, DtypeError or ConfigurationError where these do not fit.
    """
    _has_bias("bias_activation", "x", x, bias, activation)


@operation
def bias_activation_backward(
    dy: Array, kept: Array | None, bias: Array, dbias: Array | None, activation: str, accumulate: bool
) -> Array:
    """dx = dy f'(z), and db_c = sum of dx over all rows: z = x + b has slope 1 in x and in b, which all rows share.

    kept: as `bias_activation` returned it; dbias: (C,), or None where it is not wanted, in the dtype of dy, or float32
    where that is a 16-bit float; `accumulate` adds to what it holds, otherwise it is overwritten. The sum is of dx
    before it is rounded, in an order that depends on the shape alone. Returns dx; for "identity" that is dy itself.
    """
    _has_bias("bias_activation_backward", "dy", dy, bias, activation)
    if (kept is None) != (activation == "identity"):
        what = "no kept array for 'identity'" if kept is not None else f"the kept array of {activation!r}, got None"
        raise ConfigurationError(f"bias_activation_backward expected {what}")
    same_dtype("bias_activation_backward", dy=dy, kept=kept)
    has_shape("bias_activation_backward", "kept", kept, dy.shape)
    wide_dtype("bias_activation_backward", dy, dbias=dbias)
    has_shape("bias_activation_backward", "dbias", dbias, bias.shape)
    contiguous("bias_activation_backward", "dbias", dbias)
