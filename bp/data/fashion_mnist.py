"""fashion-mnist: 70,000 pictures of clothes of 28x28 pixels, in the files and sizes of MNIST.

Source: Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking (2017), MIT licence.
"""

from pathlib import Path

from bp.data.augment import Normalize
from bp.data.mnist import idx_splits
from bp.data.source import Source
from bp.data.splits import DATASETS, Splits

# The authors' bucket offers no https; the checksum, not the connection, vouches for the file.
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
FILES = (
    ("train-images-idx3-ubyte.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    ("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    ("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    ("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
)
SOURCES = tuple(Source(name, size, sha256, tuple(m + name for m in MIRRORS)) for name, size, sha256 in FILES)
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@DATASETS.register("fashion-mnist")
def fashion_mnist(root: str | Path | None = None) -> Splits:
    """Inputs (28, 28, 1) uint8. Of the training file a stratified 5,000 are for validation: 55,000 / 5,000 / 10,000.

    Both transforms: `Normalize` by mean 0.2860 and deviation 0.3530 of all training pixels / 255.
    """
    return idx_splits("fashion-mnist", root, SOURCES, CLASSES, Normalize((0.2860,), (0.3530,)))
