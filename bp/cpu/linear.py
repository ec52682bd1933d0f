"""Linear on the CPU: NumPy's BLAS."""

import numpy as np

from bp.cpu.reduce import sum_rows
from bp.cpu.runtime import empty

# Infinite and overflowing inputs give infinities and NaN, as on every device, and no warning. A decorator that is made
# once costs half of a `with` block, which a small layer would feel.
quiet = np.errstate(over="ignore", invalid="ignore")


@quiet
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y = empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    np.dot(_rows(x), weight.T, out=_rows(y))
    if bias is not None:
        np.add(y, bias, out=y)
    return y


@quiet
def linear_backward_input(dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    dx = empty((*dy.shape[:-1], weight.shape[1]), dy.dtype)
    np.dot(_rows(dy), weight, out=_rows(dx))
    return dx


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


def _rows(array: np.ndarray) -> np.ndarray:
    """The array as a matrix of rows; sizes are written out since -1 is ambiguous for an empty batch."""
    if array.ndim == 2:
        return array
    rows = 1
    for size in array.shape[:-1]:
        rows *= size
    return array.reshape(rows, array.shape[-1])
