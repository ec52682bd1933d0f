"""Embedding on the CPU: rows gathered by NumPy, gradients summed by a native kernel for float32."""

import numpy as np

from bp.cpu import native
from bp.cpu.runtime import empty
from bp.errors import DataError

# Gradients may overflow or be NaN, and their sums then show it, without a warning.
quiet = np.errstate(over="ignore", invalid="ignore")


def embedding(indices: np.ndarray, weight: np.ndarray, padding_idx: int | None) -> np.ndarray:
    rows = weight.shape[0]
    if indices.size and not 0 <= indices.min() <= indices.max() < rows:
        position = tuple(int(i) for i in np.argwhere((indices < 0) | (indices >= rows))[0])
        raise DataError(f"embedding expected indices in 0..{rows - 1}, got {indices[position]} at position {position}")
    y = empty((*indices.shape, weight.shape[1]), weight.dtype)
    # Indices are known to be in range, and NumPy copies the rows through a buffer where it has to check them itself.
    np.take(weight, indices.astype(np.int64, copy=False), axis=0, out=y, mode="clip")
    if padding_idx is not None:
        y[indices == padding_idx] = 0
    return y


def embedding_backward_input(dy: np.ndarray) -> np.ndarray:
    dx = empty(dy.shape[:-1], dy.dtype)
    dx[...] = 0
    return dx


@quiet
def embedding_backward_parameters(
    dy: np.ndarray, indices: np.ndarray, dweight: np.ndarray | None, padding_idx: int | None, accumulate: bool
) -> None:
    if dweight is None:
        return
    if not accumulate:
        dweight[...] = 0
    targets, terms = indices.reshape(-1).astype(np.int64, copy=False), dy.reshape(indices.size, dweight.shape[1])
    kernel = native.kernel("embedding_backward_parameters", dweight)
    if kernel is not None:
        kernel(np.ascontiguousarray(terms), np.ascontiguousarray(targets), dweight, padding_idx)
        return
    # Sorting brings the terms of a row together; a stable sort keeps them in their order.
    order = np.argsort(targets, kind="stable")
    if padding_idx is not None:
        order = order[targets[order] != padding_idx]
    if order.size:
        rows, first = np.unique(targets[order], return_index=True)
        dweight[rows] += np.add.reduceat(terms[order], first, axis=0)
