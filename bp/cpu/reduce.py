"""Reductions on the CPU: NumPy as the readable reference, native kernels for float32."""

import numpy as np

from bp.cpu import native
from bp.cpu.runtime import empty
from bp.ops.control import LOSS_DENOMINATOR

# Rows that `sum_rows` adds up in the precision of the array.
ROWS = 256


def accumulate(total: np.ndarray, value: np.ndarray, control: np.ndarray) -> None:
    total += float(value) * float(control[LOSS_DENOMINATOR])


def sum_rows(matrix: np.ndarray, out: np.ndarray, accumulate: bool) -> None:
    """out = the sum over the rows of `matrix` (rows, columns), or out += it; no operation, but shared by several.

    NumPy adds rows one after the other: of 65,536 equal rows in float32 the sum is off by 6e-4. Blocks of rows whose
    sums are added in float64 keep the error of a block, at any number of rows and in the time of the plain sum.
    """
    kernel = native.kernel("sum", matrix)
    if kernel is not None:
        kernel(np.ascontiguousarray(matrix), out, True, 1.0, accumulate)
        return
    rows, columns = matrix.shape
    if rows <= ROWS:
        if accumulate:
            out += matrix.sum(axis=0)
        else:
            matrix.sum(axis=0, out=out)
        return
    whole = rows - rows % ROWS
    total = matrix[:whole].reshape(whole // ROWS, ROWS, columns).sum(axis=1).sum(axis=0, dtype=np.float64)
    total += matrix[whole:].sum(axis=0)
    if accumulate:
        total += out
    out[...] = total


def argmax(x: np.ndarray) -> np.ndarray:
    return x.argmax(axis=-1, out=empty(x.shape[:-1], np.int64))


def sum(x: np.ndarray, axis: int | None) -> np.ndarray:
    kernel = native.kernel("sum", x)
    if kernel is None:
        return _rounded(x.sum(axis=axis, dtype=np.float64), x)
    y = _result(x, axis)
    kernel(np.ascontiguousarray(x), y, axis == 0, 1.0, False)
    return y


def mean(x: np.ndarray, axis: int | None) -> np.ndarray:
    kernel = native.kernel("sum", x)
    if kernel is None:
        return _rounded(x.mean(axis=axis, dtype=np.float64), x)
    y = _result(x, axis)
    kernel(np.ascontiguousarray(x), y, axis == 0, float(x.size if axis is None else x.shape[axis]), False)
    return y


def max(x: np.ndarray, axis: int | None) -> np.ndarray:
    kernel = native.kernel("max", x)
    if kernel is None:
        return _rounded(x.max(axis=axis), x)
    y = _result(x, axis)
    kernel(np.ascontiguousarray(x), y, axis == 0)
    return y


def _result(x: np.ndarray, axis: int | None) -> np.ndarray:
    """Memory for the reduction of x along the axis."""
    return empty(() if axis is None else x.shape[1:] if axis == 0 else x.shape[:-1], x.dtype)


def _rounded(result: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The result in the dtype of x, as an array also where NumPy gives a number."""
    y = empty(np.shape(result), x.dtype)
    y[...] = result
    return y
