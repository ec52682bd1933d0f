"""Embedding on the CUDA device: a gather, and a gradient that is summed in the order of the positions.

An index outside the table gives a row of NaN, and its gradient is dropped.
"""

import numpy as np

from bp.cuda.device import device_of, empty
from bp.cuda.elements import channel_groups, lanes_for
from bp.cuda.kernel import FLOATS, THREADS, Source, blocks
from bp.errors import ShapeError
from bp.ops.array import Array

_source, _sort, _combine = (
    Source("embedding", T=FLOATS),
    Source("embedding_sort"),
    Source("embedding_combine"),
)
_forward = _source.kernel(
    "embedding_forward",
    flops="0",
    bytes="positions * (index_bytes + channels * T) + min(positions, rows) * channels * T",
    streaming=True,
)
_gradient_by_row = _source.kernel(
    "gradient_by_row",
    flops="positions * channels",
    bytes="positions * (index_bytes + channels * T) + rows * channels * 4",
)
_gradient_by_tile = _source.kernel(
    "gradient_by_tile",
    flops="positions * channels",
    bytes="positions * (8 + channels * T) + (min(positions, rows) if accumulate else rows) * channels * 4",
    streaming=True,
)
_count_digits = _sort.kernel("count_digits", flops="0", bytes="positions * (4 if shift else index_bytes)")
_scatter_by_digit = _sort.kernel(
    "scatter_by_digit", flops="0", bytes="positions * (16 if shift else index_bytes + 8) + tiles * 1024"
)
_combine_tiles = _combine.kernel(
    "combine_tiles", flops="positions // tile * channels", bytes="positions // tile * 2 * channels * 4"
)

_WARP = 32
_DIGIT_BITS = 8  # of a pass of the sort
# As the kernels have them.
_SPAN = 4096  # positions that a block of the sort takes at once
_ROWS_A_BLOCK = 32  # that a block of gradient_by_tile clears
_MATCHES = 1024  # positions that gradient_by_row takes at most

_MAX_TILES = 512  # of the sort: each block of it reads the counts of all

# Up to so many positions, and so many blocks of one row, each row searches the indices itself: one launch where sorting
# takes at least three. Beyond a few blocks for each multiprocessor that costs more than the launches.
_SEARCHED_POSITIONS = _MATCHES
_SEARCHED_BLOCKS = 4096

_LARGEST = (1 << 32) - 1  # of the sort's 32-bit positions and keys


def embedding(indices: Array, weight: Array, padding_idx: int | None) -> Array:
    rows, channels = weight.shape
    y = empty(weight, (*indices.shape, channels))
    if not y.size:
        return y
    lanes = lanes_for(channel_groups(channels, weight.dtype.itemsize))
    grid = blocks(indices.size, THREADS // lanes)
    _forward(grid, indices, weight, y, indices.size, rows, channels, _padding(padding_idx), *_kind(indices), lanes)
    return y


def embedding_backward_input(dy: Array) -> Array:
    dx = empty(dy, dy.shape[:-1])
    device_of(dx).fill(dx, 0)
    return dx


def embedding_backward_parameters(
    dy: Array, indices: Array, dweight: Array | None, padding_idx: int | None, accumulate: bool
) -> None:
    if dweight is None or not dweight.size:
        return
    if not dy.size:
        if not accumulate:
            device_of(dweight).fill(dweight, 0)
        return
    rows, channels = dweight.shape
    if rows > _LARGEST:
        raise ShapeError(f"embedding expected a table of at most {_LARGEST} rows on a GPU, got {rows}")
    terms, targets = dy.reshape(-1, channels), indices.reshape(-1)
    searched = rows * -(-channel_groups(channels, dy.dtype.itemsize) // _WARP)
    if targets.size <= _SEARCHED_POSITIONS and searched <= _SEARCHED_BLOCKS:
        sizes = (targets.size, rows, channels, _padding(padding_idx), *_kind(targets))
        _gradient_by_row(searched, terms, targets, dweight, *sizes, accumulate)
        return
    for begin in range(0, targets.size, _LARGEST):
        part = slice(begin, min(begin + _LARGEST, targets.size))
        _gradient_by_sorting(terms[part], targets[part], dweight, padding_idx, accumulate or begin > 0)


def _gradient_by_sorting(dy: Array, indices: Array, dweight: Array, padding_idx: int | None, accumulate: bool) -> None:
    positions = indices.size
    rows, channels = dweight.shape
    keys, order = _sorted(indices, rows, padding_idx)
    groups = channel_groups(channels, dy.dtype.itemsize)
    tile = _tile(positions, groups)
    tiles = -(-positions // tile)
    partials = empty(dweight, (tiles, 2, channels))
    sums, cleared = blocks(tiles * groups), 0 if accumulate else -(-rows // _ROWS_A_BLOCK)
    sizes = (positions, rows, channels, tile, accumulate)
    _gradient_by_tile(sums + cleared, dy, keys, order, dweight, partials, *sizes, sums)
    if tiles > 1:
        warps = tiles * -(-channel_groups(channels, 4) // _WARP)
        _combine_tiles(blocks(warps, THREADS // _WARP), keys, partials, dweight, *sizes)


def _sorted(indices: Array, rows: int, padding_idx: int | None) -> tuple[Array, Array]:
    """(keys, positions) in the order of the keys, which are the indices, and `rows` where a position does not count."""
    positions = indices.size
    tile = _SPAN * -(-positions // (_SPAN * _MAX_TILES))
    tiles = -(-positions // tile)
    counts = empty(indices, (tiles, 1 << _DIGIT_BITS), np.uint32)
    # Two pairs of arrays: a pass reads one and writes the other.
    pairs = [tuple(empty(indices, (positions,), np.uint32) for _ in range(2)) for _ in range(2)]
    keys, order = None, None
    for number, shift in enumerate(range(0, rows.bit_length(), _DIGIT_BITS)):
        source = (rows, _padding(padding_idx), *_kind(indices), shift, tile)
        _count_digits(tiles, indices, keys, counts, positions, *source)
        next_keys, next_order = pairs[number % 2]
        _scatter_by_digit(tiles, indices, keys, order, counts, next_keys, next_order, positions, *source, tiles)
        keys, order = next_keys, next_order
    return keys, order


def _tile(positions: int, groups: int) -> int:
    """Sorted positions that a thread sums: a power of two, 16 to 256, the largest that leaves 2^18 threads to a GPU."""
    tile = 16
    while tile < 256 and positions * groups // (2 * tile) >= 1 << 18:
        tile *= 2
    return tile


def _padding(padding_idx: int | None) -> int:
    return -1 if padding_idx is None else padding_idx


def _kind(indices: Array) -> tuple[int, int]:
    """(bytes, whether signed) of the integers."""
    return indices.dtype.itemsize, indices.dtype.kind == "i"
