"""mlp: the multilayer perceptron."""

import math
from collections.abc import Sequence
from typing import Literal

from bp.layers import BatchNorm1d, Dropout, Flatten, Layer, LayerNorm, Linear, Sequential
from bp.models.activations import Activation, make_activation
from bp.models.checks import at_least_one
from bp.models.registry import MODELS
from bp.ops.array import Shape


@MODELS.register("mlp")
def mlp(
    input_shape: Shape,
    *,
    classes: int,
    hidden: Sequence[int] = (64,),
    activation: Activation = "relu",
    dropout: float = 0.0,
    normalization: Literal["batch", "layer"] | None = None,
) -> Sequential:
    """Linear layers with an activation between them; samples of any shape are flattened first.

    hidden: the width of each hidden layer; none makes it a linear model. normalization: before each activation.
    dropout: after each activation. Parameters: (inputs + 1) h1 + (h1 + 1) h2 + ... without normalisation.
    """
    at_least_one("mlp", classes=classes, hidden=hidden)
    layers: list[Layer] = [Flatten()] if len(input_shape) != 1 else []
    width = math.prod(input_shape)
    for next_width in hidden:
        # The mean that batch normalisation subtracts would cancel a bias.
        layers.append(Linear(width, next_width, bias=normalization != "batch"))
        if normalization is not None:
            layers.append(BatchNorm1d() if normalization == "batch" else LayerNorm())
        layers.append(make_activation(activation))
        if dropout:
            layers.append(Dropout(dropout))
        width = next_width
    return Sequential(*layers, Linear(width, classes))
