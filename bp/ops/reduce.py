"""Reductions: sums that end in a number a person reads, or in the clip factor of a step."""

from bp.errors import ShapeError
from bp.ops.array import Array
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
