"""Datasets: samples with a target each, fetched a batch at a time."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np

from bp.errors import DataError, DtypeError

Batch: TypeAlias = tuple[np.ndarray, np.ndarray]

# (x, y, generator) -> (x, y): changes a batch and draws random numbers from the given generator only.
Transform: TypeAlias = Callable[[np.ndarray, np.ndarray, np.random.Generator], Batch]

CHECK_ELEMENTS = 1 << 20  # of a float array looked at in one go, so that the check stays within the cache


class Dataset(Protocol):
    """Anything with a length and a batch by indices; a class of one's own needs these two methods, no base."""

    def __len__(self) -> int:
        """The number of samples."""

    def batch(self, indices: np.ndarray) -> Batch:
        """Inputs (B, ...) and targets (B, ...) of the samples at `indices`, integers (B,), as fresh arrays."""


class ArrayDataset:
    """Inputs x (N, ...) and targets y (N, ...) held in arrays, in memory or memory-mapped.

    Numbers of any kind; images stay uint8 and become floats batch by batch in a transform. Arrays from
    `np.load(path, mmap_mode="r")` stay on disk: a batch reads its own samples. check: look for NaN and infinity at
    construction; None: unless memory-mapped, since that would read everything. Arrays in an order other than C or of
    foreign byte order are copied.
    Raises DataError where x and y differ in length, are empty, or hold NaN or infinity; DtypeError for a type that
    is no number.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, *, check: bool | None = None) -> None:
        mapped = isinstance(x, np.memmap) or isinstance(y, np.memmap)
        self.x, self.y = _numbers("inputs", x), _numbers("targets", y)
        if len(self.x) != len(self.y):
            raise DataError(f"expected as many targets as inputs, got {len(self.x)} inputs and {len(self.y)} targets")
        if len(self.x) == 0:
            raise DataError("expected at least one sample, got an empty data set")
        if not mapped if check is None else check:
            check_finite("inputs", self.x)
            check_finite("targets", self.y)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: np.ndarray) -> Batch:
        return self.x.take(indices, 0), self.y.take(indices, 0)


class Subset:
    """The samples of `dataset` at `indices`, integers (M,) in 0..len(dataset) - 1, in that order.

    Raises DataError for no indices or one outside, DtypeError for indices that are no integers.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.dataset = dataset
        self.indices = np.array(indices)
        if self.indices.ndim != 1 or self.indices.size == 0:
            raise DataError(f"a subset expected at least one index along one axis, got shape {self.indices.shape}")
        if self.indices.dtype.kind not in "iu":
            raise DtypeError(f"a subset expected integer indices, got {self.indices.dtype}")
        for extreme in (int(self.indices.min()), int(self.indices.max())):
            if not 0 <= extreme < len(dataset):
                raise DataError(f"a subset expected indices in 0..{len(dataset) - 1}, got {extreme}")

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray) -> Batch:
        return self.dataset.batch(self.indices.take(indices))


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise DataError naming the first NaN or infinity in a float array; other types pass."""
    if array.dtype.kind != "f" or array.size == 0:
        return
    rows = max(1, CHECK_ELEMENTS // (array.size // len(array) or 1))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        finite = np.isfinite(part)
        if not finite.all():
            first = np.unravel_index(int(finite.argmin()), part.shape)
            place = (start + int(first[0]), *(int(i) for i in first[1:]))
            raise DataError(f"{name} expected finite numbers, got {part[first]} at index {place}")


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    plain = np.asarray(array)
    if plain.dtype.kind not in "fiub":
        raise DtypeError(f"{name} expected numbers, got dtype {plain.dtype}")
    if plain.ndim == 0:
        raise DataError(f"{name} expected one row a sample, got a scalar")
    return np.ascontiguousarray(plain, plain.dtype.newbyteorder("="))
