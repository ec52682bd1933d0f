"""Callbacks: what hangs on the training loop, each with a trigger or a fixed point of its own."""

from bp.callbacks.callback import Callback
from bp.callbacks.curves import Curves
from bp.callbacks.early_stopping import EarlyStopping
from bp.callbacks.jsonl import JSONLLog
from bp.callbacks.learning_rate_monitor import LearningRateMonitor
from bp.callbacks.model_checkpoint import ModelCheckpoint
from bp.callbacks.progress import Progress
from bp.callbacks.tensorboard import TensorBoard
from bp.callbacks.trigger import Trigger

__all__ = [
    "Callback",
    "Curves",
    "EarlyStopping",
    "JSONLLog",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "Progress",
    "TensorBoard",
    "Trigger",
]
