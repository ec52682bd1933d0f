"""Layers: pairs of a forward and a hand-derived backward pass."""

from bp.layers.activation import ReLU
from bp.layers.containers import Sequential
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.layers.linear import Linear
from bp.layers.parameter import Buffer, Parameter

__all__ = ["Buffer", "Context", "Layer", "Linear", "Parameter", "ReLU", "Sequential"]
