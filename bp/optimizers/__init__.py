"""Optimizers: how a gradient becomes a step."""

from bp.optimizers.adadelta import Adadelta
from bp.optimizers.adafactor import Adafactor
from bp.optimizers.adagrad import Adagrad
from bp.optimizers.adam import Adam, AdamW
from bp.optimizers.ema import ExponentialMovingAverage
from bp.optimizers.lion import Lion
from bp.optimizers.muon import Muon
from bp.optimizers.nadam import NAdam
from bp.optimizers.optimizer import Group, Optimizer
from bp.optimizers.rmsprop import RMSprop
from bp.optimizers.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "ExponentialMovingAverage",
    "Group",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RMSprop",
]
