"""Reductions on the CUDA device: one launch where the array is small, two levels where it is large.

How a long sum is cut into parts follows from its shape alone, so the order of additions never changes.
"""

from bp.cuda.device import device_of, empty
from bp.cuda.kernel import FLOATS, THREADS, Source
from bp.ops.array import Array

_source = Source("reduce", T=FLOATS)
_accumulate = _source.kernel("accumulate", flops="2", bytes="T + 24")
_sum_rows = _source.kernel("sum_rows", flops="n", bytes="n * T")
_max_rows = _source.kernel("max_rows", flops="n", bytes="n * T")
_argmax = _source.kernel("argmax", flops="n", bytes="n * T")
_sum_columns = _source.kernel("sum_columns", flops="rows * columns", bytes="rows * columns * T")
_max_columns = _source.kernel("max_columns", flops="rows * columns", bytes="rows * columns * T")
_sum_parts = Source("reduce_parts").kernel("sum_parts", flops="rows * columns", bytes="rows * columns * 8")

WARP = 32
LANES_END = 1024  # columns up to which a part of a warp works on a row, and not a block
ONE_BLOCK = 32768  # elements that one block reduces by itself
_MOST_PARTS = 1024  # of a reduction in two levels: about as many blocks as run at once on the largest GPU
_LEAST_ROWS = 32  # that a thread reads before the rows are split among more blocks


def accumulate(total: Array, value: Array, control: Array) -> None:
    _accumulate(1, total, value, control)


def argmax(x: Array) -> Array:
    index = empty(x, x.shape[:-1], "int64")
    blocks, lanes = row_groups(index.size, x.shape[-1], x.dtype.itemsize)
    _argmax(blocks, x, index, x.size, x.shape[-1], lanes)
    return index


def sum(x: Array, axis: int | None) -> Array:
    return _scaled_sum(x, axis, 1.0)


def mean(x: Array, axis: int | None) -> Array:
    return _scaled_sum(x, axis, 1.0 / (x.size if axis is None else x.shape[axis]))


def max(x: Array, axis: int | None) -> Array:
    y = empty(x, _shape_without(x, axis))
    if not y.size:
        return y
    if axis == 0:
        rows, columns = x.shape[0], y.size
        width, tiles = _tiles(columns, x.dtype.itemsize)
        splits, chunk = _splits(rows, width, tiles)
        parts = y if splits == 1 else empty(x, (splits, columns))
        _max_columns((tiles, splits), x, parts, rows, columns, chunk, width)
        if splits > 1:
            _max_columns(tiles, parts, y, splits, columns, splits, width)
    elif axis is None and x.size > ONE_BLOCK:
        length = _part(x.size)
        parts = empty(x, (-(-x.size // length),))
        _max_rows(parts.size, x, parts, x.size, length, THREADS)
        _max_rows(1, parts, y, parts.size, parts.size, THREADS)
    else:
        columns = x.size if axis is None else x.shape[-1]
        blocks, lanes = row_groups(y.size, columns, x.dtype.itemsize)
        _max_rows(blocks, x, y, x.size, columns, lanes)
    return y


def sum_rows(matrix: Array, out: Array, accumulate: bool) -> None:
    """out = the sum over the rows of `matrix` (rows, columns), or out += it; no operation, but shared by several.

    out: (columns,), float32.
    """
    _sum_columns_into(matrix, matrix.shape[0], out, 1.0, accumulate)


def sums_of_parts(x: Array) -> Array:
    """The sums of parts of all the elements of `x`, at least one, in float64: the first level of a long sum."""
    length = _part(x.size)
    parts = empty(x, (-(-x.size // length),), "float64")
    _sum_rows(parts.size, x, parts, None, x.size, length, 1.0, THREADS)
    return parts


def row_groups(rows: int, columns: int, itemsize: int, threads: int = THREADS) -> tuple[int, int]:
    """(blocks, threads that work on a row) for rows of so many elements, by blocks of `threads`.

    A short row gets as many threads of a warp, a power of two, as it has vectors of 16 bytes, or elements before and
    behind these; a long row gets a block.
    """
    if columns > LANES_END:
        return rows, threads
    vector = 16 // itemsize
    edges = min(columns, 2 * (vector - 1)) if columns % vector else 1
    lanes = _power_of_two(edges if edges > columns // vector else columns // vector, WARP)
    return -(-rows * lanes // threads), lanes


def _power_of_two(least: int, most: int) -> int:
    """The smallest that is not below `least`, or `most`."""
    return min(1 << (least - 1).bit_length(), most)


def _shape_without(x: Array, axis: int | None) -> tuple[int, ...]:
    shape: tuple[int, ...] = () if axis is None else x.shape[:-1] if axis == -1 else x.shape[1:]
    return shape


def _scaled_sum(x: Array, axis: int | None, scale: float) -> Array:
    y = empty(x, _shape_without(x, axis), "float32")
    if not x.size:
        device_of(y).fill(y, 0)
    elif axis == 0:
        _sum_columns_into(x, x.shape[0], y, scale, False)
    elif axis is None and x.size > ONE_BLOCK:
        parts = sums_of_parts(x)
        _sum_parts(1, parts, y, parts.size, 1, scale, 0, 1)
    else:
        columns = x.size if axis is None else x.shape[-1]
        blocks, lanes = row_groups(y.size, columns, x.dtype.itemsize)
        _sum_rows(blocks, x, None, y, x.size, columns, scale, lanes)
    return y


def _sum_columns_into(matrix: Array, rows: int, out: Array, scale: float, add: bool) -> None:
    """out = scale * the sum over the rows of `matrix`, taken as (rows, out.size), or out += it."""
    columns = out.size
    if not matrix.size:
        if not add:
            device_of(out).fill(out, 0)
        return
    width, tiles = _tiles(columns, matrix.dtype.itemsize)
    splits, chunk = _splits(rows, width, tiles)
    if splits == 1:
        _sum_columns((tiles, 1), matrix, None, out, rows, columns, rows, scale, add, width)
        return
    parts = empty(matrix, (splits, columns), "float64")
    _sum_columns((tiles, splits), matrix, parts, None, rows, columns, chunk, 1.0, 0, width)
    width = _power_of_two(columns, WARP)
    _sum_parts(-(-columns // width), parts, out, splits, columns, scale, add, width)


def _part(n: int) -> int:
    """Elements of each part of a long sum: whole vectors, so that all parts are aligned as the first."""
    return -(-n // _MOST_PARTS // 64) * 64


def _tiles(columns: int, itemsize: int) -> tuple[int, int]:
    """(threads side by side, tiles) over columns of which each thread takes 16 bytes."""
    vector = 16 // itemsize
    width = _power_of_two(-(-columns // vector), WARP)
    return width, -(-columns // (vector * width))


def _splits(rows: int, width: int, tiles: int) -> tuple[int, int]:
    """(splits, rows of each) so that blocks fill the GPU, and each thread still has rows enough to read."""
    most = _MOST_PARTS // tiles or 1
    splits = min(rows // (THREADS // width * _LEAST_ROWS) or 1, most)
    chunk = -(-rows // splits)
    return -(-rows // chunk), chunk
