"""cnn: a plain convolutional network for small images."""

from collections.abc import Sequence

from bp.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from bp.models.checks import at_least_one, image_channels
from bp.models.registry import MODELS
from bp.ops.array import Shape


@MODELS.register("cnn")
def cnn(
    input_shape: Shape, *, classes: int, channels: Sequence[int] = (32, 64), hidden: int = 128, dropout: float = 0.0
) -> Sequential:
    """For each of `channels` a 3x3 convolution, ReLU and 2x2 max pooling; then a hidden linear layer and the output.

    dropout: before each of the two linear layers. 421,642 parameters for 28x28x1 and 10 classes.
    """
    at_least_one("cnn", classes=classes, channels=channels, hidden=hidden)
    layers: list[Layer] = []
    inputs = image_channels("cnn", input_shape)
    for count in channels:
        layers += [Conv2d(inputs, count, 3, padding=1), ReLU(), MaxPool2d(2)]
        inputs = count
    layers.append(Flatten())
    drop = [Dropout(dropout)] if dropout else []
    layers += [*drop, Linear(None, hidden), ReLU()]
    drop = [Dropout(dropout)] if dropout else []
    return Sequential(*layers, *drop, Linear(hidden, classes))
