"""Losses of a choice among classes, which lie along the last axis of the predictions."""

from collections.abc import Sequence

import numpy as np

import bp.ops.loss as ops
from bp.errors import ConfigurationError, ShapeError
from bp.losses.checks import Weights, expect_all, expect_integers, expect_labels, expect_like_predictions
from bp.losses.loss import Loss
from bp.ops.array import Array, Shape, is_floating


class _ByClass(Loss):
    """What losses with class weights and ignored labels share."""

    def __init__(self, weight: Sequence[float] | None, ignore_index: int, reduction: str) -> None:
        super().__init__(reduction)
        self.weight = None if weight is None else Weights(self.label, "weight", weight)
        self.ignore_index = ignore_index

    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        _expect_classes(self.label, prediction_shape)
        if self.weight is not None:
            self.weight.expect_classes(self.label, prediction_shape)
        expect_labels(self.label, prediction_shape, targets, self.ignore_index)

    def count(self, targets: np.ndarray) -> float:
        kept = targets != self.ignore_index
        if self.weight is None:
            return float(np.count_nonzero(kept))
        expect_integers(self.label, targets)  # other labels cannot be looked up among the weights
        weights = self.weight.values
        return float(weights[targets[kept & (targets >= 0) & (targets < weights.size)]].sum())

    def weights_for(self, predictions: Array) -> Array | None:
        """The class weights beside the predictions."""
        return None if self.weight is None else self.weight.beside(predictions)


class CrossEntropyLoss(_ByClass):
    """Softmax cross-entropy on logits (..., C); see `bp.ops.loss`.

    Targets are integer labels (...,), or distributions (..., C) over the classes in the dtype of the logits. As
    everywhere in bp the classes are the last axis, where PyTorch has them second.

    weight: (C,) by class; ignore_index: a label whose terms do not count; label_smoothing: in 0..1, the part of each
    target that is spread evenly over the classes. The mean divides by the weight of the labels that count, and for
    distributions by their number, as in PyTorch.
    """

    def __init__(
        self,
        *,
        weight: Sequence[float] | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, ignore_index, reduction)
        if not 0 <= label_smoothing <= 1:
            raise ConfigurationError(f"{self.label} expected label_smoothing in 0..1, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        if not is_floating(targets.dtype):
            super().check(prediction_shape, targets)
            return
        _expect_classes(self.label, prediction_shape)
        if self.weight is not None:
            self.weight.expect_classes(self.label, prediction_shape)
        if targets.shape == prediction_shape[:-1]:
            raise ShapeError(
                f"{self.label} expected integer labels of shape {prediction_shape[:-1]} or distributions of shape "
                f"{prediction_shape}, got {targets.dtype} targets of shape {targets.shape}"
            )
        expect_like_predictions(self.label, prediction_shape, targets)
        expect_all(self.label, (targets >= 0) & (targets < np.inf), "finite probabilities as targets", targets)

    def count(self, targets: np.ndarray) -> float:
        if is_floating(targets.dtype):
            return float(targets.size // targets.shape[-1]) if targets.size else 0.0
        return super().count(targets)

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        weight, smoothing = self.weights_for(predictions), self.label_smoothing
        if is_floating(targets.dtype):
            return ops.soft_cross_entropy(predictions, targets, weight, control, smoothing, gradient)
        return ops.softmax_cross_entropy(predictions, targets, weight, control, self.ignore_index, smoothing, gradient)

    def terms_in_place(self, predictions: Array, targets: Array, control: Array) -> tuple[Array, Array | None] | None:
        if is_floating(targets.dtype):
            return None
        weight, smoothing = self.weights_for(predictions), self.label_smoothing
        settings = control, self.ignore_index, smoothing, True, predictions
        return ops.softmax_cross_entropy(predictions, targets, weight, *settings)


class NLLLoss(_ByClass):
    """Negative log likelihood -w_y x_y of integer labels y (...,) under log-probabilities x (..., C), as of LogSoftmax.

    weight: (C,) by class; ignore_index: a label whose terms do not count. The mean divides by the weight of the labels
    that count. `CrossEntropyLoss` on logits is the same in one pass.
    """

    def __init__(
        self, *, weight: Sequence[float] | None = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(weight, ignore_index, reduction)

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        weight = self.weights_for(predictions)
        return ops.negative_log_likelihood(predictions, targets, weight, control, self.ignore_index, gradient)


class MultiMarginLoss(Loss):
    """The hinge loss over classes: predictions (..., C), integer labels (...,); a term is a sample.

    Every class that comes within `margin` of the label's score costs that distance to the power `p` (1 or 2), divided
    by the number of classes.
    """

    def __init__(self, *, p: int = 1, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if p not in (1, 2):
            raise ConfigurationError(f"{self.label} expected p of 1 or 2, got {p}")
        self.p = p
        self.margin = margin

    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        _expect_classes(self.label, prediction_shape)
        expect_labels(self.label, prediction_shape, targets, None)

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.multi_margin(predictions, targets, control, self.p, self.margin, gradient)


def _expect_classes(label: str, prediction_shape: Shape) -> None:
    if not prediction_shape or prediction_shape[-1] == 0:
        raise ShapeError(f"{label} expected predictions of shape (..., classes), got {prediction_shape}")
