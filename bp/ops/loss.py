"""Losses: one number per term, and its gradient, which is computed in the same pass over the predictions.

Every loss here takes the control block and a flag `gradient`. With it, the second result is
dL/dprediction of the mean, that is each term's gradient divided by control[LOSS_DENOMINATOR] (zero where the
denominator is zero: a batch without terms has no loss and no gradient); otherwise it is None.

Terms are of the dtype of the predictions, float32 where these are 16-bit floats, and so are class weights; the gradient
is of the dtype of the predictions. It is multiplied by control[LOSS_SCALE], which is 1 except in precision fp16.

A term whose weight or target probability is zero is zero, also where the logarithm beside it is infinite: the limit of
p log p, where the bare product would be NaN. NaN predictions give NaN, except in terms that are ignored or of
weight zero.
"""

import numpy as np

from bp.errors import DataError, DtypeError, ShapeError
from bp.ops.array import Array, is_floating
from bp.ops.checks import contiguous, has_shape, same_dtype, wide_dtype
from bp.ops.operation import operation


@operation
def mean_of_terms(losses: Array, control: Array) -> Array:
    """sum(losses) / control[LOSS_DENOMINATOR], of shape (); 0 where the denominator is 0.

    losses: any shape, accumulated in at least float32.
    """


@operation
def scale_terms(gradient: Array, dlosses: Array) -> None:
    """gradient *= dlosses, in place, by the chain rule for terms that are not averaged but used one by one.

    dlosses: dL/dloss of each term, of the leading sizes of gradient and its dtype (float32 where that is a 16-bit
    float); what follows of the axes of gradient belongs to one term.
    """
    has_shape("scale_terms", "dlosses", dlosses, gradient.shape[: dlosses.ndim])


@operation
def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    control: Array,
    ignore_index: int,
    label_smoothing: float,
    gradient: bool,
    out: Array | None = None,
) -> tuple[Array, Array | None]:
    """loss_n = -(1 - s) w_y log p_y - s/C sum_c w_c log p_c, where p = softmax(logits_n), y = labels_n.

    s is the label smoothing, w the class weights. Without both, loss = log sum_c e^{z_c} - z_y, so dloss/dz_c =
    p_c - [c = y]: the softmax minus the target. In general, with target weights t_c = (1 - s) w_y [c = y] + s w_c / C,
    loss = -sum t_c log p_c and dloss/dz_c = p_c sum(t) - t_c. The largest logit is subtracted first, so no
    exponential overflows. A logit of -inf is a class that cannot be: probability and gradient 0; a row with +inf, or of
    nothing but -inf, has no softmax and gives NaN.

    logits: (..., C); labels: integers of shape (...,) in 0..C-1, or `ignore_index` for a term without loss and
    gradient, whatever its logits; class_weight: (C,) or None. out: where dlogits go, of the shape and dtype of logits;
    it may be the logits themselves, where nobody needs them any more. Returns losses (...,), and dlogits (..., C) or
    None. Raises DataError on a label outside the classes; a GPU, which cannot, gives that row NaN.
    Source: Bridle (1990); smoothing: Szegedy et al., Rethinking the Inception Architecture (2016).
    """
    _by_class("softmax_cross_entropy", "logits", logits, labels, class_weight)
    _takes_gradient("softmax_cross_entropy", "logits", logits, out)


@operation
def soft_cross_entropy(
    logits: Array,
    targets: Array,
    class_weight: Array | None,
    control: Array,
    label_smoothing: float,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """loss_n = -sum_c w_c t_c log p_c, where p = softmax(logits_n) and t = (1 - s) targets_n + s / C.

    log p_c = z_c - log sum_k e^{z_k} has the derivative [c = k] - p_k by z_k; with q_c = w_c t_c, dloss/dz_k =
    p_k sum(q) - q_k. Rows of targets need not sum to one.

    logits, targets: (..., C) of one dtype; class_weight: (C,) or None. Returns losses (...,), and dlogits (..., C) or
    None.
    Source: as `softmax_cross_entropy`.
    """
    _like("soft_cross_entropy", "logits", logits, targets)
    _has_classes("soft_cross_entropy", "logits", logits)
    _class_weight("soft_cross_entropy", "logits", logits, class_weight)


@operation
def negative_log_likelihood(
    log_probabilities: Array,
    labels: Array,
    class_weight: Array | None,
    control: Array,
    ignore_index: int,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """loss_n = -w_y x_y, where x = log_probabilities_n and y = labels_n; dloss/dx_c = -w_y [c = y], for it is linear.

    log_probabilities: (..., C), for example from LogSoftmax; labels: integers of shape (...,) in 0..C-1, or
    `ignore_index` for a term without loss; class_weight: (C,) or None. Returns losses (...,) and the gradient (..., C)
    or None. Raises DataError on a label outside the classes.
    Source: Bishop, Pattern Recognition and Machine Learning (2006), equation 4.108.
    """
    _by_class("negative_log_likelihood", "log_probabilities", log_probabilities, labels, class_weight)


@operation
def multi_margin(
    predictions: Array, labels: Array, control: Array, power: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    """loss_n = 1/C sum_{c != y} m_c^p, where m_c = max(0, margin - x_y + x_c), x = predictions_n, y = labels_n.

    A class within the margin, m_c > 0, moves by dloss/dx_c = p m_c^{p-1} / C, and each such class pushes the label the
    other way: dloss/dx_y = -sum of these. At m_c = 0 the slope taken is 0.

    predictions: (..., C); labels: integers of shape (...,) in 0..C-1; power p: 1 or 2. Returns losses (...,) and the
    gradient (..., C) or None. Raises DataError on a label outside the classes.
    Source: Crammer and Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines (2001), in
    the summed form of Weston and Watkins (1999).
    """
    _by_class("multi_margin", "predictions", predictions, labels, None)


@operation
def squared_error(
    predictions: Array, targets: Array, control: Array, gradient: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """loss = (x - t)^2 and dloss/dx = 2 (x - t), elementwise.

    predictions x, targets t: one shape and dtype, that of both results. out: as in `softmax_cross_entropy`.
    Source: Gauss, Theoria motus (1809).
    """
    _like("squared_error", "predictions", predictions, targets)
    _takes_gradient("squared_error", "predictions", predictions, out)


@operation
def absolute_error(predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
    """loss = |x - t| and dloss/dx = sign(x - t), elementwise; 0 is taken at x = t, where there is no derivative.

    predictions x, targets t: one shape and dtype, that of both results. Source: Laplace (1774).
    """
    _like("absolute_error", "predictions", predictions, targets)


@operation
def huber(
    predictions: Array, targets: Array, control: Array, delta: float, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), with d = x - t, elementwise.

    With c = min(|d|, delta) both are c (|d| - c / 2). dloss/dx = d inside and delta sign(d) outside: d clipped to
    -delta..delta, continuous at the seam.

    predictions x, targets t: one shape and dtype, that of both results; delta > 0.
    Source: Huber, Robust Estimation of a Location Parameter (1964).
    """
    _like("huber", "predictions", predictions, targets)


@operation
def binary_cross_entropy(
    logits: Array,
    targets: Array,
    pos_weight: Array | None,
    control: Array,
    gradient: bool,
    out: Array | None = None,
) -> tuple[Array, Array | None]:
    """loss = -w t log sigma(x) - (1 - t) log sigma(-x) = w t softplus(-x) + (1 - t) softplus(x), elementwise.

    softplus'(x) = sigma(x), so dloss/dx = (1 - t) sigma(x) - w t sigma(-x). softplus(x) is taken as
    max(x, 0) + log(1 + e^{-|x|}), and sigma(-|x|) as e^{-|x|} / (1 + e^{-|x|}): nothing overflows, and nothing cancels.

    logits x, targets t: one shape and dtype, that of both results; t in 0..1. pos_weight w: (C,) along the last axis,
    or () for all, or None for 1. out: as in `softmax_cross_entropy`.
    Source: Bishop, Pattern Recognition and Machine Learning (2006), equation 4.90.
    """
    _like("binary_cross_entropy", "logits", logits, targets)
    if pos_weight is not None and pos_weight.shape != ():
        has_shape("binary_cross_entropy", "pos_weight", pos_weight, logits.shape[-1:])
    wide_dtype("binary_cross_entropy", logits, pos_weight=pos_weight)
    _takes_gradient("binary_cross_entropy", "logits", logits, out)


@operation
def kl_divergence(
    log_probabilities: Array, targets: Array, control: Array, log_target: bool, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = p (log p - x), elementwise; summed over a distribution that is KL(p || e^x). dloss/dx = -p.

    p = e^targets where `log_target`, else targets; 0 log 0 = 0.

    log_probabilities x, targets: one shape and dtype, that of both results.
    Source: Kullback and Leibler, On Information and Sufficiency (1951).
    """
    _like("kl_divergence", "log_probabilities", log_probabilities, targets)


@operation
def hinge(
    predictions: Array, targets: Array, control: Array, squared: bool, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = m, or m^2 where `squared`, with m = max(0, 1 - t x), elementwise.

    dm/dx = -t where t x < 1, else 0 (also at the kink), so dloss/dx is that, or 2 m times it.

    predictions x, targets t: one shape and dtype, that of both results; t is -1 or +1.
    Source: Cortes and Vapnik, Support-Vector Networks (1995).
    """
    _like("hinge", "predictions", predictions, targets)


def check_labels(name: str, labels: np.ndarray, classes: int, ignore_index: int | None) -> None:
    """Raise DataError with the first host label that is neither in 0..classes-1 nor `ignore_index`."""
    if not labels.size or (labels.min() >= 0 and labels.max() < classes):
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        ignored = "" if ignore_index is None else f" (or {ignore_index} to ignore)"
        raise DataError(
            f"{name} expected labels in 0..{classes - 1}{ignored}, got {int(labels[index])} at index {index}"
        )


def _like(operation: str, name: str, predictions: Array, targets: Array) -> None:
    if not is_floating(predictions.dtype):
        raise DtypeError(f"{operation} expected floating {name}, got {predictions.dtype}")
    if targets.shape != predictions.shape:
        raise ShapeError(f"{operation} expected targets of shape {predictions.shape} like {name}, got {targets.shape}")
    if targets.dtype != predictions.dtype:
        raise DtypeError(
            f"{operation} expected targets of dtype {predictions.dtype} like {name}, got {targets.dtype}; "
            f"the Trainer casts them, by hand write targets.astype({name}.dtype)"
        )


def _takes_gradient(operation: str, name: str, predictions: Array, out: Array | None) -> None:
    if out is not None:
        has_shape(operation, "out", out, predictions.shape)
        same_dtype(operation, **{name: predictions, "out": out})
        contiguous(operation, "out", out)


def _by_class(operation: str, name: str, predictions: Array, labels: Array, class_weight: Array | None) -> None:
    if not is_floating(predictions.dtype):
        raise DtypeError(f"{operation} expected floating {name}, got {predictions.dtype}")
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{operation} expected integer labels, got {labels.dtype}")
    _has_classes(operation, name, predictions)
    has_shape(operation, "labels", labels, predictions.shape[:-1])
    _class_weight(operation, name, predictions, class_weight)


def _has_classes(operation: str, name: str, predictions: Array) -> None:
    if predictions.ndim == 0 or predictions.shape[-1] == 0:
        raise ShapeError(f"{operation} expected {name} of shape (..., classes), got {predictions.shape}")


def _class_weight(operation: str, name: str, predictions: Array, class_weight: Array | None) -> None:
    if class_weight is not None:
        has_shape(operation, "class_weight", class_weight, predictions.shape[-1:])
        wide_dtype(operation, predictions, class_weight=class_weight)
