"""Shape: arrays joined and cut along an axis; nothing is computed, so the gradient is moved the same way back."""

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
