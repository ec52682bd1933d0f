"""Linear on the CPU: NumPy's BLAS."""

import numpy as np

from bp.cpu.runtime import empty


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y = empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    np.matmul(_rows(x), weight.T, out=_rows(y))
    if bias is not None:
        np.add(y, bias, out=y)
    return y


def linear_backward_input(dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    dx = empty((*dy.shape[:-1], weight.shape[1]), dy.dtype)
    np.matmul(_rows(dy), weight, out=_rows(dx))
    return dx


def linear_backward_parameters(
    dy: np.ndarray, x: np.ndarray, dweight: np.ndarray | None, dbias: np.ndarray | None, accumulate: bool
) -> None:
    dy, x = _rows(dy), _rows(x)
    if dweight is not None:
        if accumulate:
            dweight += np.matmul(dy.T, x, out=empty(dweight.shape, dweight.dtype))
        else:
            np.matmul(dy.T, x, out=dweight)
    if dbias is not None:
        if accumulate:
            dbias += dy.sum(axis=0)
        else:
            dy.sum(axis=0, out=dbias)


def _rows(array: np.ndarray) -> np.ndarray:
    """The array as a matrix of rows; sizes are written out since -1 is ambiguous for an empty batch."""
    rows = 1
    for size in array.shape[:-1]:
        rows *= size
    return array.reshape(rows, array.shape[-1])
