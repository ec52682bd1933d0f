"""Shape operations on the CUDA device: strided copies of bytes."""

import math
from collections.abc import Sequence

from bp.cuda.device import empty
from bp.cuda.kernel import Source, blocks
from bp.cuda.transfer import copy_bytes
from bp.errors import ShapeError
from bp.ops.array import Array, Shape

_source = Source("shape")
_copy_rows = _source.kernel("copy_rows", flops="0", bytes="2 * rows * bytes", streaming=True)
_copy_strided = _source.kernel(
    "copy_strided",
    flops="0",
    bytes="2 * width * size0 * size1 * size2 * size3 * size4 * size5",
    streaming=True,
)
_transpose_tiles = Source("shape_transpose").kernel(
    "transpose_tiles", flops="0", bytes="2 * width * rows * columns * size0 * size1 * size2 * size3"
)

_AXES = 6  # of the kernels
_TILE = 32  # rows and columns of a tile of transpose_tiles
_MAX_TASKS = 1 << 20  # blocks of a launch; where there are more tiles, a block takes several


def concatenate(first: Array, others: Sequence[Array], axis: int) -> Array:
    arrays = [first, *others]
    shape = list(first.shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    y = empty(first, tuple(shape))
    offset, step = 0, _row_bytes(y, axis)
    for array in arrays:
        bytes = _row_bytes(array, axis)
        _copy(array, y, _rows(y, axis), bytes, (0, bytes), (offset, step))
        offset += bytes
    return y


def split(x: Array, sizes: Sequence[int], axis: int) -> tuple[Array, ...]:
    parts = []
    offset, step = 0, _row_bytes(x, axis)
    for size in sizes:
        shape = list(x.shape)
        shape[axis] = size
        part = empty(x, tuple(shape))
        bytes = _row_bytes(part, axis)
        _copy(x, part, _rows(x, axis), bytes, (offset, step), (0, bytes))
        offset += bytes
        parts.append(part)
    return tuple(parts)


def _rows(x: Array, axis: int) -> int:
    """How many pieces of memory the axes from `axis` on are: one for each index of the axes before it."""
    return math.prod(x.shape[: axis % x.ndim])


def _row_bytes(x: Array, axis: int) -> int:
    """Bytes of such a piece."""
    return math.prod(x.shape[axis % x.ndim :]) * x.dtype.itemsize


def _copy(
    source: Array, destination: Array, rows: int, bytes: int, read: tuple[int, int], write: tuple[int, int]
) -> None:
    """Rows of so many bytes; read and write: (offset of the first row, bytes from one to the next)."""
    if rows == 1:  # a step of any size would do, and the copy must not be cut into smaller words for its sake
        read, write = (read[0], 0), (write[0], 0)
    words = rows * -(-bytes // 16)
    _copy_rows(blocks(words), source, destination, rows, bytes, *read, *write)


def transpose(x: Array, axes: Sequence[int]) -> Array:
    y = empty(x, tuple(x.shape[axis] for axis in axes))
    if not y.size:
        return y
    shape, order = _joined(x.shape, axes)
    rank = len(shape)
    if rank < 2:
        copy_bytes(y, x)
        return y
    if rank > _AXES:
        raise ShapeError(
            f"transpose on a GPU takes {_AXES} axes, after those that stay neighbours have been joined; {rank} are "
            f"left of shape {x.shape} with axes {tuple(axes)}"
        )
    if order[-1] == rank - 1:
        _copy_runs(x, y, shape, order)
    else:
        _turn(x, y, shape, order)
    return y


def _joined(shape: Shape, axes: Sequence[int]) -> tuple[Shape, Shape]:
    """(sizes, order) of the same transposition in as few axes as there can be: without those of size 1, and with
    neighbours joined that stay neighbours."""
    kept = [axis for axis in axes if shape[axis] != 1]
    groups: list[list[int]] = []
    remaining = [axis for axis in range(len(shape)) if shape[axis] != 1]
    position = {axis: number for number, axis in enumerate(remaining)}
    for axis in kept:
        if groups and position[axis] == position[groups[-1][-1]] + 1:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    in_source = sorted(groups)
    sizes = tuple(math.prod(shape[axis] for axis in group) for group in in_source)
    return sizes, tuple(in_source.index(group) for group in groups)


def _copy_runs(x: Array, y: Array, shape: Shape, order: Shape) -> None:
    """The last axis stays: runs of elements are moved as they are, in words of up to 16 bytes."""
    run = shape[-1] * x.dtype.itemsize
    width = next(width for width in (16, 8, 4, 2, 1) if run % width == 0)
    steps = [math.prod(shape[axis + 1 :]) * x.dtype.itemsize for axis in order]
    sizes = [shape[axis] for axis in order]
    sizes[-1] = run // width
    padding = _AXES - len(order)
    _copy_strided(blocks(x.nbytes // width), x, y, width, *[1] * padding, *sizes, *[0] * padding, *steps[:-1])


def _turn(x: Array, y: Array, shape: Shape, order: Shape) -> None:
    """The last axis moves: tiles over it and the axis that becomes the last."""
    rank = len(shape)
    source_steps = [math.prod(shape[axis + 1 :]) for axis in range(rank)]
    turned = [shape[axis] for axis in order]
    destination_steps = {axis: math.prod(turned[place + 1 :]) for place, axis in enumerate(order)}
    row, column = order[-1], rank - 1
    around = [axis for axis in range(rank) if axis not in (row, column)]
    padding = _AXES - 2 - len(around)
    sizes = [shape[axis] for axis in around]
    tiles = -(-shape[row] // _TILE) * -(-shape[column] // _TILE) * math.prod(sizes)
    _transpose_tiles(
        min(tiles, _MAX_TASKS),
        x,
        y,
        x.dtype.itemsize,
        shape[row],
        shape[column],
        source_steps[row],
        destination_steps[column],
        *[1] * padding,
        *sizes,
        *[0] * padding,
        *(source_steps[axis] for axis in around),
        *[0] * padding,
        *(destination_steps[axis] for axis in around),
    )
