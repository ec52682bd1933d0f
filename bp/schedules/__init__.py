"""Schedules: the learning rate over a run."""

from bp.schedules.plateau import ReduceOnPlateau
from bp.schedules.schedule import Schedule
from bp.schedules.steps import Constant, CosineWithRestarts, Exponential, MultiStep, Step
from bp.schedules.warmup import Warmup, WarmupCosine, WarmupLinear
from bp.schedules.whole_run import Cosine, OneCycle, Polynomial, WarmupStableDecay
from bp.schedules.whole_run import Linear as Linear

# What bp offers under these names; Linear is not among it, since bp.Linear is the layer.
__all__ = [
    "Constant",
    "Cosine",
    "CosineWithRestarts",
    "Exponential",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "ReduceOnPlateau",
    "Schedule",
    "Step",
    "Warmup",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
]
