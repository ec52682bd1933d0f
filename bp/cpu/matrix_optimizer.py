"""Optimizer steps that look at whole matrices, on the CPU: one parameter at a time, in place."""

import math

import numpy as np

from bp.cpu.optimizer import begin, mix, quiet, sum_squared
from bp.cpu.runtime import empty
from bp.ops import control as block
from bp.ops.optimizer import LR_FACTOR


@quiet
def adafactor(
    values: np.ndarray,
    gradients: np.ndarray,
    row_mean_square: np.ndarray | None,
    column_mean_square: np.ndarray,
    settings: np.ndarray,
    control: np.ndarray,
    beta2_decay: float,
    eps: tuple[float, float],
    threshold: float,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    rows, columns = values.shape
    step = float(control[block.APPLIED_STEP])
    lr = float(control[block.LEARNING_RATE]) * float(settings[0, LR_FACTOR])
    alpha = max(eps[1], _rms(values)) * min(lr, 1 / math.sqrt(step))
    g, _ = begin(values, gradients, settings, control)
    weight = step**beta2_decay
    mix(column_mean_square, 1 - weight, np.einsum("rc,rc->c", g, g), weight / rows)
    v = empty(values.shape, values.dtype)
    if row_mean_square is None:
        v[...] = column_mean_square
    else:
        mix(row_mean_square, 1 - weight, np.einsum("rc,rc->r", g, g), weight / columns)
        by_row = row_mean_square / max(float(row_mean_square.mean()), eps[0])
        np.multiply(by_row[:, None], column_mean_square, out=v)
    # Not below the smallest number of the dtype either, or a gradient of zero would become 0 / 0.
    least = max(eps[0] * eps[0], float(np.finfo(values.dtype).tiny))
    np.sqrt(np.maximum(v, least, out=v), out=v)
    g /= v
    g *= alpha / max(1.0, _rms(g) / threshold)
    values -= g


def _rms(array: np.ndarray) -> float:
    return math.sqrt(sum_squared(array.reshape(-1)) / array.size)


@quiet
def muon(
    values: np.ndarray,
    gradients: np.ndarray,
    first_moment: np.ndarray,
    settings: np.ndarray,
    control: np.ndarray,
    momentum: float,
    nesterov: bool,
    coefficients: tuple[float, float, float],
    iterations: int,
    eps: float,
    adjust_lr: str,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    rows, columns = values.shape
    g, lr = begin(values, gradients, settings, control)
    mix(first_moment, momentum, g, 1 - momentum)
    if nesterov:
        mix(g, 1 - momentum, first_moment, momentum)
    else:
        g[...] = first_moment
    matching = 0.2 * math.sqrt(max(rows, columns)), math.sqrt(max(1.0, rows / columns))
    ratio = matching[0] if adjust_lr == "match_rms_adamw" else matching[1]
    step = _orthogonalized(g, coefficients, iterations, eps)
    step *= float(lr[0, 0]) * ratio
    values -= step


def _orthogonalized(x: np.ndarray, coefficients: tuple[float, float, float], iterations: int, eps: float) -> np.ndarray:
    """orth(x) by Newton-Schulz, on the side with the smaller Gram matrix; `x` is scratch."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = np.ascontiguousarray(x.T)
    x /= max(math.sqrt(sum_squared(x.reshape(-1))), eps)
    gram = empty((x.shape[0], x.shape[0]), x.dtype)
    polynomial = empty(gram.shape, x.dtype)
    scratch = empty(x.shape, x.dtype)
    for _ in range(iterations):
        np.matmul(x, x.T, out=gram)
        np.matmul(gram, gram, out=polynomial)
        mix(polynomial, c, gram, b)
        np.matmul(polynomial, x, out=scratch)
        mix(x, a, scratch, 1.0)
    return x.T if tall else x
