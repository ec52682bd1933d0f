"""Losses: one number per term, and its gradient, which is computed in the same pass over the predictions.

Every loss here takes the control block and a flag `gradient`. With it, the second result is
dL/dprediction of the mean, that is each term's gradient divided by control[LOSS_DENOMINATOR] (zero where the
denominator is zero: a batch without terms has no loss and no gradient); otherwise it is None.
"""

from bp.ops.array import Array
from bp.ops.checks import has_shape
from bp.ops.operation import operation


@operation
def mean_of_terms(losses: Array, control: Array) -> Array:
    """sum(losses) / control[LOSS_DENOMINATOR], of shape (); 0 where the denominator is 0.

    losses: any shape, accumulated in at least float32.
    """


@operation
def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    control: Array,
    ignore_index: int,
    label_smoothing: float,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """loss_n = -(1 - s) w_y log p_y - s/C sum_c w_c log p_c, where p = softmax(logits_n), y = labels_n.

    s is the label smoothing, w the class weights. Without both, loss = log sum_c e^{z_c} - z_y, so dloss/dz_c =
    p_c - [c = y]: the softmax minus the target. In general, with target weights t_c = (1 - s) w_y [c = y] + s w_c / C,
    loss = -sum t_c log p_c and dloss/dz_c = p_c sum(t) - t_c. The largest logit is subtracted first, so no
    exponential overflows.

    logits: (..., C); labels: integers of shape (...,) in 0..C-1, or `ignore_index` for a term without loss;
    class_weight: (C,) or None. Returns losses (...,) of the dtype of logits, and dlogits (..., C) or None. Labels are
    checked on the host before they reach a device (`CrossEntropyLoss`).
    Source: Bridle (1990); smoothing: Szegedy et al., Rethinking the Inception Architecture (2016).
    """
    has_shape("softmax_cross_entropy", "labels", labels, logits.shape[:-1])
    has_shape("softmax_cross_entropy", "class_weight", class_weight, logits.shape[-1:])
