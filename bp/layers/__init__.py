"""Layers: pairs of a forward and a hand-derived backward pass."""

from bp.layers.activation import (
    ELU,
    GELU,
    Hardswish,
    LeakyReLU,
    LogSoftmax,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from bp.layers.containers import Concat, Recompute, Residual, Sequential
from bp.layers.context import Context
from bp.layers.conv import Conv2d, ConvTranspose2d
from bp.layers.dropout import Dropout
from bp.layers.embedding import Embedding
from bp.layers.layer import Layer
from bp.layers.linear import Linear
from bp.layers.norm import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm, RMSNorm
from bp.layers.parameter import Buffer, Parameter
from bp.layers.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from bp.layers.shape import Flatten, Reshape

__all__ = [
    "ELU",
    "GELU",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "Concat",
    "Context",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool2d",
    "GroupNorm",
    "Hardswish",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "Mish",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Recompute",
    "Reshape",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]
