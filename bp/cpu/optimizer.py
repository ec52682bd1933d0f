"""Optimizer steps on the CPU: in place over the flat arena."""

import math

import numpy as np

from bp.cpu.runtime import empty
from bp.ops import control as block
from bp.ops.optimizer import DECOUPLED_DECAY, L1, L2, LR_FACTOR, TILE


def advance_step(control: np.ndarray) -> None:
    control[block.ATTEMPTED_STEP] += 1
    control[block.APPLIED_STEP] += 1


def clip_by_global_norm(gradients: np.ndarray, control: np.ndarray, max_norm: float) -> None:
    norm = math.sqrt(float(np.dot(gradients, gradients))) if gradients.dtype == np.float64 else _norm(gradients)
    control[block.GRADIENT_NORM] = norm
    control[block.GRADIENT_SCALE] = max_norm / norm if math.isfinite(norm) and norm > max_norm else 1.0


def _norm(gradients: np.ndarray) -> float:
    """In pieces, so that the float64 copy of a large arena stays small."""
    total = 0.0
    for start in range(0, gradients.size, 1 << 16):
        piece = gradients[start : start + (1 << 16)].astype(np.float64)
        total += float(piece @ piece)
    return math.sqrt(total)


def sgd(
    values: np.ndarray,
    gradients: np.ndarray,
    velocity: np.ndarray | None,
    tile_groups: np.ndarray,
    groups: np.ndarray,
    control: np.ndarray,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    g, lr = _begin(values, gradients, tile_groups, groups, control)
    if velocity is not None:
        if control[block.APPLIED_STEP] <= 1:
            velocity[...] = g
        else:
            velocity *= momentum
            velocity += (1 - dampening) * g
        g = g + momentum * velocity if nesterov else velocity.copy()
    _descend(values, g, lr)


def adam(
    values: np.ndarray,
    gradients: np.ndarray,
    first_moment: np.ndarray,
    second_moment: np.ndarray,
    tile_groups: np.ndarray,
    groups: np.ndarray,
    control: np.ndarray,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    g, lr = _begin(values, gradients, tile_groups, groups, control)
    step = float(control[block.APPLIED_STEP])
    scratch = empty(values.shape, values.dtype)
    np.multiply(g, 1 - beta1, out=scratch)
    first_moment *= beta1
    first_moment += scratch
    np.multiply(g, g, out=g)
    g *= 1 - beta2
    second_moment *= beta2
    second_moment += g
    np.sqrt(second_moment, out=scratch)
    scratch *= 1 / math.sqrt(1 - beta2**step)
    scratch += eps
    np.divide(first_moment, scratch, out=g)
    g *= 1 / (1 - beta1**step)
    _descend(values, g, lr)


def _begin(
    values: np.ndarray, gradients: np.ndarray, tile_groups: np.ndarray, groups: np.ndarray, control: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The regularised gradient (a scratch array) and the learning rate by tile, after decoupled decay of `values`."""
    table = groups[tile_groups].astype(values.dtype)[:, :, None]
    tiles = values.reshape(-1, TILE)
    g = np.multiply(gradients, float(control[block.GRADIENT_SCALE]), out=empty(gradients.shape, gradients.dtype))
    lr = table[:, LR_FACTOR] * float(control[block.LEARNING_RATE])
    if groups[:, L2].any():
        g.reshape(-1, TILE)[...] += table[:, L2] * tiles
    if groups[:, L1].any():
        g.reshape(-1, TILE)[...] += table[:, L1] * np.sign(tiles)
    if groups[:, DECOUPLED_DECAY].any():
        tiles *= 1 - lr * table[:, DECOUPLED_DECAY]
    return g, lr


def _descend(values: np.ndarray, direction: np.ndarray, lr: np.ndarray) -> None:
    """values -= lr * direction; `direction` is scratch and is overwritten."""
    direction.reshape(-1, TILE)[...] *= lr
    values -= direction
