"""Losses of regression: mean squared error, mean absolute error, and Huber's in between."""

import numpy as np

import bp.ops.loss as ops
from bp.errors import ConfigurationError
from bp.losses.checks import expect_all, expect_like_predictions
from bp.losses.loss import Loss
from bp.ops.array import Array, Shape


class _Regression(Loss):
    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        expect_like_predictions(self.label, prediction_shape, targets)
        expect_all(self.label, np.isfinite(targets), "finite targets", targets)


class MSELoss(_Regression):
    """Mean squared error (x - t)^2 over all elements; predictions and targets of one shape."""

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.squared_error(predictions, targets, control, gradient)

    def terms_in_place(self, predictions: Array, targets: Array, control: Array) -> tuple[Array, Array | None]:
        return ops.squared_error(predictions, targets, control, True, predictions)


class L1Loss(_Regression):
    """Mean absolute error |x - t| over all elements; predictions and targets of one shape."""

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.absolute_error(predictions, targets, control, gradient)


class HuberLoss(_Regression):
    """Squared error / 2 up to a distance of `delta`, and linear beyond it, so that outliers pull with a bounded force.

    Predictions and targets of one shape. delta > 0, in the units of the targets.
    """

    def __init__(self, *, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ConfigurationError(f"{self.label} expected delta > 0, got {delta}")
        self.delta = delta

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.huber(predictions, targets, control, self.delta, gradient)
