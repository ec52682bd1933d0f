"""Loss: the base of all losses."""

from typing import ClassVar

import numpy as np

import bp.ops.loss as ops
from bp.errors import ConfigurationError, ShapeError
from bp.layers.context import Context
from bp.ops.array import Array, Shape
from bp.ops.checks import same_device
from bp.ops.control import LOSS_DENOMINATOR
from bp.ops.device import device_of


class Loss:
    """A forward from (predictions, targets) to a loss, and a backward to dL/dpredictions.

    reduction: "mean" over the terms that count, "sum", or "none" (one loss per term). A mean over no terms, as
    of an empty batch or one whose labels are all ignored, is 0 with gradient 0 (PyTorch gives NaN).
    A loss of its own writes `terms`, `check`, and, where not every element of the targets is a term, `count`.
    """

    reductions: ClassVar[tuple[str, ...]] = ("mean", "sum", "none")

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in self.reductions:
            raise ConfigurationError(
                f"{self.label} expected reduction {', '.join(self.reductions[:-1])} or {self.reductions[-1]}, "
                f"got {reduction!r}"
            )
        self.reduction = reduction

    @property
    def label(self) -> str:
        """How errors name this loss."""
        return type(self).__name__

    def check(self, prediction_shape: Shape, targets: np.ndarray) -> None:
        """Raise where host targets do not fit predictions of that shape; called before targets reach a device.

        Raises ShapeError, DtypeError, or DataError (a label outside the classes, NaN) with the index of the first.
        """

    def count(self, targets: np.ndarray) -> float:
        """How many terms (or how much weight) a mean over these targets divides by.

        Counts of parts of a batch add up to that of the batch, so micro-batches that share a denominator
        (`Context(denominator=...)`) give the loss and the gradient of the whole. Targets need not be checked yet.
        """
        return float(targets.size)

    @property
    def averages(self) -> bool:
        """Whether the loss is a mean, over terms or over samples, and so depends on how many there are."""
        return self.reduction not in ("sum", "none")

    def denominator(self, count: float) -> float:
        """What control[LOSS_DENOMINATOR] has to be for a batch of that `count`: 1 where nothing is averaged."""
        return count if self.averages else 1.0

    def terms(self, predictions: Array, targets: Array, control: Array, gradient: bool) -> tuple[Array, Array | None]:
        """The loss of each term, and with `gradient` dL/dpredictions of the mean (see `bp.ops.loss`)."""
        raise NotImplementedError(f"{self.label} has no terms")

    def terms_in_place(self, predictions: Array, targets: Array, control: Array) -> tuple[Array, Array | None] | None:
        """As `terms` with the gradient, which takes the memory of the predictions; None where a loss cannot do that."""
        return None

    def forward(self, predictions: Array, targets: Array, ctx: Context) -> Array:
        """The loss, of shape () (or one per term); saves the gradient on `ctx` for `backward`.

        Floating targets have the dtype of the predictions (the Trainer casts them). Where the context says
        that nobody needs the predictions any more, a loss that can puts the gradient in their memory.
        """
        same_device(self.label, "targets", targets, "the predictions", predictions)
        control = ctx.control_beside(predictions)
        if ctx.owns_control:
            count = ctx.denominator
            if count is None and self.averages:
                count = self.count(device_of(targets).to_host(targets))
            entry = control[LOSS_DENOMINATOR : LOSS_DENOMINATOR + 1]
            device_of(control).fill(entry, self.denominator(count or 0.0))
        done = None
        if ctx.predictions_unneeded and ctx.saving:
            done = self.terms_in_place(predictions, targets, control)
        losses, gradient = done or self.terms(predictions, targets, control, ctx.saving)
        ctx.save(self, gradient, losses.shape)
        return losses if self.reduction == "none" else ops.mean_of_terms(losses, control)

    def backward(self, ctx: Context, dlosses: Array | None = None) -> Array:
        """dL/dpredictions. dlosses: dL/dloss of each term, for reduction "none" alone (None: all 1)."""
        gradient, shape = ctx.take(self)
        if dlosses is not None:
            if self.reduction != "none":
                raise ConfigurationError(f"{self.label} takes dlosses with reduction none, not {self.reduction}")
            if dlosses.shape != shape:
                raise ShapeError(f"{self.label} expected dlosses of shape {shape}, got {dlosses.shape}")
            ops.scale_terms(gradient, dlosses)
        return gradient

    def __call__(self, predictions: Array, targets: Array) -> Array:
        """The loss alone, without a gradient; targets are checked."""
        self.check(tuple(predictions.shape), device_of(targets).to_host(targets))
        return self.forward(predictions, targets, Context())
