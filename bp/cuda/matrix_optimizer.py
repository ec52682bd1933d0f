"""Optimizer steps that look at whole matrices, on the CUDA device: a handful of launches for each parameter."""

import math

import numpy as np

from bp.cuda.device import empty
from bp.cuda.kernel import THREADS, Source, blocks
from bp.cuda.linear import gemm
from bp.cuda.optimizer import COPIES, copy_axis
from bp.ops.array import Array

_COLUMNS = 128  # of the part of a matrix that a block of Adafactor's kernels has
_LEAST_BAND = 64  # rows of it
_MOST_PARTS = 2048  # partial sums, which every block of the next launch adds up

_source = Source("matrix_optimizer")
_updates = Source("matrix_optimizer_update", COPY=COPIES)
_squares = _source.kernel(
    "adafactor_squares", flops="6 * rows * columns", bytes="8 * rows * columns + 4 * (rows + columns)"
)
_means = _source.kernel("adafactor_means", flops="n * (parts + 3)", bytes="4 * n * (parts + 2)")
_size = _source.kernel("adafactor_size", flops="7 * rows * columns", bytes="8 * rows * columns + 4 * (rows + columns)")
_update = _updates.kernel(
    "adafactor_update", flops="9 * rows * columns", bytes="12 * rows * columns + 4 * (rows + columns)"
)
_momentum = _source.kernel("muon_momentum", flops="9 * n", bytes="20 * n")
_normalize = _source.kernel("muon_normalize", flops="n", bytes="8 * n")
_polynomial = _source.kernel("muon_polynomial", flops="4 * side * side", bytes="12 * side * side")
_muon_update = _updates.kernel("muon_update", flops="3 * n", bytes="12 * n")


def adafactor(
    values: Array,
    gradients: Array,
    row_mean_square: Array | None,
    column_mean_square: Array,
    settings: Array,
    control: Array,
    beta2_decay: float,
    eps: tuple[float, float],
    threshold: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """Five launches: sums of squares, the two means, the size of the update, the update; four for a vector."""
    rows, columns = values.shape
    if not values.size:
        return
    tiles, band = -(-columns // _COLUMNS), _band(rows, columns)
    bands = -(-rows // band)
    parts = tiles * bands
    row_sums = None if row_mean_square is None else empty(values, (tiles, rows))
    column_sums = empty(values, (bands, columns))
    value_sums, update_sums = (empty(values, (parts,), np.float64) for _ in range(2))
    shape = rows, columns, band
    _squares(parts, values, gradients, settings, control, row_sums, column_sums, value_sums, *shape)
    _mean(column_sums, column_mean_square, control, rows, beta2_decay)
    mean_sums = None
    if row_mean_square is not None:
        mean_sums = _mean(row_sums, row_mean_square, control, columns, beta2_decay)
    means = row_mean_square, column_mean_square, settings, control, mean_sums
    mean_parts = 0 if mean_sums is None else mean_sums.size
    _size(parts, values, gradients, *means, update_sums, *shape, mean_parts, eps[0])
    sums = value_sums, update_sums, low_precision
    rule = mean_parts, parts, *eps, threshold, stochastic_rounding
    _update(parts, values, gradients, *means, *sums, *shape, *rule, **copy_axis(low_precision))


def _band(rows: int, columns: int) -> int:
    """Rows of a block: as few as the number of partial sums allows, for many blocks."""
    tiles = -(-columns // _COLUMNS)
    return max(_LEAST_BAND, -(-rows // max(1, _MOST_PARTS // tiles)))


def _mean(sums: Array, means: Array, control: Array, length: int, decay: float) -> Array:
    """The launch for one axis of the matrix; returns the partial sums of the new means."""
    parts, n = sums.shape
    mean_blocks = -(-n // THREADS)
    mean_sums = empty(control, (mean_blocks,))
    _means(mean_blocks, sums, means, mean_sums, control, n, parts, length, decay)
    return mean_sums


def muon(
    values: Array,
    gradients: Array,
    first_moment: Array,
    settings: Array,
    control: Array,
    momentum: float,
    nesterov: bool,
    coefficients: tuple[float, float, float],
    iterations: int,
    eps: float,
    adjust_lr: str,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """Three launches, and for each iteration three products and one launch between them."""
    rows, columns = values.shape
    n = values.size
    if not n:
        return
    x = empty(values, (rows, columns))
    parts = min(blocks(n), _MOST_PARTS)
    square_sums = empty(values, (parts,), np.float64)
    scratch = first_moment, x, settings, control, square_sums
    _momentum(parts, values, gradients, *scratch, n, momentum, nesterov)
    _normalize(blocks(n), x, square_sums, control, n, parts, eps)
    x = _orthogonalized(x, coefficients, iterations)
    ratio = 0.2 * math.sqrt(max(rows, columns)) if adjust_lr == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
    rule = n, ratio, stochastic_rounding
    _muon_update(blocks(n), values, x, settings, control, low_precision, *rule, **copy_axis(low_precision))


def _orthogonalized(x: Array, coefficients: tuple[float, float, float], iterations: int) -> Array:
    """Newton-Schulz, on the side with the smaller Gram matrix G: X = P X or X P with P = a I + b G + c G^2.

    G, and so P, is symmetric, so no transposed copy is needed. x is overwritten.
    """
    rows, columns = x.shape
    tall = rows > columns
    side = min(rows, columns)
    gram, polynomial = (empty(x, (side, side)) for _ in range(2))
    other = empty(x, x.shape)
    for _ in range(iterations):
        gemm(x, x, gram, transpose_a=tall, transpose_b=not tall)
        gemm(gram, gram, polynomial)
        _polynomial(blocks(side * side), gram, polynomial, side, *coefficients)
        if tall:
            gemm(x, polynomial, other)
        else:
            gemm(polynomial, x, other)
        x, other = other, x
    return x
