"""Shape operations on the CPU."""

from collections.abc import Sequence

import numpy as np

from bp.cpu.runtime import empty


def concatenate(first: np.ndarray, others: Sequence[np.ndarray], axis: int) -> np.ndarray:
    arrays = [first, *others]
    shape = list(first.shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    return np.concatenate(arrays, axis, out=empty(tuple(shape), first.dtype))


def split(x: np.ndarray, sizes: Sequence[int], axis: int) -> tuple[np.ndarray, ...]:
    parts, start = [], 0
    before = (slice(None),) * (axis % x.ndim)
    for size in sizes:
        source = x[(*before, slice(start, start + size))]
        part = empty(source.shape, x.dtype)
        part[...] = source
        parts.append(part)
        start += size
    return tuple(parts)


def transpose(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    turned = x.transpose(axes)
    y = empty(turned.shape, x.dtype)
    y[...] = turned
    return y
