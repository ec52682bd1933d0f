"""Activations on the CPU: NumPy as the readable reference, native kernels for float32."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bp.cpu import native
from bp.cpu.reduce import sum_rows
from bp.cpu.runtime import empty

# Beyond it every curve here equals its asymptote in float64. An x that is multiplied by a vanishing factor is held
# inside, so that no infinity meets a zero.
_FLAT = 1000.0

# Above it log(1 + e^z) is z in float64.
_ONE_LINE = 100.0

# (1 + tanh u) / 2 = sigma(2 u), 2 u = _LINEAR x + _CUBIC x^3
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def _elementwise(reference: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Run the native kernel of the same name where it can take the arrays (float32, C-contiguous), else `reference`."""
    name, signature = reference.__name__, inspect.signature(reference)

    @functools.wraps(reference)
    def run(first: np.ndarray, *rest: Any, **named: Any) -> np.ndarray:
        if named:
            rest = signature.bind(first, *rest, **named).args[1:]
        kernel = getattr(native.kernels, name, None)
        if kernel is not None and _fits(first) and (not rest or _fits(rest[0])):
            y = empty(first.shape, first.dtype)
            kernel(first, *rest, y)
            return y
        # A diverged run shows as infinity and NaN in its results, not as warnings.
        with np.errstate(over="ignore", invalid="ignore"):
            return reference(first, *rest)

    return run


def _fits(argument: Any) -> bool:
    """Whether a kernel can take it: an aligned C-contiguous float32 array, or a setting of the activation."""
    if not isinstance(argument, np.ndarray):
        return True
    return argument.dtype == np.float32 and argument.flags.c_contiguous and argument.flags.aligned


@_elementwise
def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=_like(x))


@_elementwise
def relu_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _where(y <= 0, 0, _copy(dy))


@_elementwise
def leaky_relu(x: np.ndarray, negative_slope: float) -> np.ndarray:
    if negative_slope == 0:
        return relu(x)
    return _where(x > 0, x, np.multiply(x, negative_slope, out=_like(x)))


@_elementwise
def leaky_relu_backward(dy: np.ndarray, y: np.ndarray, negative_slope: float) -> np.ndarray:
    dx = _copy(dy)
    return np.multiply(dx, negative_slope, out=dx, where=y <= 0)


@_elementwise
def elu(x: np.ndarray, alpha: float) -> np.ndarray:
    y = np.minimum(x, 0, out=_like(x))
    np.expm1(y, out=y)
    y *= alpha
    return _where(x > 0, x, y)


@_elementwise
def elu_backward(dy: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    slope = _where(y > 0, 1, np.add(y, alpha, out=_like(y)))
    return np.multiply(dy, slope, out=slope)


@_elementwise
def gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    y = _sigmoid(_tanh_argument(x)) if approximate == "tanh" else _normal_probability(x)
    y *= np.maximum(x, -_FLAT, out=_like(x))
    return y


@_elementwise
def gelu_backward(dy: np.ndarray, x: np.ndarray, approximate: str) -> np.ndarray:
    held = np.clip(x, -_FLAT, _FLAT)
    if approximate == "tanh":
        s, ds = _sigmoid_and_slope(_tanh_argument(x))
        slope = s + held * ds * (_LINEAR + 3 * _CUBIC * held * held)
    else:
        density = np.exp(-0.5 * held * held) * (1 / math.sqrt(2 * math.pi))
        slope = _normal_probability(x) + held * density
    return np.multiply(dy, slope, out=_like(x))


@_elementwise
def silu(x: np.ndarray) -> np.ndarray:
    y = _sigmoid(x)
    y *= np.maximum(x, -_FLAT, out=_like(x))
    return y


@_elementwise
def silu_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    s, ds = _sigmoid_and_slope(x)
    slope = np.clip(x, -_FLAT, _FLAT, out=_like(x))
    slope *= ds
    slope += s
    return np.multiply(dy, slope, out=slope)


@_elementwise
def sigmoid(x: np.ndarray) -> np.ndarray:
    return _sigmoid(x)


@_elementwise
def sigmoid_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx = np.subtract(1, y, out=_like(y))
    dx *= y
    dx *= dy
    return dx


@_elementwise
def tanh(x: np.ndarray) -> np.ndarray:
    return np.tanh(x, out=_like(x))


@_elementwise
def tanh_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx = np.multiply(y, y, out=_like(y))
    np.subtract(1, dx, out=dx)
    dx *= dy
    return dx


@_elementwise
def softplus(x: np.ndarray, beta: float, threshold: float) -> np.ndarray:
    z = np.multiply(x, beta, out=_like(x))
    y = _decay(z)
    np.log1p(y, out=y)
    y += np.maximum(z, 0, out=_like(x))
    y /= beta
    return _where(z > min(threshold, _ONE_LINE), x, y)


@_elementwise
def softplus_backward(dy: np.ndarray, x: np.ndarray, beta: float, threshold: float) -> np.ndarray:
    z = np.multiply(x, beta, out=_like(x))
    slope = _where(z > min(threshold, _ONE_LINE), 1, _sigmoid(z))
    return np.multiply(dy, slope, out=slope)


@_elementwise
def mish(x: np.ndarray) -> np.ndarray:
    n, d, _, _ = _mish_parts(x)
    y = np.divide(n, d, out=_like(x))
    y *= np.maximum(x, -_FLAT, out=_like(x))
    return y


@_elementwise
def mish_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    n, d, rest, sigma = _mish_parts(x)
    slope = n / d + np.clip(x, -_FLAT, _FLAT) * rest * (2 - rest) * sigma
    return np.multiply(dy, slope, out=_like(x))


@_elementwise
def hardswish(x: np.ndarray) -> np.ndarray:
    y = np.clip(x, -3, 3, out=_like(x))
    y *= np.add(y, 3, out=_like(x))
    y *= 1 / 6
    return _where(x > 3, x, y)


@_elementwise
def hardswish_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    dx = np.clip(x, -3, 3, out=_like(x))
    dx /= 3
    dx += 0.5
    dx *= dy
    _where(x < -3, 0, dx)
    return _where(x > 3, dy, dx)


@_elementwise
def softmax(x: np.ndarray) -> np.ndarray:
    y = np.subtract(x, _largest(x), out=_like(x))
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


@_elementwise
def softmax_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx = np.multiply(dy, y, out=_like(y))
    np.subtract(dy, dx.sum(axis=-1, keepdims=True), out=dx)
    dx *= y
    return dx


@_elementwise
def log_softmax(x: np.ndarray) -> np.ndarray:
    y = np.subtract(x, _largest(x), out=_like(x))
    y -= np.log(np.exp(y, out=_like(y)).sum(axis=-1, keepdims=True))
    return y


@_elementwise
def log_softmax_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx = np.exp(y, out=_like(y))
    dx *= dy.sum(axis=-1, keepdims=True)
    return np.subtract(dy, dx, out=dx)


@_elementwise
def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.add(a, b, out=_like(a))


# By the names of bp.ops.activation.FUSED_ACTIVATIONS: f of those that keep its argument, and each backward (dy, kept).
_KEEPING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda z: gelu(z, "none"),
    "gelu_tanh": lambda z: gelu(z, "tanh"),
    "silu": silu,
}
_BACKWARDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "relu": relu_backward,
    "gelu": lambda dy, z: gelu_backward(dy, z, "none"),
    "gelu_tanh": lambda dy, z: gelu_backward(dy, z, "tanh"),
    "silu": silu_backward,
}


def activate(z: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(f(z), what backward needs: None for "identity", f(z) for "relu", else z); z is used up where it is not kept."""
    if activation == "identity":
        return z, None
    if activation == "relu":
        y = np.maximum(z, 0, out=z)
        return y, y
    return _KEEPING[activation](z), z


def activate_backward(dy: np.ndarray, kept: np.ndarray | None, activation: str) -> np.ndarray:
    """dy f'(z); for "identity" dy itself."""
    return dy if kept is None else _BACKWARDS[activation](dy, kept)


def bias_activation(x: np.ndarray, bias: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray | None]:
    kernel = getattr(native.kernels, "bias_activation", None)
    if kernel is not None and _fits(x) and _fits(bias):
        y = empty(x.shape, x.dtype)
        kernel(x, bias, activation, y)
    else:
        z = _with_bias(x, bias)
        y, _ = activate(z, activation)
    if activation == "identity":
        return y, None
    return y, y if activation == "relu" else x


def bias_activation_backward(
    dy: np.ndarray,
    kept: np.ndarray | None,
    bias: np.ndarray,
    dbias: np.ndarray | None,
    activation: str,
    accumulate: bool,
) -> np.ndarray:
    if kept is not None and activation != "relu":  # the sum, which is not stored
        kept = _with_bias(kept, bias)
    dx = activate_backward(dy, kept, activation)
    if dbias is not None:
        sum_rows(dx.reshape(math.prod(dx.shape[:-1]), dx.shape[-1]), dbias, accumulate)
    return dx


# What the formulas share ----------------------------------------------------------------------------------------------


def _like(x: np.ndarray) -> np.ndarray:
    return empty(x.shape, x.dtype)


def _with_bias(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add(x, bias, out=_like(x))


def _copy(x: np.ndarray) -> np.ndarray:
    y = _like(x)
    y[...] = x
    return y


def _where(condition: np.ndarray, value: np.ndarray | float, y: np.ndarray) -> np.ndarray:
    """y, with `value` put where the condition holds."""
    np.copyto(y, value, where=condition)
    return y


def _decay(x: np.ndarray) -> np.ndarray:
    """e^-|x|, in [0, 1]: it never overflows."""
    e = np.abs(x, out=_like(x))
    np.negative(e, out=e)
    return np.exp(e, out=e)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), and for x < 0 as e^x / (1 + e^x)."""
    e = _decay(x)
    y = np.add(e, 1, out=_like(x))
    return np.divide(_where(x >= 0, 1, e), y, out=y)


def _sigmoid_and_slope(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sigma(x) and sigma (1 - sigma) = e / (1 + e)^2 with e = e^-|x|, in which nothing cancels."""
    e = _decay(x)
    large = 1 / (1 + e)
    return np.where(x >= 0, large, e * large), e * large * large


def _tanh_argument(x: np.ndarray) -> np.ndarray:
    held = np.clip(x, -_FLAT, _FLAT)
    return held * (_LINEAR + _CUBIC * held * held)


def _normal_probability(x: np.ndarray) -> np.ndarray:
    """Phi(x) = erfc(-x / sqrt 2) / 2: in float64 from the C library, element by element; in float32 vectorised."""
    if x.dtype == np.float64:
        y = _like(x)
        y[...] = _erfc(x * -math.sqrt(0.5))
        y *= 0.5
        return y
    a = np.minimum(np.abs(x), _FLAT)
    t = 1 / (1 + 0.27 * a)
    polynomial = np.full_like(t, _TAIL[-1])
    for coefficient in _TAIL[-2::-1]:
        polynomial *= t
        polynomial += coefficient
    tail = np.multiply(polynomial, np.exp(-0.5 * a * a), out=_like(x))
    tail *= t
    return _where(x >= 0, 1 - tail, tail)


_erfc = np.frompyfunc(math.erfc, 1, 1)

# With t = 1 / (1 + 0.27 a), P(X > a) = e^(-a^2 / 2) t polynomial(t) for a normal X and a >= 0, to a relative error of
# 3e-8; fitted by reweighted least squares. The form is that of Hastings, Approximations for Digital Computers (1955).
_TAIL = (
    0.107721004,
    0.107537262,
    0.101848640,
    0.0719080081,
    0.108143329,
    -0.0696518138,
    0.170157146,
    -0.126659176,
    0.0289956126,
)


def _mish_parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """n, d, 1 - m and sigma(x), where m = tanh(log(1 + e^x)) = n / d, in powers of e^-|x|."""
    e = _decay(x)
    q, r = np.where(x >= 0, 1, e), np.where(x >= 0, e, 1)
    n = q * q + 2 * e
    d = n + 2 * r * r
    return n, d, 2 * r * r / d, q / (1 + e)


def _largest(x: np.ndarray) -> np.ndarray:
    """The maximum along the last axis, kept as an axis of size 1."""
    return x.max(axis=-1, keepdims=True, initial=-np.inf)
