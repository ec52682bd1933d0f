"""Losses on the CPU: NumPy, and one native pass in float32 for softmax cross-entropy, squared error and binary
cross-entropy.

Infinite intermediate values are part of the arithmetic here (e^-inf = 0, an overflow to inf, NaN for what is
undefined), hence no floating-point warning leaves these functions.
"""

import numpy as np

from bp.cpu import native
from bp.cpu.runtime import empty
from bp.ops.control import LOSS_DENOMINATOR, LOSS_SCALE
from bp.ops.loss import check_labels

_quietly = np.errstate(all="ignore")


def mean_of_terms(losses: np.ndarray, control: np.ndarray) -> np.ndarray:
    kernel = native.kernel("sum", losses)
    if kernel is not None:
        mean = empty((), losses.dtype)
        kernel(np.ascontiguousarray(losses), mean, False, float(control[LOSS_DENOMINATOR]) or np.inf, False)
        return mean
    with np.errstate(all="ignore"):
        return np.asarray(losses.sum(dtype=np.float64) * _inverse(control), losses.dtype)


def scale_terms(gradient: np.ndarray, dlosses: np.ndarray) -> None:
    gradient *= dlosses.reshape(dlosses.shape + (1,) * (gradient.ndim - dlosses.ndim))


@_quietly
def softmax_cross_entropy(
    logits: np.ndarray,
    labels: np.ndarray,
    class_weight: np.ndarray | None,
    control: np.ndarray,
    ignore_index: int,
    label_smoothing: float,
    gradient: bool,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    kernel = native.kernel("softmax_cross_entropy", logits)
    if kernel is not None:
        if labels.dtype == np.uint64:  # the largest would become negative, and so perhaps the one to ignore
            check_labels("softmax_cross_entropy", labels, logits.shape[-1], ignore_index)
        losses, dlogits = empty(labels.shape, logits.dtype), _gradient_memory(logits, gradient, out)
        in_range = kernel(
            np.ascontiguousarray(logits),
            np.ascontiguousarray(labels, np.int64),
            None if class_weight is None else np.ascontiguousarray(class_weight),
            ignore_index,
            label_smoothing,
            _gradient_factor(control),
            losses,
            dlogits,
        )
        if not in_range:
            check_labels("softmax_cross_entropy", labels, logits.shape[-1], ignore_index)
        return losses, dlogits

    classes = logits.shape[-1]
    rows, columns, kept = _rows(labels, classes, ignore_index, "softmax_cross_entropy")
    flat = logits.reshape(labels.size, classes)
    shifted, exponentials, normaliser = _softmax_parts(flat)
    log_normaliser = np.log(normaliser)

    weights = np.ones(classes, flat.dtype) if class_weight is None else class_weight
    label_part = (1 - label_smoothing) * weights[columns]
    losses = empty(labels.shape, flat.dtype)
    terms = losses.reshape(labels.size)
    terms[...] = _product(label_part, log_normaliser[:, 0] - shifted[rows, columns])
    if label_smoothing:
        uniform_part = label_smoothing / classes * weights
        terms += _product(uniform_part, np.subtract(log_normaliser, shifted, out=shifted)).sum(axis=-1)
    terms[~kept] = 0
    if not gradient:
        return losses, None

    mass = label_part + uniform_part.sum() if label_smoothing else label_part
    dlogits = np.multiply(exponentials, mass[:, None] / normaliser, out=exponentials)
    dlogits[rows, columns] -= label_part
    if label_smoothing:
        dlogits -= uniform_part
    dlogits *= _gradient_factor(control)
    dlogits[~kept | (mass == 0)] = 0
    dlogits = dlogits.reshape(logits.shape)
    if out is None:
        return losses, dlogits
    out[...] = dlogits
    return losses, out


@_quietly
def soft_cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    class_weight: np.ndarray | None,
    control: np.ndarray,
    label_smoothing: float,
    gradient: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    shifted, exponentials, normaliser = _softmax_parts(logits)
    target_part = np.multiply(targets, 1 - label_smoothing, out=_empty_like(logits))
    target_part += label_smoothing / logits.shape[-1]
    if class_weight is not None:
        target_part *= class_weight
    losses = empty(logits.shape[:-1], logits.dtype)
    np.subtract(np.log(normaliser), shifted, out=shifted)
    _product(target_part, shifted).sum(axis=-1, out=losses)
    if not gradient:
        return losses, None
    mass = target_part.sum(axis=-1)
    dlogits = np.multiply(exponentials, mass[..., None] / normaliser, out=exponentials)
    dlogits -= target_part
    dlogits *= _gradient_factor(control)
    dlogits[mass == 0] = 0
    return losses, dlogits


@_quietly
def negative_log_likelihood(
    log_probabilities: np.ndarray,
    labels: np.ndarray,
    class_weight: np.ndarray | None,
    control: np.ndarray,
    ignore_index: int,
    gradient: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    classes = log_probabilities.shape[-1]
    rows, columns, kept = _rows(labels, classes, ignore_index, "negative_log_likelihood")
    flat = log_probabilities.reshape(labels.size, classes)
    weights = np.ones(classes, flat.dtype) if class_weight is None else class_weight
    weight = -weights[columns] * kept
    losses = empty(labels.shape, flat.dtype)
    losses.reshape(labels.size)[...] = _product(weight, flat[rows, columns])
    if not gradient:
        return losses, None
    dx = empty(flat.shape, flat.dtype)
    dx[...] = 0
    dx[rows, columns] = weight * _gradient_factor(control)
    return losses, dx.reshape(log_probabilities.shape)


@_quietly
def multi_margin(
    predictions: np.ndarray, labels: np.ndarray, control: np.ndarray, power: int, margin: float, gradient: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    classes = predictions.shape[-1]
    rows, columns, _ = _rows(labels, classes, None, "multi_margin")
    flat = predictions.reshape(labels.size, classes)
    margins = np.subtract(flat, flat[rows, columns][:, None] - margin, out=_empty_like(flat))
    np.maximum(margins, 0, out=margins)
    margins[rows, columns] = 0
    losses = empty(labels.shape, flat.dtype)
    (margins if power == 1 else margins * margins).sum(axis=-1, out=losses.reshape(labels.size))
    losses /= classes
    if not gradient:
        return losses, None
    # sign() keeps NaN, where a comparison would turn it into 0.
    dx = np.sign(margins, out=margins) if power == 1 else np.multiply(margins, 2, out=margins)
    dx *= _gradient_factor(control) / classes
    dx[rows, columns] = -dx.sum(axis=-1)
    return losses, dx.reshape(predictions.shape)


def squared_error(
    predictions: np.ndarray, targets: np.ndarray, control: np.ndarray, gradient: bool, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    losses, dx = _empty_like(predictions), _gradient_memory(predictions, gradient, out)
    kernel = native.kernel("squared_error", predictions)
    if kernel is not None:
        targets = np.ascontiguousarray(targets)
        kernel(np.ascontiguousarray(predictions), targets, targets, _gradient_factor(control), losses, dx)
        return losses, dx
    with np.errstate(all="ignore"):
        difference = np.subtract(predictions, targets, out=_empty_like(predictions) if dx is None else dx)
        np.multiply(difference, difference, out=losses)
        if dx is not None:
            dx *= 2 * _gradient_factor(control)
    return losses, dx


@_quietly
def absolute_error(
    predictions: np.ndarray, targets: np.ndarray, control: np.ndarray, gradient: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    difference = np.subtract(predictions, targets, out=_empty_like(predictions))
    losses = np.abs(difference, out=_empty_like(predictions))
    if not gradient:
        return losses, None
    np.sign(difference, out=difference)
    difference *= _gradient_factor(control)
    return losses, difference


@_quietly
def huber(
    predictions: np.ndarray, targets: np.ndarray, control: np.ndarray, delta: float, gradient: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    difference = np.subtract(predictions, targets, out=_empty_like(predictions))
    distance = np.abs(difference, out=_empty_like(predictions))
    clipped = np.minimum(distance, delta, out=_empty_like(predictions))
    losses = np.multiply(clipped, 0.5, out=_empty_like(predictions))
    np.subtract(distance, losses, out=losses)
    losses *= clipped
    if not gradient:
        return losses, None
    np.clip(difference, -delta, delta, out=difference)
    difference *= _gradient_factor(control)
    return losses, difference


@_quietly
def binary_cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    pos_weight: np.ndarray | None,
    control: np.ndarray,
    gradient: bool,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    positive = targets if pos_weight is None else np.multiply(targets, pos_weight, out=_empty_like(logits))
    kernel = native.kernel("binary_cross_entropy", logits)
    if kernel is not None:
        losses, dlogits = _empty_like(logits), _gradient_memory(logits, gradient, out)
        arrays = (np.ascontiguousarray(array) for array in (logits, targets, positive))
        kernel(*arrays, _gradient_factor(control), losses, dlogits)
        return losses, dlogits
    negative = np.subtract(1, targets, out=_empty_like(logits))
    above = logits > 0
    # The weights of softplus(|x|), which grows with |x|, and of softplus(-|x|), which vanishes.
    growing, vanishing = _where(above, negative, positive), _where(above, positive, negative)
    size = np.abs(logits, out=_empty_like(logits))
    small = np.exp(np.negative(size, out=_empty_like(logits)), out=_empty_like(logits))

    losses = np.log1p(small, out=_empty_like(logits))
    losses *= np.add(positive, negative, out=negative)
    losses += _product(growing, size)
    if not gradient:
        return losses, None
    vanishing *= small
    growing -= vanishing
    small += 1
    dlogits = np.divide(growing, small, out=size if out is None else out)
    np.negative(dlogits, out=dlogits, where=~above)
    dlogits *= _gradient_factor(control)
    return losses, dlogits


@_quietly
def kl_divergence(
    log_probabilities: np.ndarray, targets: np.ndarray, control: np.ndarray, log_target: bool, gradient: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    p = np.exp(targets, out=_empty_like(targets)) if log_target else targets
    difference = empty(targets.shape, targets.dtype)
    np.subtract(targets if log_target else np.log(targets, out=difference), log_probabilities, out=difference)
    losses = _product(p, difference)
    return losses, np.multiply(p, -_gradient_factor(control), out=difference) if gradient else None


@_quietly
def hinge(
    predictions: np.ndarray, targets: np.ndarray, control: np.ndarray, squared: bool, gradient: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    margins = np.multiply(predictions, targets, out=_empty_like(predictions))
    np.subtract(1, margins, out=margins)
    np.maximum(margins, 0, out=margins)
    losses = np.multiply(margins, margins, out=_empty_like(predictions)) if squared else margins
    if not gradient:
        return losses, None
    slope = np.multiply(margins, 2, out=margins) if squared else np.sign(margins, out=_empty_like(predictions))
    slope *= targets
    slope *= -_gradient_factor(control)
    return losses, slope


def _inverse(control: np.ndarray) -> float:
    denominator = float(control[LOSS_DENOMINATOR])
    return 1.0 / denominator if denominator else 0.0


def _gradient_factor(control: np.ndarray) -> float:
    """What the gradient of each term is multiplied by, for that of the mean."""
    return float(control[LOSS_SCALE]) * _inverse(control)


def _gradient_memory(predictions: np.ndarray, gradient: bool, out: np.ndarray | None) -> np.ndarray | None:
    """Where the gradient goes: to `out` where it is given; None where it is not wanted."""
    if not gradient:
        return None
    return _empty_like(predictions) if out is None else out


def _empty_like(array: np.ndarray) -> np.ndarray:
    return empty(array.shape, array.dtype)


def _where(condition: np.ndarray, if_true: np.ndarray, if_false: np.ndarray) -> np.ndarray:
    chosen = empty(if_false.shape, if_false.dtype)
    chosen[...] = if_false
    np.copyto(chosen, if_true, where=condition)
    return chosen


def _product(weight: np.ndarray, value: np.ndarray) -> np.ndarray:
    """weight * value in memory of its own, with 0 * inf = 0."""
    product = empty(value.shape, value.dtype)
    np.multiply(weight, value, out=product)
    if not np.isfinite(value).all():
        product[np.broadcast_to(weight == 0, product.shape)] = 0
    return product


def _rows(
    labels: np.ndarray, classes: int, ignore_index: int | None, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers, the column of each row's label (0 where ignored), and which rows count."""
    check_labels(name, labels, classes, ignore_index)
    flat = labels.reshape(labels.size)
    kept = np.ones(labels.size, np.bool_) if ignore_index is None else flat != ignore_index
    return np.arange(labels.size), np.where(kept, flat, 0), kept


def _softmax_parts(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits less the largest of their row, the exponentials of these, and the sum of them by row."""
    shifted = np.subtract(logits, logits.max(axis=-1, keepdims=True), out=_empty_like(logits))
    exponentials = np.exp(shifted, out=_empty_like(logits))
    return shifted, exponentials, exponentials.sum(axis=-1, keepdims=True)
