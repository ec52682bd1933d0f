"""Checks of host targets that losses share; each error names the loss, what it expected and what came."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bp.errors import ConfigurationError, DataError, DtypeError, ShapeError
from bp.ops.array import Array, Shape, is_floating
from bp.ops.device import device_of
from bp.ops.loss import check_labels


def expect_like_predictions(label: str, prediction_shape: Shape, targets: np.ndarray) -> None:
    """Floating targets of exactly the predictions' shape."""
    if targets.shape != prediction_shape:
        raise ShapeError(
            f"{label} expected targets of shape {prediction_shape} like the predictions, got {targets.shape}; "
            "reshape one of the two: broadcasting would compare every prediction with every target"
        )
    if not is_floating(targets.dtype):
        raise DtypeError(
            f"{label} expected floating targets, got {targets.dtype}; write for example targets.astype('float32')"
        )


def expect_all(label: str, fits: np.ndarray, expected: str, targets: np.ndarray) -> None:
    """Every target fits; NaN never does, since it compares false with everything."""
    if not fits.all():
        index = tuple(int(i) for i in np.argwhere(~fits)[0])
        raise DataError(f"{label} expected {expected}, got {targets[index]} at index {index}")


def expect_integers(label: str, targets: np.ndarray) -> None:
    """Labels of an integer dtype; bool is none."""
    if targets.dtype.kind not in "iu":
        raise DtypeError(f"{label} expected integer labels, got {targets.dtype}")


def expect_labels(label: str, prediction_shape: Shape, targets: np.ndarray, ignore_index: int | None) -> None:
    """Integer labels of the predictions' shape without its last axis, in 0..C-1 or `ignore_index`."""
    expect_integers(label, targets)
    if targets.shape != prediction_shape[:-1]:
        raise ShapeError(f"{label} expected labels of shape {prediction_shape[:-1]}, got {targets.shape}")
    check_labels(label, targets, prediction_shape[-1], ignore_index)


class Weights:
    """Constant weights by class: checked once, and kept on each device and in each dtype in which they are used.

    values: finite, not negative, of one of the `ranks` (0: one number for all classes). Raises ConfigurationError.
    """

    def __init__(self, label: str, name: str, values: float | Sequence[float], ranks: tuple[int, ...] = (1,)) -> None:
        self.values = np.array(values, np.float64)
        if self.values.ndim not in ranks or not np.isfinite(self.values).all() or (self.values < 0).any():
            raise ConfigurationError(
                f"{label} expected {name} with one finite number of at least 0 by class, got {values!r:.100}"
            )
        self.name = name
        self._copies: dict[Any, Array] = {}

    def beside(self, predictions: Array) -> Array:
        """The weights on the device of the predictions, in their dtype (float32 where that is a 16-bit float)."""
        key = type(predictions), predictions.dtype
        found = self._copies.get(key)
        if found is None:
            wide = "float32" if predictions.dtype.itemsize == 2 else predictions.dtype
            device = device_of(predictions)
            # Not `from_host`, whose memory belongs to the running step: this one stays.
            found = self._copies[key] = device.zeros(self.values.shape, wide)
            device.copy(found, self.values.astype(wide))
        return found

    def expect_classes(self, label: str, prediction_shape: Shape) -> None:
        """As many weights as the predictions have classes along their last axis."""
        if self.values.ndim and self.values.shape != prediction_shape[-1:]:
            raise ShapeError(
                f"{label} has {self.name} for {self.values.size} classes, got predictions of shape {prediction_shape}"
            )
