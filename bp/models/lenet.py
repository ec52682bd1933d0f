"""lenet: LeNet-5."""

from bp.layers import Conv2d, Flatten, Linear, MaxPool2d, Sequential
from bp.models.activations import Activation, make_activation
from bp.models.checks import at_least_one, image_channels
from bp.models.registry import MODELS
from bp.ops.array import Shape


@MODELS.register("lenet")
def lenet(input_shape: Shape, *, classes: int, activation: Activation = "relu") -> Sequential:
    """LeNet-5 for images of about 28x28: two convolutions of 5x5 with poolings, then layers of 120, 84 and classes.

    Sizes as in the paper; max pooling, every channel connected and ReLU as is usual today. 61,706 parameters for
    28x28x1 and 10 classes.
    Source: LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition (1998).
    """
    at_least_one("lenet", classes=classes)
    return Sequential(
        Conv2d(image_channels("lenet", input_shape), 6, 5, padding=2),
        make_activation(activation),
        MaxPool2d(2),
        Conv2d(6, 16, 5),
        make_activation(activation),
        MaxPool2d(2),
        Flatten(),
        Linear(None, 120),
        make_activation(activation),
        Linear(120, 84),
        make_activation(activation),
        Linear(84, classes),
    )
