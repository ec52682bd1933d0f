"""Argument checks shared by the operations: each raises an error with what was expected and what came."""

from bp.errors import DtypeError, ShapeError
from bp.ops.array import Array, Shape, is_floating
from bp.ops.device import device_of


def same_dtype(operation: str, **arrays: Array | None) -> None:
    """All given arrays have the element type of the first, and lie where it lies; None stands for an absent one."""
    expected = None
    for name, array in arrays.items():
        if array is None:
            continue
        if expected is None:
            first, reference, expected = name, array, array.dtype
            continue
        if type(array) is not type(reference):
            same_device(operation, name, array, first, reference)
        if array.dtype != expected:
            raise DtypeError(f"{operation} expected {name} of dtype {expected} like {first}, got {array.dtype}")


def same_device(operation: str, name: str, array: Array, first: str, reference: Array) -> None:
    """`array` lies where `reference` lies."""
    if type(array) is type(reference):
        return
    here, there = device_of(array).name, device_of(reference).name
    if here != there:
        raise DtypeError(
            f"{operation} expected {name} on device '{there}' like {first}, got one on '{here}'; "
            "bp.ops.device.find_device(name).from_host(array) brings host arrays there, to_host(array) back"
        )


def wide_dtype(operation: str, like: Array, **arrays: Array | None) -> None:
    """What a sum is kept in: float32 beside arrays of 16-bit floats, else the dtype of `like`; None is absent.

    Gradients of parameters and running statistics are such sums.
    """
    expected = "float32" if like.dtype.itemsize == 2 else like.dtype
    for name, array in arrays.items():
        if array is not None and array.dtype != expected:
            raise DtypeError(f"{operation} expected {name} of dtype {expected}, got {array.dtype}")


def has_shape(operation: str, name: str, array: Array | None, expected: Shape) -> None:
    """`array`, unless None, has exactly the shape `expected`."""
    if array is not None and array.shape != expected:
        raise ShapeError(f"{operation} expected {name} of shape {expected}, got {array.shape}")


def has_rank(operation: str, name: str, array: Array, rank: int, axes: str) -> None:
    """`array` has `rank` axes; `axes` names them, for example "(N, H, W, C)"."""
    if array.ndim != rank:
        raise ShapeError(f"{operation} expected {name} of rank {rank} {axes}, got shape {array.shape}")


def last_axis(operation: str, name: str, array: Array, size: int) -> None:
    """`array` has at least one axis and its last one has `size` elements."""
    if array.ndim == 0 or array.shape[-1] != size:
        raise ShapeError(
            f"{operation} expected {name} with {size} elements along its last axis, got shape {array.shape}"
        )


def floating(operation: str, name: str, array: Array) -> None:
    """`array` has a floating dtype."""
    if not is_floating(array.dtype):
        raise DtypeError(f"{operation} expected {name} of a floating dtype, got {array.dtype}")


def contiguous(operation: str, name: str, array: Array | None) -> None:
    """`array`, unless None, is C-contiguous, as a destination has to be that kernels write into."""
    if array is not None and not array.flags.c_contiguous:
        raise ShapeError(f"{operation} expected a C-contiguous {name}, got strides {array.strides}")
