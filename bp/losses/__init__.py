"""Losses: from predictions and targets to the number that training lowers, and its gradient."""

from bp.losses.binary import BCEWithLogitsLoss, HingeLoss
from bp.losses.classification import CrossEntropyLoss, MultiMarginLoss, NLLLoss
from bp.losses.distribution import KLDivLoss
from bp.losses.loss import Loss
from bp.losses.regression import HuberLoss, L1Loss, MSELoss

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HingeLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "Loss",
    "MSELoss",
    "MultiMarginLoss",
    "NLLLoss",
]
