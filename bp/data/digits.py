"""digits: 1,797 handwritten digits of 8x8 pixels, shipped with bp.

Source: Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI repository (1998), test set, CC BY 4.0.
"""

from pathlib import Path

import numpy as np

from bp.data.csv import read_csv
from bp.data.dataset import ArrayDataset, Subset
from bp.data.splits import DATASETS, Splits, stratified_split
from bp.errors import DataError

FILE = Path(__file__).parent / "files" / "digits.csv.gz"
SIZES = (1437, 180, 180)


@DATASETS.register("digits")
def digits(root: str | Path | None = None) -> Splits:
    """Inputs (64,) float32: pixel counts 0..16 divided by 16, row by row. Stratified: 1,437 / 180 / 180 samples.

    root: not used, the file is part of the package.
    """
    pixels, labels = read_csv(FILE, labels=True)
    if pixels.shape != (sum(SIZES), 64):
        raise DataError(f"{FILE}: expected {sum(SIZES)} samples of 64 pixels, got shape {pixels.shape}")
    data = ArrayDataset(pixels / np.float32(16), labels)
    train, valid, test = (Subset(data, part) for part in stratified_split(labels, SIZES, seed=0))
    return Splits("digits", train, valid, test, "classification", tuple("0123456789"))
