"""Optimizers: how a gradient becomes a step."""

from bp.optimizers.adam import Adam, AdamW
from bp.optimizers.optimizer import Group, Optimizer

__all__ = ["Adam", "AdamW", "Group", "Optimizer"]
