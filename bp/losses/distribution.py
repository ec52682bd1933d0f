"""The distance of one distribution from another."""

from typing import ClassVar

import numpy as np

import bp.ops.loss as ops
from bp.losses.checks import expect_all, expect_like_predictions
from bp.losses.loss import Loss
from bp.ops.array import Array, Shape


class KLDivLoss(Loss):
    """p (log p - x) over all elements, where the predictions x are log-probabilities and p are the targets.

    reduction: as everywhere, "mean" is over elements; the Kullback-Leibler divergence itself is "batchmean", the sum
    divided by the size of the batch. log_target: the targets are log p (-inf for a probability of 0) instead of p.
    """

    reductions: ClassVar[tuple[str, ...]] = ("mean", "batchmean", "sum", "none")

    def __init__(self, *, log_target: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        expect_like_predictions(self.label, prediction_shape, targets)
        if self.log_target:
            expect_all(self.label, targets < np.inf, "finite log-probabilities, or -inf, as targets", targets)
        else:
            expect_all(self.label, (targets >= 0) & (targets < np.inf), "finite probabilities as targets", targets)

    def count(self, targets: np.ndarray) -> float:
        return float(targets.shape[0] if self.reduction == "batchmean" and targets.ndim else targets.size)

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.kl_divergence(predictions, targets, control, self.log_target, gradient)
