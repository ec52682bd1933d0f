"""Data: data sets and their files, loaders that feed batches, and augmentation on the way."""

# The built-in data sets register themselves when they are imported.
from bp.data import cifar10 as cifar10
from bp.data import diabetes as diabetes
from bp.data import digits as digits
from bp.data import fashion_mnist as fashion_mnist
from bp.data import mnist as mnist
from bp.data.augment import (
    Compose,
    Cutout,
    Mixup,
    Normalize,
    OneHot,
    RandomCrop,
    RandomHorizontalFlip,
    RandomTranslate,
    ToFloat,
)
from bp.data.cifar import read_cifar10
from bp.data.csv import read_csv, read_table
from bp.data.dataset import ArrayDataset, Batch, Dataset, Subset, Transform
from bp.data.idx import read_idx
from bp.data.loader import Loader
from bp.data.npz import read_npy, read_npz
from bp.data.splits import DATASETS, Splits, load, stratified_split

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Batch",
    "Compose",
    "Cutout",
    "Dataset",
    "Loader",
    "Mixup",
    "Normalize",
    "OneHot",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomTranslate",
    "Splits",
    "Subset",
    "ToFloat",
    "Transform",
    "load",
    "read_cifar10",
    "read_csv",
    "read_idx",
    "read_npy",
    "read_npz",
    "read_table",
    "stratified_split",
]
