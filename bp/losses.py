"""Losses: from predictions and targets to the number that training lowers, and its gradient."""

import numpy as np

import bp.ops.loss as ops
from bp.errors import ConfigurationError, DataError, DtypeError, ShapeError
from bp.layers.context import Context
from bp.ops.array import Array
from bp.ops.control import LOSS_DENOMINATOR

REDUCTIONS = ("mean", "sum", "none")


class Loss:
    """A forward from (predictions, targets) to a loss, and a backward to dL/dpredictions.

    reduction: "mean" over the terms that count, "sum", or "none" (one loss per term). A mean over no terms, as
    of an empty batch or one whose labels are all ignored, is 0 with gradient 0.
    A loss of its own writes `terms` and, where not every element of the targets is a term, `count`.
    """

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in REDUCTIONS:
            raise ConfigurationError(f"{self.label} expected reduction in {REDUCTIONS}, got {reduction!r}")
        self.reduction = reduction

    @property
    def label(self) -> str:
        """How errors name this loss."""
        return type(self).__name__

    def check(self, prediction_shape: tuple[int, ...], targets: np.ndarray) -> None:
        """Raise where host targets do not fit predictions of that shape; called before targets reach a device."""

    def count(self, targets: np.ndarray) -> float:
        """How many terms (or how much weight) a mean over these targets divides by."""
        return float(targets.size)

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        """The loss of each term, and with `gradient` dL/dpredictions of the mean (see `bp.ops.loss`)."""
        raise NotImplementedError(f"{self.label} has no terms")

    def forward(self, predictions: Array, targets: Array, ctx: Context) -> Array:
        """The loss, of shape () (or one per term); saves the gradient on `ctx` for `backward`."""
        if self.reduction != "mean":
            denominator = 1.0
        else:
            denominator = self.count(targets) if ctx.denominator is None else ctx.denominator
        ctx.control[LOSS_DENOMINATOR] = denominator
        losses, gradient = self.terms(predictions, targets, ctx.control, ctx.saving)
        ctx.save(self, gradient)
        return losses if self.reduction == "none" else ops.mean_of_terms(losses, ctx.control)

    def backward(self, ctx: Context, dlosses: Array | None = None) -> Array:
        """dL/dpredictions. dlosses: for reduction "none", dL/dloss of each term."""
        (gradient,) = ctx.take(self)
        if self.reduction == "none" and dlosses is not None:
            gradient = gradient * dlosses.reshape(dlosses.shape + (1,) * (gradient.ndim - dlosses.ndim))
        return gradient

    def __call__(self, predictions: Array, targets: Array) -> Array:
        """The loss alone, without a gradient; targets are checked."""
        self.check(tuple(predictions.shape), np.asarray(targets))
        return self.forward(predictions, targets, Context())


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy on logits (..., C) with integer labels (...,); see `bp.ops.loss`.

    weight: (C,) by class; ignore_index: a label whose terms do not count; label_smoothing: in [0, 1).
    """

    def __init__(
        self,
        *,
        weight: Array | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.weight = weight
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def check(self, prediction_shape: tuple[int, ...], targets: np.ndarray) -> None:
        if targets.dtype.kind not in "iu":
            raise DtypeError(f"{self.label} expected integer labels, got {targets.dtype}")
        if targets.shape != prediction_shape[:-1]:
            raise ShapeError(f"{self.label} expected labels of shape {prediction_shape[:-1]}, got {targets.shape}")
        wrong = (targets != self.ignore_index) & ((targets < 0) | (targets >= prediction_shape[-1]))
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise DataError(
                f"{self.label} expected labels in 0..{prediction_shape[-1] - 1} (or {self.ignore_index} to ignore), "
                f"got {int(targets[first])} at index {first}"
            )

    def count(self, targets: np.ndarray) -> float:
        kept = targets[targets != self.ignore_index]
        return float(kept.size if self.weight is None else self.weight[kept].sum())

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        return ops.softmax_cross_entropy(
            predictions, targets, self.weight, control, self.ignore_index, self.label_smoothing, gradient
        )
