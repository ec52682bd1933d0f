"""bp: neural networks with explicit, hand-derived backpropagation on NVIDIA GPUs and CPUs."""

from bp import threads as threads  # first: it loads NumPy

# isort: split
from bp import callbacks as callbacks
from bp import data as data
from bp import errors as errors
from bp import initializers as initializers
from bp import models as models
from bp.callbacks import EarlyStopping as EarlyStopping
from bp.callbacks import LearningRateMonitor as LearningRateMonitor
from bp.callbacks import ModelCheckpoint as ModelCheckpoint
from bp.checking import check as check
from bp.checkpoint import load_weights as load_weights
from bp.checkpoint import save_weights as save_weights
from bp.data import ArrayDataset as ArrayDataset
from bp.data import Loader as Loader
from bp.diagnostics import summary as summary
from bp.history import History as History
from bp.layers import *  # noqa: F403  # its __all__ is the list
from bp.losses import *  # noqa: F403
from bp.memory_plan import memory_plan as memory_plan
from bp.metrics import *  # noqa: F403
from bp.optimizers import *  # noqa: F403
from bp.schedules import *  # noqa: F403
from bp.trainer import Trainer as Trainer

__version__ = "0.1.0"
