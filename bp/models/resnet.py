"""resnet20, resnet32, resnet56: residual networks for 32x32 images."""

from bp.initializers import Zeros
from bp.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Layer, Linear, ReLU, Residual, Sequential
from bp.models.checks import at_least_one, image_channels
from bp.models.registry import MODELS
from bp.ops.array import Shape

WIDTHS = (16, 32, 64)


@MODELS.register("resnet20")
def resnet20(input_shape: Shape, *, classes: int, zero_init_residual: bool = False) -> Sequential:
    """ResNet-20: 272,474 parameters for 32x32x3 and 10 classes; see `resnet`."""
    return resnet(input_shape, classes=classes, blocks=3, zero_init_residual=zero_init_residual)


@MODELS.register("resnet32")
def resnet32(input_shape: Shape, *, classes: int, zero_init_residual: bool = False) -> Sequential:
    """ResNet-32: 466,906 parameters for 32x32x3 and 10 classes; see `resnet`."""
    return resnet(input_shape, classes=classes, blocks=5, zero_init_residual=zero_init_residual)


@MODELS.register("resnet56")
def resnet56(input_shape: Shape, *, classes: int, zero_init_residual: bool = False) -> Sequential:
    """ResNet-56: 855,770 parameters for 32x32x3 and 10 classes; see `resnet`."""
    return resnet(input_shape, classes=classes, blocks=9, zero_init_residual=zero_init_residual)


def resnet(input_shape: Shape, *, classes: int, blocks: int, zero_init_residual: bool = False) -> Sequential:
    """The variant for CIFAR, of depth 6 * blocks + 2: a 3x3 convolution, three stages of 16, 32, 64 channels, pooling.

    The second and third stage halve the image; there the shortcut is a 1x1 convolution with normalisation (option B of
    the paper; option A, subsampling and zero channels, has 2,752 parameters fewer: 269,722 in ResNet-20).
    zero_init_residual: the last scale of every block starts at 0, so the block at the identity (Goyal et al., 2017,
    section 5.1).
    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition (2015), section 4.2.
    """
    at_least_one("resnet", classes=classes, blocks=blocks)
    inputs = WIDTHS[0]
    stem = _convolution(image_channels("resnet", input_shape), inputs, 3)
    layers: list[Layer] = [stem, BatchNorm2d(inputs), ReLU()]
    for width in WIDTHS:
        for _ in range(blocks):
            stride = 1 if width == inputs else 2
            last = BatchNorm2d(width)
            if zero_init_residual and last.weight is not None:
                last.weight.initializer = Zeros()
            first = (_convolution(inputs, width, 3, stride), BatchNorm2d(width), ReLU())
            body = Sequential(*first, _convolution(width, width, 3), last)
            shortcut = None
            if width != inputs:
                shortcut = Sequential(_convolution(inputs, width, 1, stride), BatchNorm2d(width))
            layers += [Residual(body, shortcut), ReLU()]
            inputs = width
    return Sequential(*layers, GlobalAvgPool2d(), Linear(inputs, classes))


def _convolution(inputs: int, width: int, size: int, stride: int = 1) -> Conv2d:
    """A convolution without a bias, which the normalisation behind it would cancel."""
    return Conv2d(inputs, width, size, stride, padding=size // 2, bias=False)
