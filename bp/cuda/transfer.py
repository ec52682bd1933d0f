"""Copies, fills and conversions of arrays on their device."""

import numpy as np

from bp.cuda.kernel import FLOATS, Source, blocks
from bp.ops.array import Array

_source = Source("transfer")
_copy_bytes = _source.kernel("copy_bytes", flops="0", bytes="2 * n", streaming=True)
_fill = _source.kernel("fill", flops="0", bytes="n * width", streaming=False)
_cast = Source("transfer_cast", FROM=FLOATS, TO=FLOATS).kernel(
    "cast", flops="0", bytes="n * (FROM + TO)", streaming=True
)


def copy_bytes(destination: Array, source: Array) -> None:
    """destination = source, of one shape and dtype."""
    _copy_bytes(blocks(-(-source.nbytes // 16)), source, destination, source.nbytes)


def fill(destination: Array, value: float) -> None:
    """Every element = value."""
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, as in a cast
        element = np.full(1, value, destination.dtype)
    bits = int.from_bytes(element.tobytes(), "little")
    width = destination.dtype.itemsize
    _fill(blocks(-(-destination.nbytes // 16)), destination, destination.size, width, bits)


def cast(destination: Array, source: Array) -> None:
    """destination = source, rounded to the dtype of the destination."""
    _cast(blocks(-(-source.size // 8)), source, destination, source.size)
