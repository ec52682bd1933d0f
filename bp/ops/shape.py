"""Shape: arrays joined, cut and turned; nothing is computed, so the gradient is moved the same way back."""

from collections.abc import Sequence

from bp.errors import ShapeError
from bp.ops.array import Array
from bp.ops.checks import same_dtype
from bp.ops.operation import operation


def _has_axis(name: str, x: Array, axis: int) -> None:
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{name} expected arrays with an axis {axis}, got shape {x.shape}")


@operation
def concatenate(first: Array, others: Sequence[Array], axis: int) -> Array:
    """The arrays one after the other along `axis`: `first`, then `others`.

    All have one dtype and, apart from `axis`, one shape. y_(offset + i) = x_i, so dL/dx is the part of dL/dy at the
    same place: `split` of dy by the sizes. Raises ShapeError or DtypeError.
    """
    _has_axis("concatenate", first, axis)
    expected = list(first.shape)
    for number, other in enumerate(others, 1):
        same_dtype("concatenate", **{"array 0": first, f"array {number}": other})
        if other.ndim == first.ndim:
            expected[axis] = other.shape[axis]
        if other.shape != tuple(expected):
            raise ShapeError(
                f"concatenate expected arrays that differ along axis {axis} only, got {first.shape} and {other.shape}"
            )


@operation
def split(x: Array, sizes: Sequence[int], axis: int) -> tuple[Array, ...]:
    """The parts of x of the given sizes along `axis`, each in memory of its own: the backward of `concatenate`.

    Raises ShapeError where the sizes do not add up to x's.
    """
    _has_axis("split", x, axis)
    if sum(sizes) != x.shape[axis]:
        raise ShapeError(f"split expected {sum(sizes)} elements along axis {axis}, got shape {x.shape}")


@operation
def transpose(x: Array, axes: Sequence[int]) -> Array:
    """x with its axes in another order, in memory of its own: y[..., i_k, ...] = x[i], where i_k = i_axes[k].

    y has the shape (x.shape[axes[0]], x.shape[axes[1]], ...). dL/dx is `transpose` of dL/dy by the inverse order, in
    which axes[k] has position k. Raises ShapeError unless `axes` holds each of 0..ndim-1 once; on a GPU also where more
    than six axes are left after those that stay neighbours have been joined.
    """
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"transpose expected each axis of shape {x.shape} once, got the axes {tuple(axes)}")
