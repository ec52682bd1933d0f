"""Optimizer steps on the CPU: in place over the flat arena, piece by piece so that a piece stays in the cache.

There are no 16-bit floats on the CPU, so low_precision and stochastic_rounding mean nothing here.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bp.cpu import native
from bp.cpu.runtime import empty
from bp.ops import control as block
from bp.ops.optimizer import DECOUPLED_DECAY, L1, L2, LARGEST_LOSS_SCALE, LEAST_LOSS_SCALE, LR_FACTOR, TILE

# Tiles that NumPy works on at a time: 128 KiB of float32 an array, so a rule's handful of arrays fits a level 2 cache.
PIECE = 256

# Gradients may overflow or be NaN, and the step then shows it; NumPy's warnings would come on top.
quiet = np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore")


def advance_step(control: np.ndarray) -> None:
    control[block.ATTEMPTED_STEP] += 1
    if not control[block.SKIP_STEP]:
        control[block.APPLIED_STEP] += 1


@quiet
def clip_by_value(gradients: np.ndarray, control: np.ndarray, limit: float) -> None:
    scale = float(control[block.LOSS_SCALE])
    clipped = np.isfinite(gradients) if scale > 1 else True
    np.clip(gradients, -limit * scale, limit * scale, out=gradients, where=clipped)


@quiet
def clip_by_global_norm(gradients: np.ndarray, control: np.ndarray, max_norm: float) -> None:
    scale = float(control[block.LOSS_SCALE])
    norm = math.sqrt(sum_squared(gradients)) / scale
    factor = max_norm / norm if math.isfinite(norm) and norm > max_norm else 1.0
    control[block.GRADIENT_NORM] = norm
    control[block.GRADIENT_SCALE] = factor / scale


def adjust_loss_scale(control: np.ndarray, growth_factor: float, backoff_factor: float, growth_interval: int) -> None:
    overflow = not math.isfinite(control[block.GRADIENT_NORM])
    good_steps = 0 if overflow else int(control[block.GOOD_STEPS]) + 1
    factor = backoff_factor if overflow else growth_factor if good_steps >= growth_interval else 1.0
    scale = float(control[block.LOSS_SCALE]) * factor
    control[block.SKIP_STEP] = overflow
    control[block.GOOD_STEPS] = good_steps % growth_interval
    control[block.LOSS_SCALE] = min(max(scale, LEAST_LOSS_SCALE), LARGEST_LOSS_SCALE)


def sum_squared(array: np.ndarray) -> float:
    """||array||^2 of a flat array, over blocks of fixed size: BLAS would split by the number of threads."""
    kernel = native.kernel("sum_of_squares", array)
    if kernel is not None:
        return float(kernel(array))
    size = PIECE * TILE
    scratch = empty((min(size, array.size),), np.float64)
    total = 0.0
    for start in range(0, array.size, size):
        piece = array[start : start + size]
        squares = np.multiply(piece, piece, out=scratch[: piece.size], dtype=np.float64)
        total += float(squares.sum())
    return total


@quiet
def moving_average(averages: np.ndarray, values: np.ndarray, updates: np.ndarray, decay: float, warmup: bool) -> None:
    t = float(updates[0])
    weight = 1.0 - (min(decay, (1.0 + t) / (10.0 + t)) if warmup else decay)
    updates[0] = t + 1.0
    kernel = native.kernel("moving_average", values)
    if kernel is not None:
        kernel(averages, values, weight)
        return
    size = PIECE * TILE
    for start in range(0, values.size, size):
        average, value = averages[start : start + size], values[start : start + size]
        step = np.subtract(value, average, out=empty(value.shape, value.dtype))
        step *= weight
        average += step


@quiet
def sgd(
    values: np.ndarray,
    gradients: np.ndarray,
    velocity: np.ndarray | None,
    settings: np.ndarray,
    control: np.ndarray,
    momentum: float,
    dampening: float,
    nesterov: bool,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    kernel = native.kernel("sgd", values)
    if kernel is not None:
        kernel(values, gradients, velocity, settings, control, momentum, dampening, nesterov)
        return
    first_step = control[block.APPLIED_STEP] <= 1
    for w, g, v, rows in _pieces(settings, values, gradients, velocity):
        g, lr = begin(w, g, rows, control)
        if v is not None:
            if first_step:
                v[...] = g
            else:
                mix(v, momentum, g, 1 - dampening)
            if nesterov:
                g += momentum * v
            else:
                g[...] = v
        _descend(w, g, lr)


@quiet
def adagrad(
    values: np.ndarray,
    gradients: np.ndarray,
    sum_of_squares: np.ndarray,
    settings: np.ndarray,
    control: np.ndarray,
    lr_decay: float,
    eps: float,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    kernel = native.kernel("adagrad", values)
    if kernel is not None:
        kernel(values, gradients, sum_of_squares, settings, control, lr_decay, eps)
        return
    shrink = 1 / (1 + (float(control[block.APPLIED_STEP]) - 1) * lr_decay)
    for w, g, s, rows in _pieces(settings, values, gradients, sum_of_squares):
        g, lr = begin(w, g, rows, control)
        mix_squares(s, 1.0, g, 1.0)
        g /= _root_plus(s, 1.0, eps)
        g *= shrink
        _descend(w, g, lr)


@quiet
def adadelta(
    values: np.ndarray,
    gradients: np.ndarray,
    mean_square: np.ndarray,
    mean_square_step: np.ndarray,
    settings: np.ndarray,
    control: np.ndarray,
    rho: float,
    eps: float,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    kernel = native.kernel("adadelta", values)
    if kernel is not None:
        kernel(values, gradients, mean_square, mean_square_step, settings, control, rho, eps)
        return
    for w, g, v, u, rows in _pieces(settings, values, gradients, mean_square, mean_square_step):
        g, lr = begin(w, g, rows, control)
        mix_squares(v, rho, g, 1 - rho)
        ratio = np.add(u, eps, out=empty(u.shape, u.dtype))
        ratio /= v + eps
        g *= np.sqrt(ratio, out=ratio)
        mix_squares(u, rho, g, 1 - rho)
        _descend(w, g, lr)


@quiet
def rmsprop(
    values: np.ndarray,
    gradients: np.ndarray,
    mean_square: np.ndarray,
    mean: np.ndarray | None,
    velocity: np.ndarray | None,
    settings: np.ndarray,
    control: np.ndarray,
    alpha: float,
    eps: float,
    momentum: float,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    kernel = native.kernel("rmsprop", values)
    if kernel is not None:
        kernel(values, gradients, mean_square, mean, velocity, settings, control, alpha, eps, momentum)
        return
    for w, g, v, m, b, rows in _pieces(settings, values, gradients, mean_square, mean, velocity):
        g, lr = begin(w, g, rows, control)
        mix_squares(v, alpha, g, 1 - alpha)
        if m is not None:
            mix(m, alpha, g, 1 - alpha)
            variance = v - m * m
            g /= _root_plus(np.maximum(variance, 0, out=variance), 1.0, eps)
        else:
            g /= _root_plus(v, 1.0, eps)
        if b is not None:
            mix(b, momentum, g, 1.0)
            g[...] = b
        _descend(w, g, lr)


@quiet
def adam(
    values: np.ndarray,
    gradients: np.ndarray,
    first_moment: np.ndarray,
    second_moment: np.ndarray,
    largest_second_moment: np.ndarray | None,
    settings: np.ndarray,
    control: np.ndarray,
    beta1: float,
    beta2: float,
    eps: float,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    kernel = native.kernel("adam", values)
    if kernel is not None:
        moments = first_moment, second_moment, largest_second_moment
        kernel(values, gradients, *moments, settings, control, beta1, beta2, eps)
        return
    step = float(control[block.APPLIED_STEP])
    first_correction, second_correction = 1 / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    for w, g, m, v, largest, rows in _pieces(
        settings, values, gradients, first_moment, second_moment, largest_second_moment
    ):
        g, lr = begin(w, g, rows, control)
        mix(m, beta1, g, 1 - beta1)
        mix_squares(v, beta2, g, 1 - beta2)
        if largest is not None:
            v = np.maximum(largest, v, out=largest)
        np.divide(m, _root_plus(v, second_correction, eps), out=g)
        g *= first_correction
        _descend(w, g, lr)


@quiet
def nadam(
    values: np.ndarray,
    gradients: np.ndarray,
    first_moment: np.ndarray,
    second_moment: np.ndarray,
    settings: np.ndarray,
    control: np.ndarray,
    beta1: float,
    beta2: float,
    eps: float,
    momentum_decay: float,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    step = float(control[block.APPLIED_STEP])
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
    product = mu * (1.0 if step <= 1 else float(control[block.MOMENTUM_PRODUCT]))
    control[block.MOMENTUM_PRODUCT] = product
    of_gradient, of_mean = (1 - mu) / (1 - product), mu_next / (1 - product * mu_next)
    kernel = native.kernel("nadam", values)
    if kernel is not None:
        moments = first_moment, second_moment
        kernel(values, gradients, *moments, settings, control, beta1, beta2, eps, of_gradient, of_mean)
        return
    for w, g, m, v, rows in _pieces(settings, values, gradients, first_moment, second_moment):
        g, lr = begin(w, g, rows, control)
        mix(m, beta1, g, 1 - beta1)
        mix_squares(v, beta2, g, 1 - beta2)
        mix(g, of_gradient, m, of_mean)
        g /= _root_plus(v, 1 / math.sqrt(1 - beta2**step), eps)
        _descend(w, g, lr)


@quiet
def lion(
    values: np.ndarray,
    gradients: np.ndarray,
    first_moment: np.ndarray,
    settings: np.ndarray,
    control: np.ndarray,
    beta1: float,
    beta2: float,
    low_precision: np.ndarray | None,
    stochastic_rounding: bool,
) -> None:
    if control[block.SKIP_STEP]:
        return
    kernel = native.kernel("lion", values)
    if kernel is not None:
        kernel(values, gradients, first_moment, settings, control, beta1, beta2)
        return
    for w, g, m, rows in _pieces(settings, values, gradients, first_moment):
        g, lr = begin(w, g, rows, control)
        direction = beta1 * m
        direction += (1 - beta1) * g
        mix(m, beta2, g, 1 - beta2)
        _descend(w, np.sign(direction, out=direction), lr)


def _pieces(settings: np.ndarray, *arrays: np.ndarray | None) -> Iterator[tuple[Any, ...]]:
    """(*arrays, settings), cut along the arena; an absent array stays None."""
    if len(settings) <= PIECE:
        yield (*arrays, settings)
        return
    for first in range(0, len(settings), PIECE):
        part = slice(first * TILE, (first + PIECE) * TILE)
        yield (*(None if array is None else array[part] for array in arrays), settings[first : first + PIECE])


def begin(
    values: np.ndarray, gradients: np.ndarray, settings: np.ndarray, control: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The regularised gradient (a scratch array) and the learning rate by row, after decoupled decay of `values`.

    Every row of `settings` (rows, 4) is of an equal share of the values: a tile, or a whole parameter.
    """
    tiles = _rows(values, len(settings))
    g = np.multiply(gradients, float(control[block.GRADIENT_SCALE]), out=empty(gradients.shape, gradients.dtype))
    lr = settings[:, LR_FACTOR, None] * float(control[block.LEARNING_RATE])
    if settings[:, L2].any():
        _rows(g, len(settings))[...] += settings[:, L2, None] * tiles
    if settings[:, L1].any():
        _rows(g, len(settings))[...] += settings[:, L1, None] * np.sign(tiles)
    if settings[:, DECOUPLED_DECAY].any():
        tiles *= 1 - lr * settings[:, DECOUPLED_DECAY, None]
    return g, lr


def _descend(values: np.ndarray, direction: np.ndarray, lr: np.ndarray) -> None:
    """values -= lr * direction; `direction` is scratch and is overwritten."""
    _rows(direction, len(lr))[...] *= lr
    values -= direction


def _rows(array: np.ndarray, rows: int) -> np.ndarray:
    """A view of that many equal rows; written out since -1 is ambiguous for an arena without parameters."""
    return array.reshape(rows, array.size // max(rows, 1))


def mix(mean: np.ndarray, kept: float, new: np.ndarray, weight: float) -> None:
    """mean = kept * mean + weight * new, in place."""
    mean *= kept
    mean += np.multiply(new, weight, out=empty(new.shape, new.dtype))


def mix_squares(mean: np.ndarray, kept: float, new: np.ndarray, weight: float) -> None:
    """mean = kept * mean + weight * new^2, in place."""
    squares = np.multiply(new, new, out=empty(new.shape, new.dtype))
    squares *= weight
    mean *= kept
    mean += squares


def _root_plus(square: np.ndarray, factor: float, eps: float) -> np.ndarray:
    """factor * sqrt(square) + eps, a scratch array."""
    root = np.sqrt(square, out=empty(square.shape, square.dtype))
    root *= factor
    root += eps
    return root
