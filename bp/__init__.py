"""bp: neural networks with explicit, hand-derived backpropagation on NVIDIA GPUs and CPUs.

`import bp` loads NumPy and no more. The module in which a name lives, by `_HOMES`, is imported when that name is first
used; type checkers and editors read the same names from ordinary imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bp import threads as threads  # before anything else of bp: it loads NumPy

__version__ = "0.1.0"

# Module -> the names of bp that live there; under "bp" itself, its packages and modules.
_HOMES = {
    "bp": """
        callbacks checking checkpoint data diagnostics errors history initializers layers losses metrics models ops
        optimizers planning registry schedules trainer""",
    "bp.callbacks": "EarlyStopping LearningRateMonitor ModelCheckpoint",
    "bp.checking": "check",
    "bp.checkpoint": "load_weights save_weights",
    "bp.data": "ArrayDataset Loader",
    "bp.diagnostics": "summary",
    "bp.history": "History",
    "bp.layers": """
        Buffer Context Layer Parameter
        Concat Recompute Residual Sequential
        AvgPool2d BatchNorm1d BatchNorm2d Conv2d ConvTranspose2d Dropout Embedding Flatten GlobalAvgPool2d GroupNorm
        LayerNorm Linear MaxPool2d RMSNorm Reshape
        ELU GELU Hardswish LeakyReLU LogSoftmax Mish ReLU SiLU Sigmoid Softmax Softplus Tanh""",
    "bp.losses": """
        BCEWithLogitsLoss CrossEntropyLoss HingeLoss HuberLoss KLDivLoss L1Loss Loss MSELoss MultiMarginLoss NLLLoss""",
    "bp.memory": "memory_plan",
    "bp.metrics": "Accuracy MeanAbsoluteError Metric R2Score TopKAccuracy",
    "bp.optimizers": """
        Adadelta Adafactor Adagrad Adam AdamW ExponentialMovingAverage Group Lion Muon NAdam Optimizer RMSprop SGD""",
    "bp.schedules": """
        Constant Cosine CosineWithRestarts Exponential MultiStep OneCycle Polynomial ReduceOnPlateau Schedule Step
        Warmup WarmupCosine WarmupLinear WarmupStableDecay""",
    "bp.trainer": "Trainer",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

if TYPE_CHECKING:
    from bp import callbacks as callbacks
    from bp import checking as checking
    from bp import checkpoint as checkpoint
    from bp import data as data
    from bp import diagnostics as diagnostics
    from bp import errors as errors
    from bp import history as history
    from bp import initializers as initializers
    from bp import layers as layers
    from bp import losses as losses
    from bp import metrics as metrics
    from bp import models as models
    from bp import ops as ops
    from bp import optimizers as optimizers
    from bp import planning as planning
    from bp import registry as registry
    from bp import schedules as schedules
    from bp import trainer as trainer
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
    from bp.layers import *  # noqa: F403
    from bp.losses import *  # noqa: F403
    from bp.memory import memory_plan as memory_plan
    from bp.metrics import *  # noqa: F403
    from bp.optimizers import *  # noqa: F403
    from bp.schedules import *  # noqa: F403
    from bp.trainer import Trainer as Trainer
else:  # a type checker would take __getattr__ as leave for every misspelled name, and cannot work out this __all__
    __all__ = ["threads", *_HOME_OF]

    def __getattr__(name: str) -> object:
        """A name that is not here yet, from its home; from then on it is an ordinary attribute."""
        if name not in _HOME_OF:
            raise AttributeError(f"module 'bp' has no attribute '{name}'")
        home = _HOME_OF[name]
        value = import_module(f"bp.{name}") if home == "bp" else getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(["__version__", *__all__])
