"""Models: builders of whole networks, each found by its name.

A builder takes the shape of a sample, the number of `classes` (in a regression: of values to predict) and settings by
keyword, and returns a `Sequential` that is not built yet: `mlp((64,), classes=10, hidden=[32])`.
"""

from bp.models.cnn import cnn
from bp.models.lenet import lenet
from bp.models.mlp import mlp
from bp.models.registry import MODELS
from bp.models.resnet import resnet18, resnet20, resnet32, resnet34, resnet50, resnet56
from bp.models.vgg import vgg11

__all__ = [
    "MODELS",
    "cnn",
    "lenet",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
    "vgg11",
]
