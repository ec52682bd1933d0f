"""Activation layers by name, for the models whose activation is a setting."""

from typing import Literal

from bp.layers import ELU, GELU, Hardswish, Layer, LeakyReLU, Mish, ReLU, Sigmoid, SiLU, Softplus, Tanh

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softplus", "mish", "hardswish"]

ACTIVATIONS: dict[str, type[Layer]] = {
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "gelu": GELU,
    "silu": SiLU,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softplus": Softplus,
    "mish": Mish,
    "hardswish": Hardswish,
}


def make_activation(name: Activation) -> Layer:
    """A new layer of that activation."""
    return ACTIVATIONS[name]()
