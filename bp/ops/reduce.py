"""Reductions: sums that end in a number a person reads, or in the clip factor of a step."""

from bp.errors import ShapeError
from bp.ops.array import Array
from bp.ops.checks import floating
from bp.ops.operation import operation


@operation
def accumulate(total: Array, value: Array, control: Array) -> None:
    """total += value * control[LOSS_DENOMINATOR], in place: a mean loss goes into a running sum on the device.

    total: float64 of shape (); value: any float dtype, shape (); control: the block of `bp.ops.control`. Reading a
    metric costs a synchronisation on a GPU, so the loop accumulates every step and reads only when it logs.
    """


@operation
def argmax(x: Array) -> Array:
    """The index of the largest element along the last axis: int64 of shape x.shape[:-1]; ties take the lowest.

    NaN counts as the largest, as in NumPy and PyTorch.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ShapeError(f"argmax expected x with at least one element along its last axis, got shape {x.shape}")


@operation
def sum(x: Array, axis: int | None) -> Array:
    """The sum over all elements (axis None), along the last axis (-1) or down the first (0).

    x: floating, of any shape; result: of the shape without that axis, of the dtype of x, float32 where that is a 16-bit
    float. Terms are added up in float64 and rounded once; on the CPU eight of them at a time may be added in float32
    before. A sum of nothing is 0.
    """
    _has_axis("sum", x, axis)


@operation
def mean(x: Array, axis: int | None) -> Array:
    """The mean over all elements, along the last axis or down the first; otherwise as `sum`.

    Raises ShapeError where there is nothing to average.
    """
    _has_axis("mean", x, axis)
    _has_elements("mean", x, axis)


@operation
def max(x: Array, axis: int | None) -> Array:
    """The largest element of all (axis None), along the last axis (-1) or down the first (0); NaN where there is one.

    x: floating, of any shape; result: of the shape without that axis and the dtype of x. Raises ShapeError where there
    is nothing to choose from.
    """
    _has_axis("max", x, axis)
    _has_elements("max", x, axis)


def _has_axis(operation: str, x: Array, axis: int | None) -> None:
    floating(operation, "x", x)
    if axis not in (None, 0, -1) or (axis is not None and x.ndim == 0):
        raise ShapeError(f"{operation} expected axis None, 0 or -1 of x, got {axis} for shape {x.shape}")


def _has_elements(operation: str, x: Array, axis: int | None) -> None:
    if x.size == 0 if axis is None else x.shape[axis] == 0:
        raise ShapeError(f"{operation} expected x with at least one element along axis {axis}, got shape {x.shape}")
