"""mnist: 70,000 handwritten digits of 28x28 pixels.

Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits (1998). Their server no longer hands the
files out; the URLs are those of the mirrors that PyTorch and TensorFlow use, which hold the same bytes.
"""

from pathlib import Path

import numpy as np

from bp.data.augment import Normalize
from bp.data.dataset import ArrayDataset, Subset
from bp.data.idx import read_idx
from bp.data.lookup import data_folder, find_or_download
from bp.data.source import Source
from bp.data.splits import DATASETS, Splits, stratified_split
from bp.errors import DataError

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
# Name, bytes, sha256, in the order training images, training labels, test images, test labels.
FILES = (
    ("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    ("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
SOURCES = tuple(Source(name, size, sha256, tuple(m + name for m in MIRRORS)) for name, size, sha256 in FILES)
COUNTS = (60_000, 10_000)  # training and test files
VALID = 5_000


@DATASETS.register("mnist")
def mnist(root: str | Path | None = None) -> Splits:
    """Inputs (28, 28, 1) uint8. Of the training file a stratified 5,000 are for validation: 55,000 / 5,000 / 10,000.

    Both transforms: `Normalize` by mean 0.1307 and deviation 0.3081 of all training pixels / 255.
    """
    return idx_splits("mnist", root, SOURCES, tuple("0123456789"), Normalize((0.1307,), (0.3081,)))


def idx_splits(
    name: str, root: str | Path | None, sources: tuple[Source, ...], classes: tuple[str, ...], normalize: Normalize
) -> Splits:
    """The splits of four files laid out as MNIST's are."""
    paths = find_or_download(name, data_folder(name, root), sources, " (or the same unzipped)")
    images, labels = _read(paths[0], paths[1], COUNTS[0], len(classes))
    train, valid = stratified_split(labels, (COUNTS[0] - VALID, VALID), seed=0)
    known = ArrayDataset(images, labels)
    test = ArrayDataset(*_read(paths[2], paths[3], COUNTS[1], len(classes)))
    return Splits(
        name, Subset(known, train), Subset(known, valid), test, "classification", classes, normalize, normalize
    )


def _read(images_path: Path, labels_path: Path, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, shape in ((images_path, images, (count, 28, 28)), (labels_path, labels, (count,))):
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(f"{path}: expected uint8 of shape {shape}, got {array.dtype} of shape {array.shape}")
    if labels.max() >= classes:
        raise DataError(f"{labels_path}: expected labels in 0..{classes - 1}, got {labels.max()}")
    return images[..., None], labels.astype(np.int64)
