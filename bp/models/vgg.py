"""vgg11: a deep stack of 3x3 convolutions for 32x32 images."""

from bp.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU, Sequential
from bp.models.checks import at_least_one, image_channels
from bp.models.registry import MODELS
from bp.ops.array import Shape

# Channels of the convolutions up to each pooling.
STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@MODELS.register("vgg11")
def vgg11(input_shape: Shape, *, classes: int, dropout: float = 0.0) -> Sequential:
    """Configuration A of VGG with batch normalisation: eight convolutions, five poolings, one linear layer.

    Five halvings turn 32x32 into one pixel of 512 channels, so the two wide linear layers that the original has for
    224x224 are left out. dropout: before the linear layer. 9,228,362 parameters for 32x32x3 and 10 classes.
    Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition (2015).
    """
    at_least_one("vgg11", classes=classes)
    layers: list[Layer] = []
    inputs = image_channels("vgg11", input_shape)
    for widths in STAGES:
        for width in widths:
            layers += [Conv2d(inputs, width, 3, padding=1, bias=False), BatchNorm2d(width), ReLU()]
            inputs = width
        layers.append(MaxPool2d(2))
    layers.append(Flatten())
    if dropout:
        layers.append(Dropout(dropout))
    return Sequential(*layers, Linear(None, classes))
