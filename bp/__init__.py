"""bp: neural networks with explicit, hand-derived backpropagation on NVIDIA GPUs and CPUs."""

from bp import errors as errors
from bp.layers import *  # noqa: F403
from bp.losses import CrossEntropyLoss as CrossEntropyLoss
from bp.losses import Loss as Loss
from bp.optimizers import *  # noqa: F403

__version__ = "0.1.0"
