"""Metrics: what an evaluation measures beside the loss, as sums and counts, exact over batches of unequal size."""

from abc import ABC, abstractmethod

import numpy as np

import bp.ops.reduce as reduce
from bp.errors import ConfigurationError, DtypeError, ShapeError

__all__ = ["Accuracy", "MeanAbsoluteError", "Metric", "R2Score", "TopKAccuracy"]


class Metric(ABC):
    """Collects host batches by `update`; `compute` gives the figure over everything since the last `reset`.

    A batch weighs as many samples as it has, so the figure does not depend on how the data were cut into batches.
    name: how records and tables call it; one that falls as the model gets better has "error" or "loss" in it.
    """

    name: str

    def __init__(self) -> None:
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches."""

    @abstractmethod
    def update(self, predictions: np.ndarray, targets: np.ndarray) -> None:
        """Take in one batch. Raises ShapeError or DtypeError where the two do not fit; then nothing has changed."""

    @abstractmethod
    def compute(self) -> float:
        """The figure; 0 where nothing was counted."""


class Accuracy(Metric):
    """The part of labels (...,) that have the largest of the predictions (..., C): logits or probabilities.

    Of equal predictions the lowest class is taken; predictions with NaN are wrong. ignore_index: a label that does not
    count.
    """

    name = "accuracy"

    def __init__(self, *, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index
        super().__init__()

    def reset(self) -> None:
        self.correct = 0
        self.total = 0

    def update(self, predictions: np.ndarray, targets: np.ndarray) -> None:
        if targets.dtype.kind not in "iu":
            raise DtypeError(f"{self.name} expected integer labels, got {targets.dtype}")
        if predictions.ndim == 0 or predictions.shape[-1] == 0 or targets.shape != predictions.shape[:-1]:
            raise ShapeError(
                f"{self.name} expected predictions of shape (..., classes) and labels of shape (...,), "
                f"got {predictions.shape} and {targets.shape}"
            )
        kept = targets != self.ignore_index
        self.correct += int(np.count_nonzero(kept & self.hits(predictions, targets)))
        self.total += int(np.count_nonzero(kept))

    def hits(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Which rows are right; ignored labels may give anything."""
        best = reduce.argmax(predictions)
        # A row with NaN has it as its largest element.
        return (best == targets) & ~np.isnan(_at(predictions, best))

    def compute(self) -> float:
        return self.correct / self.total if self.total else 0.0


class TopKAccuracy(Accuracy):
    """The part of labels that are among the `k` largest predictions of their row; with k = 1 it is `Accuracy`."""

    def __init__(self, k: int = 5, *, ignore_index: int = -100) -> None:
        if k < 1:
            raise ConfigurationError(f"TopKAccuracy expected k of at least 1, got {k}")
        self.k = k
        self.name = f"top{k}_accuracy"
        super().__init__(ignore_index=ignore_index)

    def hits(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        classes = predictions.shape[-1]
        inside = (targets >= 0) & (targets < classes)
        labels = np.where(inside, targets, 0)
        chosen = _at(predictions, labels)[..., None]
        # The label's place in a sort that puts the lowest class first among equals; no sort is needed to know it.
        ahead = (predictions > chosen) | ((predictions == chosen) & (np.arange(classes) < labels[..., None]))
        hit: np.ndarray = inside & (ahead.sum(axis=-1) < self.k) & ~np.isnan(predictions).any(axis=-1)
        return hit


class MeanAbsoluteError(Metric):
    """The mean of |prediction - target| over all elements, in the units of the targets."""

    name = "mean_absolute_error"

    def reset(self) -> None:
        self.sum = 0.0
        self.count = 0

    def update(self, predictions: np.ndarray, targets: np.ndarray) -> None:
        _same_shape(self.name, predictions, targets)
        with np.errstate(all="ignore"):
            self.sum += float(np.abs(np.subtract(predictions, targets, dtype=np.float64)).sum())
        self.count += targets.size

    def compute(self) -> float:
        return self.sum / self.count if self.count else 0.0


class R2Score(Metric):
    """1 - sum (t - x)^2 / sum (t - mean t)^2 over all elements: 1 is perfect, 0 no better than the targets' mean.

    Targets that are all equal have no variance to explain: 1 if they are met exactly, else 0, as in scikit-learn. The
    sums of batches are merged about their own means, so large targets of small variance lose nothing.
    Source: Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance (1983).
    """

    name = "r2"

    def reset(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.total = 0.0  # sum of squared deviations of the targets from their mean
        self.residual = 0.0

    def update(self, predictions: np.ndarray, targets: np.ndarray) -> None:
        _same_shape(self.name, predictions, targets)
        if not targets.size:
            return
        with np.errstate(all="ignore"):
            values = targets.astype(np.float64)
            mean = float(values.mean())
            apart = mean - self.mean
            count = self.count + values.size
            self.total += float(np.square(values - mean).sum()) + apart * apart * self.count * values.size / count
            self.mean += apart * values.size / count
            self.residual += float(np.square(predictions - values).sum())
        self.count = count

    def compute(self) -> float:
        if self.total == 0.0:
            return 1.0 if self.count and self.residual == 0.0 else 0.0
        return 1.0 - self.residual / self.total


def _at(predictions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The prediction of one class by row."""
    found: np.ndarray = np.take_along_axis(predictions, classes[..., None], axis=-1)[..., 0]
    return found


def _same_shape(name: str, predictions: np.ndarray, targets: np.ndarray) -> None:
    if predictions.shape != targets.shape:
        raise ShapeError(
            f"{name} expected predictions and targets of one shape, got {predictions.shape} and {targets.shape}"
        )
