"""CIFAR-10 binary: records of one label byte and 3,072 pixel bytes, channel first."""

from pathlib import Path

import numpy as np

from bp.data.reading import read_exactly, reading
from bp.errors import DataError

SIDE, CHANNELS, CLASSES = 32, 3, 10
RECORD = 1 + CHANNELS * SIDE * SIDE


def read_cifar10(path: str | Path, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (records, 32, 32, 3) uint8 and labels (records,) int64 in 0..9 of a binary batch, plain or gzipped.

    Raises DataError naming the file where it holds fewer or more records, or a label outside 0..9.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009), "binary version".
    """
    with reading(path) as content:
        data = read_exactly(content, records * RECORD, f"{records:,} CIFAR-10 records")
        if content.read(1):
            raise DataError(f"expected {records:,} CIFAR-10 records of {RECORD} bytes, got more bytes")
        rows = np.frombuffer(data, np.uint8).reshape(records, RECORD)
        labels = rows[:, 0].astype(np.int64)
        if (labels >= CLASSES).any():
            first = int((labels >= CLASSES).argmax())
            raise DataError(f"expected labels in 0..{CLASSES - 1}, got {labels[first]} in record {first}")
        planes = rows[:, 1:].reshape(records, CHANNELS, SIDE, SIDE)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
