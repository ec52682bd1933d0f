"""cifar10: 60,000 colour photographs of ten kinds of things, 32x32 pixels.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
"""

import os
import zlib
from pathlib import Path

import numpy as np

from bp.data.augment import Compose, Normalize, RandomCrop, RandomHorizontalFlip
from bp.data.cifar import RECORD, read_cifar10
from bp.data.dataset import ArrayDataset, Subset
from bp.data.lookup import data_folder, find, find_or_download
from bp.data.source import Source
from bp.data.splits import DATASETS, Splits, stratified_split
from bp.errors import DataError

ARCHIVE = Source(
    "cifar-10-binary.tar.gz",
    170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
    ),
)
INSIDE = "cifar-10-batches-bin"  # the folder in the archive
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = "test_batch.bin"
RECORDS = 10_000  # a file
VALID = 5_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@DATASETS.register("cifar10")
def cifar10(root: str | Path | None = None) -> Splits:
    """Inputs (32, 32, 3) uint8. Of the training files a stratified 5,000 are for validation: 45,000 / 5,000 / 10,000.

    Both transforms end in `Normalize` by mean (0.4914, 0.4822, 0.4465) and deviation (0.2470, 0.2435, 0.2616) of all
    training pixels / 255, by channel; before it, training has the usual crop with a padding of 4 and the mirror image.
    """
    folder = _folder(data_folder("cifar10", root))
    parts = [read_cifar10(folder / name, RECORDS) for name in TRAIN]
    known = ArrayDataset(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]))
    train, valid = stratified_split(known.y, (len(known) - VALID, VALID), seed=0)
    normalize = Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return Splits(
        "cifar10",
        Subset(known, train),
        Subset(known, valid),
        ArrayDataset(*read_cifar10(folder / TEST, RECORDS)),
        "classification",
        CLASSES,
        train_transform=Compose(RandomCrop(padding=4), RandomHorizontalFlip(), normalize),
        eval_transform=normalize,
    )


def _folder(folder: Path) -> Path:
    """Where the six files are: in `folder`, or in its sub-folder of the archive's name, unpacked there if need be."""
    for place in (folder, folder / INSIDE):
        if all(find(place, name) for name in (*TRAIN, TEST)):
            return place
    instead = f" (or the six files of it, {TRAIN[0]} to {TRAIN[-1]} and {TEST})"
    (archive,) = find_or_download("cifar10", folder, (ARCHIVE,), instead)
    _unpack(archive, folder / INSIDE)
    return folder / INSIDE


def _unpack(archive: Path, folder: Path) -> None:
    """The six files of the archive into `folder`, each renamed in one step; nothing else in it is written anywhere."""
    import tarfile

    wanted = {f"{INSIDE}/{name}": name for name in (*TRAIN, TEST)}
    try:
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive) as content:
            for member in content:
                name = wanted.get(member.name)
                data = content.extractfile(member) if member.isfile() and name else None
                if data is None or name is None:
                    continue
                if member.size != RECORDS * RECORD:
                    raise DataError(f"{archive}: expected {RECORDS * RECORD:,} bytes of {name}, got {member.size:,}")
                part = folder / f".{name}.{os.getpid()}"
                try:
                    part.write_bytes(data.read())
                    os.replace(part, folder / name)
                finally:
                    part.unlink(missing_ok=True)
                del wanted[member.name]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    if wanted:
        raise DataError(f"{archive}: expected {', '.join(wanted.values())} in it, got none of that name")
