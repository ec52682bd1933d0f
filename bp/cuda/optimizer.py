"""Optimizer steps on the CUDA device: each rule is one pass over the arena in one launch."""

from typing import Any

import numpy as np

from bp.cuda.device import device_of, empty
from bp.cuda.kernel import THREADS, Kernel, Source, blocks
from bp.errors import ShapeError
from bp.ops.array import Array
from bp.ops.optimizer import LARGEST_LOSS_SCALE, LEAST_LOSS_SCALE, TILE

QUAD = 4  # elements that a thread takes at a time
_MOST_PARTS = 4096  # partial sums of the gradient norm, which one block then adds
COPIES = ("float16", "bfloat16")

_source = Source("optimizer")
_advance_step = _source.kernel("advance_step", flops="2", bytes="24")
_adjust_loss_scale = _source.kernel("adjust_loss_scale", flops="2", bytes="48")
_clip_by_value = _source.kernel("clip_by_value", flops="2 * n", bytes="8 * n", streaming=True)
_squares_in_blocks = _source.kernel("squares_in_blocks", flops="2 * n", bytes="4 * n")
_norm_and_scale = _source.kernel("norm_and_scale", flops="count", bytes="8 * count")
_moving_average = _source.kernel("moving_average", flops="3 * n", bytes="12 * n", streaming=True)
_count_update = _source.kernel("count_update", flops="1", bytes="16")

_rules = Source("optimizer_rules", COPY=COPIES)


def _rule(name: str, flops: int, states: str) -> Kernel:
    """A rule with so many running means; its bytes are those without a copy. A row of settings has 16 bytes."""
    return _rules.kernel(name, flops=f"{flops} * n", bytes=f"(12 + 8 * ({states})) * n + n / 8", streaming=True)


_sgd = _rule("sgd", 7, "momentum > 0")
_adagrad = _rule("adagrad", 9, "1")
_adadelta = _rule("adadelta", 16, "2")
_rmsprop = _rule("rmsprop", 10, "1 + (momentum > 0)")
_adam = _rule("adam", 15, "2")
_nadam_momentum = _source.kernel("nadam_momentum", flops="5", bytes="32")
_nadam = _rule("nadam", 17, "2")
_lion = _rule("lion", 10, "1")


def advance_step(control: Array) -> None:
    _advance_step(1, control)


def clip_by_value(gradients: Array, control: Array, limit: float) -> None:
    _clip_by_value(quad_blocks(gradients.size), gradients, control, gradients.size, limit)


def clip_by_global_norm(gradients: Array, control: Array, max_norm: float) -> None:
    partial = sum_squared(gradients)
    _norm_and_scale(1, partial, control, partial.size, max_norm)


def sum_squared(array: Array) -> Array:
    """Partial sums of the squares of a flat array, in float64; none of an empty one. Their number goes by its size."""
    parts = min(-(-array.size // (QUAD * THREADS)), _MOST_PARTS)
    partial = empty(array, (parts,), np.float64)
    _squares_in_blocks(parts, array, partial, array.size)
    return partial


def adjust_loss_scale(control: Array, growth_factor: float, backoff_factor: float, growth_interval: int) -> None:
    bounds = LEAST_LOSS_SCALE, LARGEST_LOSS_SCALE
    _adjust_loss_scale(1, control, growth_factor, backoff_factor, growth_interval, *bounds)


def moving_average(averages: Array, values: Array, updates: Array, decay: float, warmup: bool) -> None:
    _moving_average(quad_blocks(values.size), averages, values, updates, values.size, decay, warmup)
    _count_update(1, updates)


def sgd(
    values: Array,
    gradients: Array,
    velocity: Array | None,
    settings: Array,
    control: Array,
    momentum: float,
    dampening: float,
    nesterov: bool,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    rule = momentum, dampening, nesterov
    _update(_sgd, (values, gradients, velocity), settings, control, rule, low_precision, stochastic_rounding)


def adagrad(
    values: Array,
    gradients: Array,
    sum_of_squares: Array,
    settings: Array,
    control: Array,
    lr_decay: float,
    eps: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    arrays = values, gradients, sum_of_squares
    _update(_adagrad, arrays, settings, control, (lr_decay, eps), low_precision, stochastic_rounding)


def adadelta(
    values: Array,
    gradients: Array,
    mean_square: Array,
    mean_square_step: Array,
    settings: Array,
    control: Array,
    rho: float,
    eps: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    arrays = values, gradients, mean_square, mean_square_step
    _update(_adadelta, arrays, settings, control, (rho, eps), low_precision, stochastic_rounding)


def rmsprop(
    values: Array,
    gradients: Array,
    mean_square: Array,
    mean: Array | None,
    velocity: Array | None,
    settings: Array,
    control: Array,
    alpha: float,
    eps: float,
    momentum: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    arrays = values, gradients, mean_square, mean, velocity
    _update(_rmsprop, arrays, settings, control, (alpha, eps, momentum), low_precision, stochastic_rounding)


def adam(
    values: Array,
    gradients: Array,
    first_moment: Array,
    second_moment: Array,
    largest_second_moment: Array | None,
    settings: Array,
    control: Array,
    beta1: float,
    beta2: float,
    eps: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    arrays = values, gradients, first_moment, second_moment, largest_second_moment
    _update(_adam, arrays, settings, control, (beta1, beta2, eps), low_precision, stochastic_rounding)


def nadam(
    values: Array,
    gradients: Array,
    first_moment: Array,
    second_moment: Array,
    settings: Array,
    control: Array,
    beta1: float,
    beta2: float,
    eps: float,
    momentum_decay: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    _nadam_momentum(1, control, beta1, momentum_decay)
    arrays, rule = (values, gradients, first_moment, second_moment), (beta1, beta2, eps, momentum_decay)
    _update(_nadam, arrays, settings, control, rule, low_precision, stochastic_rounding)


def lion(
    values: Array,
    gradients: Array,
    first_moment: Array,
    settings: Array,
    control: Array,
    beta1: float,
    beta2: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    arrays = values, gradients, first_moment
    _update(_lion, arrays, settings, control, (beta1, beta2), low_precision, stochastic_rounding)


def _update(
    kernel: Kernel,
    arrays: tuple[Array | None, ...],
    settings: Array,
    control: Array,
    rule: tuple[Any, ...],
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """One launch of a rule over the arena. arrays: values, gradients and running means, in the kernel's order."""
    n = TILE * len(settings)
    pointer = device_of(control).pointer
    for array in (*arrays, low_precision):
        if array is not None and (array.size != n or pointer(array) % 16):
            raise ShapeError(
                f"{kernel.name} expected arrays of {n} elements, {TILE} for each row of settings, that begin at a "
                f"multiple of 16 bytes, as those of an arena; got {array.size} elements"
            )
    axes = copy_axis(low_precision)
    kernel(quad_blocks(n), *arrays, settings, control, low_precision, n, *rule, stochastic_rounding, **axes)


def copy_axis(low_precision: Array | None) -> dict[str, str]:
    """The type that a kernel is compiled for where no copy tells it: any does."""
    return {"COPY": COPIES[0]} if low_precision is None else {}


def quad_blocks(n: int) -> int:
    """Blocks of a loop over n elements that takes QUAD of them a thread and step."""
    return blocks(-(-n // QUAD))
