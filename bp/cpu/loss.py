"""Losses on the CPU."""

import numpy as np

from bp.cpu.runtime import empty
from bp.ops.control import LOSS_DENOMINATOR


def mean_of_terms(losses: np.ndarray, control: np.ndarray) -> np.ndarray:
    total = losses.sum(dtype=np.float64) * _inverse(control)
    return np.asarray(total, losses.dtype)


def softmax_cross_entropy(
    logits: np.ndarray,
    labels: np.ndarray,
    class_weight: np.ndarray | None,
    control: np.ndarray,
    ignore_index: int,
    label_smoothing: float,
    gradient: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    classes = logits.shape[-1]
    flat, targets = logits.reshape(labels.size, classes), labels.reshape(-1)
    kept = targets != ignore_index
    rows, columns = np.arange(targets.size), np.where(kept, targets, 0)

    shifted = empty(flat.shape, flat.dtype)
    np.subtract(flat, flat.max(axis=-1, keepdims=True, initial=-np.inf), out=shifted)
    probabilities = np.exp(shifted, out=empty(flat.shape, flat.dtype))
    normaliser = probabilities.sum(axis=-1, keepdims=True)
    log_normaliser = np.log(normaliser)

    weights = np.ones(classes, flat.dtype) if class_weight is None else class_weight
    label_part = ((1 - label_smoothing) * weights[columns] * kept).astype(flat.dtype)
    losses = label_part * (log_normaliser[:, 0] - shifted[rows, columns])
    if label_smoothing:
        log_probabilities = shifted - log_normaliser
        losses -= label_smoothing / classes * (log_probabilities @ weights) * kept
    if not gradient:
        return losses.reshape(labels.shape), None

    mass = label_part[:, None]
    if label_smoothing:
        mass = mass + label_smoothing * weights.mean(dtype=flat.dtype) * kept[:, None]
    dlogits = np.multiply(probabilities, mass / normaliser, out=probabilities)
    dlogits[rows, columns] -= label_part
    if label_smoothing:
        dlogits -= label_smoothing / classes * weights * kept[:, None]
    dlogits *= _inverse(control)
    return losses.reshape(labels.shape), dlogits.reshape(logits.shape)


def _inverse(control: np.ndarray) -> float:
    denominator = float(control[LOSS_DENOMINATOR])
    return 1.0 / denominator if denominator else 0.0
