"""Splits: a data set cut in training, validation and test samples, and what a recipe needs to know about it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bp.data.dataset import Dataset, Transform
from bp.registry import Registry


@dataclass(frozen=True)
class Splits:
    """Three data sets of one kind of sample.

    task: "classification", with int64 targets (N,) and the names of the `classes`, or "regression", with float32
    targets (N, 1). train_transform, eval_transform: recommended for the loader; None: samples are ready as they are.
    target_scale: (mean, deviation) that targets of a regression were standardised with.
    """

    name: str
    train: Dataset
    valid: Dataset
    test: Dataset
    task: Literal["classification", "regression"]
    classes: tuple[str, ...] = ()
    train_transform: Transform | None = None
    eval_transform: Transform | None = None
    target_scale: tuple[float, float] | None = None


# Name -> a function from the root folder (None: see `bp.data.lookup`) to the splits.
DATASETS: Registry[Callable[[str | Path | None], Splits]] = Registry("data set")


def load(name: str, root: str | Path | None = None) -> Splits:
    """The splits of a registered data set; see docs/data.md for where its files are looked for.

    Raises ConfigurationError for an unknown name, DataError where files are missing or are not what they should be.
    """
    return DATASETS.get(name)(root)


def random_order(count: int, seed: int) -> np.ndarray:
    """A permutation of 0..count - 1 that no NumPy version changes: raw Philox bits are fixed, its methods are not."""
    return np.random.Philox(key=seed).random_raw(count).argsort(kind="stable")


def stratified_split(labels: np.ndarray, sizes: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Disjoint index arrays of the given sizes with the classes in equal shares, to within a sample or so.

    labels: integers (N,); sizes: sum to at most N. In a random order the k-th of n samples of a class gets the position
    (k + 1/2) / n; sorted by position every stretch has the classes in proportion, and the split cuts that line.
    """
    order = random_order(len(labels), seed)
    shuffled = labels[order]
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(shuffled == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    line = order[position.argsort(kind="stable")]
    return np.split(line, np.cumsum(sizes))[: len(sizes)]
