"""Linear on the CPU: NumPy's BLAS."""

import numpy as np

from bp.cpu.activation import activate, activate_backward, bias_activation
from bp.cpu.dropout import dropout, dropout_backward
from bp.cpu.reduce import sum_rows
from bp.cpu.runtime import empty
from bp.ops.dropout import Mask

# Infinite and overflowing inputs give infinities and NaN, as on every device, and no warning. A decorator that is made
# once costs half of a `with` block, which a small layer would feel.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y = _product(x, weight.T)
    return y if bias is None else np.add(y, bias, out=y)


@quiet
def linear_activation(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    activation: str,
    keep: bool,
    mask: Mask | None,
    residual: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    z = _product(x, weight.T)
    if activation == "relu" and bias is not None:  # nobody needs the sum in front of it: one pass adds and cuts off
        y, kept = bias_activation(z, bias, activation)
    else:
        y, kept = activate(z if bias is None else np.add(z, bias, out=z), activation)
    if mask is not None:
        y = dropout(y, mask.control, mask.call_site, mask.first_element, mask.rate)
        kept = y if activation == "relu" else kept
    return y if residual is None else np.add(y, residual, out=y), kept if keep else None


def linear_activation_backward(
    dy: np.ndarray, kept: np.ndarray | None, activation: str, mask: Mask | None
) -> np.ndarray:
    if mask is None:
        return activate_backward(dy, kept, activation)
    if mask.in_kept:
        return _scaled(activate_backward(dy, kept, activation), mask.scale)
    dy = dropout_backward(dy, mask.control, mask.call_site, mask.first_element, mask.rate)
    return activate_backward(dy, kept, activation)


@quiet
def linear_backward_input(dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return _product(dy, weight)


def linear_backward_input_activation(
    dy: np.ndarray, weight: np.ndarray, kept: np.ndarray | None, activation: str, mask: Mask | None
) -> np.ndarray:
    return linear_activation_backward(linear_backward_input(dy, weight), kept, activation, mask)


@quiet
def linear_backward_parameters(
    dy: np.ndarray, x: np.ndarray, dweight: np.ndarray | None, dbias: np.ndarray | None, accumulate: bool
) -> None:
    dy, x = _rows(dy), _rows(x)
    if dweight is not None:
        if accumulate:
            dweight += np.dot(dy.T, x, out=empty(dweight.shape, dweight.dtype))
        else:
            np.dot(dy.T, x, out=dweight)
    if dbias is not None:
        sum_rows(dy, dbias, accumulate)


def _product(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The last axis of x times a matrix (in, out)."""
    y = empty((*x.shape[:-1], matrix.shape[1]), x.dtype)
    np.dot(_rows(x), matrix, out=_rows(y))
    return y


@quiet
def _scaled(y: np.ndarray, scale: float) -> np.ndarray:
    return np.multiply(y, scale, out=y)


def _rows(array: np.ndarray) -> np.ndarray:
    """The array as a matrix of rows; sizes are written out since -1 is ambiguous for an empty batch."""
    if array.ndim == 2:
        return array
    rows = 1
    for size in array.shape[:-1]:
        rows *= size
    return array.reshape(rows, array.shape[-1])
