"""diabetes: ten baseline measurements of 442 patients and the disease's progression after a year, shipped with bp.

Source: Efron, Hastie, Johnstone, Tibshirani, Least Angle Regression, Annals of Statistics (2004).
"""

from pathlib import Path

import numpy as np

from bp.data.csv import read_table
from bp.data.dataset import ArrayDataset, Subset
from bp.data.splits import DATASETS, Splits, random_order

FOLDER = Path(__file__).parent / "files"
SIZES = (310, 66, 66)


@DATASETS.register("diabetes")
def diabetes(root: str | Path | None = None) -> Splits:
    """Inputs (10,) float32: age, sex, body mass index, blood pressure and six serum values; targets (1,) float32.

    All are standardised, (value - mean) / deviation, with figures of the training samples alone; `target_scale` has
    those of the target, so an MSE of m is one of m deviation^2 in the study's unit. Split at random: 310 / 66 / 66.
    root: not used, the files are part of the package.
    """
    x = read_table(FOLDER / "diabetes_data_raw.csv.gz", delimiter=None)
    y = read_table(FOLDER / "diabetes_target.csv.gz")
    order = random_order(len(x), seed=0)
    parts = np.split(order, np.cumsum(SIZES)[:-1])
    x, _, _ = _standardised(x, parts[0])
    y, mean, deviation = _standardised(y, parts[0])
    data = ArrayDataset(x, y)
    train, valid, test = (Subset(data, part) for part in parts)
    scale = (float(mean[0]), float(deviation[0]))
    return Splits("diabetes", train, valid, test, "regression", target_scale=scale)


def _standardised(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, deviation = values[train].mean(0, np.float64), values[train].std(0, np.float64)
    return ((values - mean) / deviation).astype(np.float32), mean, deviation
