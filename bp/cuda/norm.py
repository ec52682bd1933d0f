"""Normalisation on the CUDA device: layer and RMS norm by rows, group and batch norm by channels.

Everything here is chosen by shape and dtype alone, so the same sums are added in the same order on every GPU.
"""

import math
from dataclasses import dataclass
from functools import cache

from bp.cuda.device import empty, empty_like
from bp.cuda.kernel import C_NAMES, FLOATS, Kernel, Source
from bp.ops.array import Array, Shape

# Layer and RMS norm, forward ------------------------------------------------------------------------------------------

_forward = Source("norm_layer", T=FLOATS)


def _row_kernel(name: str) -> Kernel:
    return _forward.kernel(
        name,
        flops="8 * rows * columns",
        bytes="(2 + 2 * added) * rows * columns * T + (1 + centred) * rows * 4",
        streaming=True,
    )


_BYTES_HELD = 64  # of a row by each thread: VECTORS of norm_layer.cu
_LANES_THREADS = 128  # of a block whose teams are a part of a warp
_norm_lanes, _norm_long = _row_kernel("norm_rows_lanes"), _row_kernel("norm_rows_long")
_norm_blocks = {threads: _row_kernel(f"norm_rows_{threads}") for threads in (128, 256, 512)}
_MAX_BLOCKS = 1 << 16  # then a team takes several rows


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, axes: int, eps: float) -> tuple[Array, Array, Array]:
    y, _, mean, rstd = _normalise_rows(x, None, gamma, beta, axes, eps, centred=True)
    return y, mean, rstd


def rms_norm(x: Array, gamma: Array | None, axes: int, eps: float) -> tuple[Array, Array]:
    y, _, _, rstd = _normalise_rows(x, None, gamma, None, axes, eps, centred=False)
    return y, rstd


def add_layer_norm(
    x: Array, residual: Array, gamma: Array | None, beta: Array | None, axes: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    y, total, mean, rstd = _normalise_rows(x, residual, gamma, beta, axes, eps, centred=True)
    return y, total, mean, rstd


def add_rms_norm(x: Array, residual: Array, gamma: Array | None, axes: int, eps: float) -> tuple[Array, Array, Array]:
    y, total, _, rstd = _normalise_rows(x, residual, gamma, None, axes, eps, centred=False)
    return y, total, rstd


def _normalise_rows(
    x: Array, residual: Array | None, gamma: Array | None, beta: Array | None, axes: int, eps: float, *, centred: bool
) -> tuple[Array, Array, Array, Array]:
    """(y, total, mean, rstd); total is None without a residual, mean where the rows are not centred."""
    leading = x.shape[: x.ndim - axes]
    rows, columns = math.prod(leading), math.prod(x.shape[x.ndim - axes :])
    y, rstd = empty_like(x), empty(x, leading, "float32")
    total = None if residual is None else empty_like(x)
    mean = empty(x, leading, "float32") if centred else None
    arguments = (
        *(x, residual, gamma, beta, total, y, mean, rstd),
        *(rows, columns, eps, centred, residual is not None),
    )
    held = _BYTES_HELD // x.dtype.itemsize
    if columns <= 32 * held:
        lanes = _power_of_two(-(-columns // held))
        _norm_lanes(min(-(-rows * lanes // _LANES_THREADS), _MAX_BLOCKS), *arguments, lanes)
    else:
        kernel = next((k for threads, k in _norm_blocks.items() if columns <= threads * held), _norm_long)
        kernel(min(rows, _MAX_BLOCKS), *arguments)
    return y, total, mean, rstd


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


# Layer and RMS norm, backward -----------------------------------------------------------------------------------------

_backward = Source("norm_layer_backward", T=FLOATS)


def _row_kernel_backward(name: str) -> Kernel:
    return _backward.kernel(
        name,
        flops="16 * rows * columns",
        bytes="(3 + added) * rows * columns * T + (1 + centred) * rows * 4",
        streaming=True,
    )


def _row_sums_kernel(name: str) -> Kernel:
    return _backward.kernel(name, flops="6 * rows * columns", bytes="2 * rows * columns * T + (4 + centred) * rows * 4")


_COLUMNS_HELD = 16  # of a row by each thread: COLUMNS of norm_layer_backward.cu
_STRIP_THREADS = 256
_backward_lanes = _row_kernel_backward("norm_rows_backward_lanes")
_backward_blocks = {threads: _row_kernel_backward(f"norm_rows_backward_{threads}") for threads in (128, 256, 512)}
_row_sums_lanes, _row_sums_block = _row_sums_kernel("norm_row_sums_lanes"), _row_sums_kernel("norm_row_sums_block")
_backward_strips = _backward.kernel(
    "norm_rows_backward_strips",
    flops="10 * rows * columns",
    bytes="(3 + added) * rows * columns * T + (4 + centred) * rows * 4",
    streaming=True,
)
_sum_partials = Source("norm_partials").kernel(
    "sum_partials", flops="2 * count * columns", bytes="2 * (count + 1) * columns * 4"
)

# Blocks that write partial sums: as many as are at work at once on a GPU of 132 multiprocessors, by threads of a block.
# Each takes 4 steps at least, or the partials would weigh as much as the rows.
_SUMMING_BLOCKS = {128: 528, 256: 264, 512: 132}
_LEAST_STEPS = 4


def layer_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
) -> Array:
    return _rows_backward(dy, None, x, gamma, mean, rstd, dgamma, dbeta, accumulate)


def rms_norm_backward(
    dy: Array, x: Array, gamma: Array | None, rstd: Array, dgamma: Array | None, accumulate: bool
) -> Array:
    return _rows_backward(dy, None, x, gamma, None, rstd, dgamma, None, accumulate)


def add_layer_norm_backward(
    dy: Array,
    dtotal: Array | None,
    total: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
) -> Array:
    return _rows_backward(dy, dtotal, total, gamma, mean, rstd, dgamma, dbeta, accumulate)


def add_rms_norm_backward(
    dy: Array,
    dtotal: Array | None,
    total: Array,
    gamma: Array | None,
    rstd: Array,
    dgamma: Array | None,
    accumulate: bool,
) -> Array:
    return _rows_backward(dy, dtotal, total, gamma, None, rstd, dgamma, None, accumulate)


def _rows_backward(
    dy: Array,
    dtotal: Array | None,
    x: Array,
    gamma: Array | None,
    mean: Array | None,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
) -> Array:
    rows, columns = rstd.size, math.prod(x.shape[rstd.ndim :])
    dx = empty_like(x)
    summing = dgamma is not None or dbeta is not None
    flags = mean is not None, dtotal is not None
    vector = 16 // x.dtype.itemsize
    partials = None
    count = 0

    def blocks(rows_at_once: int, most: int) -> int:
        """How many walk the rows; their partial sums are made room for."""
        nonlocal partials, count
        if not summing:
            return min(-(-rows // rows_at_once), _MAX_BLOCKS)
        count = min(-(-rows // (rows_at_once * _LEAST_STEPS)), most)
        partials = empty(x, (count, 2, columns), "float32")
        return count

    if columns % vector or columns > max(_backward_blocks) * _COLUMNS_HELD:
        row_sums = empty(x, (rows, 3), "float32")
        arguments = dy, x, gamma, mean, rstd, row_sums, rows, columns, flags[0]
        if columns <= 32 * _COLUMNS_HELD:
            lanes = _power_of_two(-(-columns // _COLUMNS_HELD))
            _row_sums_lanes(min(-(-rows * lanes // _LANES_THREADS), _MAX_BLOCKS), *arguments, lanes)
        else:
            _row_sums_block(min(rows, _MAX_BLOCKS), *arguments)
        width, across, strips = _strips(columns, vector)
        splits = blocks(_STRIP_THREADS // across, max(_SUMMING_BLOCKS[128] // strips, 1))
        shape = rows, columns, *flags, width, across, strips
        _backward_strips(splits * strips, dy, dtotal, x, gamma, mean, rstd, row_sums, dx, partials, *shape)
    elif columns <= 32 * _COLUMNS_HELD:
        lanes = _power_of_two(-(-columns // _COLUMNS_HELD))
        grid = blocks(_LANES_THREADS // lanes, _SUMMING_BLOCKS[_LANES_THREADS])
        _backward_lanes(grid, dy, dtotal, x, gamma, mean, rstd, dx, partials, rows, columns, *flags, lanes)
    else:
        threads = next(threads for threads in _backward_blocks if columns <= threads * _COLUMNS_HELD)
        grid = blocks(1, _SUMMING_BLOCKS[threads])
        _backward_blocks[threads](grid, dy, dtotal, x, gamma, mean, rstd, dx, partials, rows, columns, *flags)
    if summing:  # with no rows it writes zeros
        _sum_partials(-(-2 * columns // 32), partials, dgamma, dbeta, count, columns, accumulate)
    return dx


def _strips(columns: int, vector: int) -> tuple[int, int, int]:
    """(width, across, strips): elements of a thread, threads beside each other, and strips that cover the columns."""
    width = 1 if columns % vector else vector
    vectors = columns // width
    strips = max(-(-vectors // _STRIP_THREADS), 1)
    return width, max(-(-vectors // strips), 1), strips


# Group and batch norm -------------------------------------------------------------------------------------------------

# Of (samples, positions, channels), with one mean and rstd for each group of channels of a sample. Batch norm is the
# case of one sample, which is the whole batch, and groups of one channel.

_channels = Source("norm_channels", T=FLOATS)
_channels_backward = Source("norm_channels_backward", T=FLOATS)

_ELEMENTS = "samples * positions * channels"
_statistics = _channels.kernel("channel_statistics", flops=f"5 * {_ELEMENTS}", bytes=f"{_ELEMENTS} * T")
_finish_statistics = _channels.kernel(
    "finish_statistics", flops="8 * chunks * channels", bytes="2 * chunks * channels * 4"
)
_norm = _channels.kernel("channel_norm", flops=f"3 * {_ELEMENTS}", bytes=f"2 * {_ELEMENTS} * T", streaming=True)
_norm_of = _channels.kernel(
    "channel_norm_of", flops="3 * positions * channels", bytes="2 * positions * channels * T", streaming=True
)
_norm_at_once = _channels.kernel("channel_norm_at_once", flops=f"8 * {_ELEMENTS}", bytes=f"2 * {_ELEMENTS} * T")
_merge_moments = Source("norm_moments").kernel(
    "merge_moments", flops="10 * tiles * channels", bytes="(3 * channels + 1) * tiles * 4"
)
_MERGED_CHANNELS = 8  # that a block of merge_moments has
_sums = _channels_backward.kernel("channel_sums", flops=f"5 * {_ELEMENTS}", bytes=f"2 * {_ELEMENTS} * T")
_finish_sums = _channels_backward.kernel(
    "finish_sums", flops="3 * chunks * channels", bytes="3 * chunks * channels * 4"
)
_gradient = _channels_backward.kernel(
    "channel_gradient", flops=f"6 * {_ELEMENTS}", bytes=f"3 * {_ELEMENTS} * T", streaming=True
)
_gradient_at_once = _channels_backward.kernel(
    "channel_gradient_at_once", flops=f"11 * {_ELEMENTS}", bytes=f"3 * {_ELEMENTS} * T"
)

_BLOCKS = 1056  # of a launch over an array that is large enough: eight waves on 132 multiprocessors
_LEAST_POSITIONS, _MOST_POSITIONS = 4, 512  # that a thread sums one after the other
_GROUP_AT_ONCE = 64  # channels of a group that one thread combines


@dataclass(frozen=True)
class _Split:
    """How blocks share (samples, positions, channels).

    width: channels of a thread; across: threads beside each other; strips: of across * width channels each; chunk:
    positions of a block; chunks: how many of those, 1 where one launch does everything (`at_once`).
    """

    width: int
    across: int
    strips: int
    chunk: int
    chunks: int
    at_once: bool


@cache
def _split(samples: int, positions: int, channels: int, group_size: int, vector: int) -> _Split:
    width = 1 if channels % vector else vector
    granule = math.lcm(group_size, width)
    if channels and group_size <= _GROUP_AT_ONCE:
        # 32 channels or the least that are whole groups and whole vectors.
        across = min(granule * max(32 // granule, 1), channels) // width
        strips = -(-channels // (across * width))
        turns = -(-positions // (_STRIP_THREADS // across))
        if turns <= 16 or (turns <= 64 and samples * strips >= _SUMMING_BLOCKS[512]):
            return _Split(width, across, strips, positions, 1, True)
    width, across, strips = _strips(channels, vector)
    phases = _STRIP_THREADS // across
    most = max(_BLOCKS // max(samples * strips, 1), 1)
    turns = min(max(-(-positions // (phases * most)), _LEAST_POSITIONS), _MOST_POSITIONS)
    return _Split(width, across, strips, phases * turns, max(-(-positions // (phases * turns)), 1), False)


def group_norm(
    x: Array, gamma: Array | None, beta: Array | None, groups: int, eps: float
) -> tuple[Array, Array, Array]:
    samples, channels = x.shape[0], x.shape[-1]
    statistics = (samples, groups)
    shape = samples, math.prod(x.shape[1:-1]), channels, channels // groups
    return _normalise_groups(x, gamma, beta, None, None, statistics, shape, 0.0, eps)


def batch_norm(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Array, Array, Array]:
    positions, channels = math.prod(x.shape[:-1]), x.shape[-1]
    if training:
        shape = 1, positions, channels, 1
        return _normalise_groups(x, gamma, beta, running_mean, running_var, (channels,), shape, momentum, eps)
    mean = empty(x, (channels,), "float32")
    y, rstd = _normalise_channels(x, running_mean, None, running_var, gamma, beta, mean, None, None, 0.0, eps)
    return y, mean, rstd


def batch_norm_of(
    x: Array,
    mean: Array,
    rest: Array | None,
    variance: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    return _normalise_channels(x, mean, rest, variance, gamma, beta, None, running_mean, running_var, momentum, eps)


def _normalise_channels(
    x: Array,
    mean: Array | None,
    rest: Array | None,
    variance: Array | None,
    gamma: Array | None,
    beta: Array | None,
    saved_mean: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """(y, rstd) of given statistics, which also move the running ones or are copied to saved_mean."""
    positions, channels = math.prod(x.shape[:-1]), x.shape[-1]
    y, rstd = empty_like(x), empty(x, (channels,), "float32")
    split = _split(1, positions, channels, 1, 16 // x.dtype.itemsize)
    _norm_of(
        split.strips * split.chunks,
        *(x, gamma, beta, mean, rest, variance, y, saved_mean, rstd, running_mean, running_var),
        *(positions, channels, eps, momentum),
        *(split.chunk, split.chunks, split.width, split.across, split.strips),
    )
    return y, rstd


def channel_statistics(x: Array) -> tuple[Array, Array, Array]:
    """(mean, rest, variance) of each channel of (N, ..., C), which is not empty: (C,), float32.

    rest: what the rounded mean leaves out.
    """
    channels = x.shape[-1]
    mean, rest, rstd, variance = (empty(x, (channels,), "float32") for _ in range(4))
    shape = 1, math.prod(x.shape[:-1]), channels, 1
    partials, split = _partial_statistics(x, shape)
    _finish_statistics(
        channels,
        *(x, partials, mean, rest, rstd, variance, None, None),
        *(*shape[1:], split.chunk, split.chunks, 0.0, 0.0),
    )
    return mean, rest, variance


def merged_statistics(moments: Array, tiles: int) -> tuple[Array, Array, Array]:
    """As `channel_statistics`, from the moments of each tile of rows (kernels/include/tile_moments.cuh)."""
    channels = (moments.size - tiles) // (3 * tiles)
    mean, rest, variance = (empty(moments, (channels,), "float32") for _ in range(3))
    _merge_moments(-(-channels // _MERGED_CHANNELS), moments, mean, rest, variance, tiles, channels)
    return mean, rest, variance


def _normalise_groups(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    statistics: Shape,
    shape: tuple[int, int, int, int],
    momentum: float,
    eps: float,
) -> tuple[Array, Array, Array]:
    """shape: samples, positions, channels, channels of a group. statistics: the shape of mean and rstd."""
    samples, positions, channels, group_size = shape
    y, mean, rstd = empty_like(x), *(empty(x, statistics, "float32") for _ in range(2))
    split = _split(*shape, 16 // x.dtype.itemsize)
    layout = split.width, split.across, split.strips
    if split.at_once:
        running = running_mean, running_var
        _norm_at_once(samples * split.strips, x, gamma, beta, y, mean, rstd, *running, *shape, eps, momentum, *layout)
        return y, mean, rstd
    partials, split = _partial_statistics(x, shape)
    low = empty(x, statistics, "float32")
    _finish_statistics(
        mean.size,
        *(x, partials, mean, low, rstd, None, running_mean, running_var),
        *(positions, channels, group_size, split.chunk, split.chunks, eps, momentum),
    )
    grid = samples * split.chunks * split.strips
    _norm(grid, x, gamma, beta, mean, low, rstd, y, *shape, split.chunk, split.chunks, *layout)
    return y, mean, rstd


def _partial_statistics(x: Array, shape: tuple[int, int, int, int]) -> tuple[Array, _Split]:
    """The moments of each channel of each chunk of positions, (samples, channels, chunks, 2), and how x was split."""
    split = _split(*shape, 16 // x.dtype.itemsize)
    partials = empty(x, (shape[0], shape[2], split.chunks, 2), "float32")
    _statistics(
        shape[0] * split.chunks * split.strips,
        *(x, partials, *shape, split.chunk, split.chunks, split.width, split.across, split.strips),
    )
    return partials, split


def group_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
) -> Array:
    samples, channels, groups = x.shape[0], x.shape[-1], mean.shape[1]
    shape = samples, math.prod(x.shape[1:-1]), channels, channels // groups
    return _groups_backward(dy, x, gamma, mean, rstd, dgamma, dbeta, accumulate, shape, constant=False)


def batch_norm_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
    training: bool,
) -> Array:
    shape = 1, math.prod(x.shape[:-1]), x.shape[-1], 1
    return _groups_backward(dy, x, gamma, mean, rstd, dgamma, dbeta, accumulate, shape, constant=not training)


def _groups_backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    accumulate: bool,
    shape: tuple[int, int, int, int],
    *,
    constant: bool,
) -> Array:
    """constant: mean and rstd did not depend on x, so nothing is projected out."""
    samples, positions, channels, group_size = shape
    dx = empty_like(x)
    split = _split(*shape, 16 // x.dtype.itemsize)
    layout = split.width, split.across, split.strips
    summing = dgamma is not None or dbeta is not None
    parameter_partials = empty(x, (samples, 2, channels), "float32") if summing and samples != 1 else None
    destination = (dgamma, dbeta, None) if samples == 1 else (None, None, parameter_partials)
    if split.at_once:
        arrays = dy, x, gamma, mean, rstd, dx, *destination
        _gradient_at_once(samples * split.strips, *arrays, *shape, constant, accumulate, *layout)
    else:
        grid = samples * split.chunks * split.strips
        of_groups = None
        if summing or not constant:
            partials = empty(x, (samples, channels, split.chunks, 3), "float32")
            totals = empty(x, (samples, channels, 2), "float32")
            of_groups = empty(x, (mean.size, 3), "float32")
            _sums(grid, dy, x, mean, partials, *shape, split.chunk, split.chunks, *layout)
            lanes = min(_power_of_two(split.chunks), 32)
            _finish_sums(
                mean.size,
                *(partials, gamma, mean, rstd, totals, of_groups, *destination),
                *(positions, channels, group_size, split.chunks, lanes, constant, accumulate),
                T=C_NAMES[x.dtype.name],
            )
        _gradient(grid, dy, x, gamma, mean, rstd, of_groups, dx, *shape, split.chunk, split.chunks, *layout)
    if summing and samples != 1:
        _sum_partials(-(-2 * channels // 32), parameter_partials, dgamma, dbeta, samples, channels, accumulate)
    return dx
