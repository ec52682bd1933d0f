"""Losses of yes-or-no decisions, each element one of its own: cross-entropy on logits, and hinge."""

from collections.abc import Sequence

import numpy as np

import bp.ops.loss as ops
from bp.losses.checks import Weights, expect_all, expect_like_predictions
from bp.losses.loss import Loss
from bp.ops.array import Array, Shape


class BCEWithLogitsLoss(Loss):
    """Binary cross-entropy on logits, over all elements; targets are probabilities in 0..1 of the logits' shape.

    pos_weight: factor of the positive part, one number or (C,) along the last axis; above 1 it raises recall.
    """

    def __init__(self, *, pos_weight: float | Sequence[float] | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.pos_weight = None if pos_weight is None else Weights(self.label, "pos_weight", pos_weight, ranks=(0, 1))

    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        expect_like_predictions(self.label, prediction_shape, targets)
        if self.pos_weight is not None:
            self.pos_weight.expect_classes(self.label, prediction_shape)
        expect_all(self.label, (targets >= 0) & (targets <= 1), "targets in 0..1", targets)

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.binary_cross_entropy(predictions, targets, self._weight_beside(predictions), control, gradient)

    def terms_in_place(self, predictions: Array, targets: Array, control: Array) -> tuple[Array, Array | None]:
        weight = self._weight_beside(predictions)
        return ops.binary_cross_entropy(predictions, targets, weight, control, True, predictions)

    def _weight_beside(self, predictions: Array) -> Array | None:
        return None if self.pos_weight is None else self.pos_weight.beside(predictions)


class HingeLoss(Loss):
    """max(0, 1 - t x) over all elements, or its square; targets are -1 or +1, of the predictions' shape.

    This is the binary hinge loss of Keras and scikit-learn; `MultiMarginLoss` is the one over several classes.
    """

    def __init__(self, *, squared: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.squared = squared

    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        expect_like_predictions(self.label, prediction_shape, targets)
        expect_all(self.label, np.abs(targets) == 1, "targets of -1 or +1", targets)

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.hinge(predictions, targets, control, self.squared, gradient)
