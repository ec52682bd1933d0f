"""Residual networks: resnet20, resnet32, resnet56 for 32x32 images; resnet18, resnet34, resnet50 for 224x224."""

from collections.abc import Sequence

from bp.initializers import Zeros
from bp.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, Layer, Linear, MaxPool2d, ReLU, Residual, Sequential
from bp.models.checks import at_least_one, image_channels
from bp.models.registry import MODELS
from bp.ops.array import Shape


@MODELS.register("resnet20")
def resnet20(input_shape: Shape, *, classes: int, zero_init_residual: bool = False) -> Sequential:
    """ResNet-20: 272,474 parameters for 32x32x3 and 10 classes; see `small_resnet`."""
    return small_resnet(input_shape, classes, blocks=3, zero_init_residual=zero_init_residual)


@MODELS.register("resnet32")
def resnet32(input_shape: Shape, *, classes: int, zero_init_residual: bool = False) -> Sequential:
    """ResNet-32: 466,906 parameters for 32x32x3 and 10 classes; see `small_resnet`."""
    return small_resnet(input_shape, classes, blocks=5, zero_init_residual=zero_init_residual)


@MODELS.register("resnet56")
def resnet56(input_shape: Shape, *, classes: int, zero_init_residual: bool = False) -> Sequential:
    """ResNet-56: 855,770 parameters for 32x32x3 and 10 classes; see `small_resnet`."""
    return small_resnet(input_shape, classes, blocks=9, zero_init_residual=zero_init_residual)


@MODELS.register("resnet18")
def resnet18(input_shape: Shape, *, classes: int, width: int = 64, zero_init_residual: bool = False) -> Sequential:
    """ResNet-18: 11,689,512 parameters for 224x224x3 and 1000 classes; see `large_resnet`."""
    return large_resnet(input_shape, classes, (2, 2, 2, 2), width, expansion=1, zero_init_residual=zero_init_residual)


@MODELS.register("resnet34")
def resnet34(input_shape: Shape, *, classes: int, width: int = 64, zero_init_residual: bool = False) -> Sequential:
    """ResNet-34: 21,797,672 parameters for 224x224x3 and 1000 classes; see `large_resnet`."""
    return large_resnet(input_shape, classes, (3, 4, 6, 3), width, expansion=1, zero_init_residual=zero_init_residual)


@MODELS.register("resnet50")
def resnet50(input_shape: Shape, *, classes: int, width: int = 64, zero_init_residual: bool = False) -> Sequential:
    """ResNet-50: 25,557,032 parameters for 224x224x3 and 1000 classes; see `large_resnet`."""
    return large_resnet(input_shape, classes, (3, 4, 6, 3), width, expansion=4, zero_init_residual=zero_init_residual)


def small_resnet(input_shape: Shape, classes: int, blocks: int, zero_init_residual: bool) -> Sequential:
    """The variant for CIFAR, of depth 6 * blocks + 2: a 3x3 convolution, three stages of 16, 32, 64 channels, pooling.

    The second and third stage halve the image; there the shortcut is a 1x1 convolution with normalisation (option B of
    the paper; option A, subsampling and zero channels, has 2,752 parameters fewer: 269,722 in ResNet-20).
    zero_init_residual: see `residual_block`.
    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition (2015), section 4.2.
    """
    at_least_one("resnet", classes=classes)
    width = 16
    stem = (*_normalized(image_channels("resnet", input_shape), width, 3), ReLU())
    stages = residual_stages(width, (blocks,) * 3, expansion=1, zero_init_residual=zero_init_residual)
    return Sequential(*stem, *stages, GlobalAvgPool2d(), Linear(None, classes))


def large_resnet(
    input_shape: Shape, classes: int, blocks: Sequence[int], width: int, expansion: int, zero_init_residual: bool
) -> Sequential:
    """The variant for ImageNet: a 7x7 convolution and a pooling, which both halve the image, four stages, pooling.

    width: of the convolution and of the first stage; each further stage doubles it and halves the image, so 224x224
    pixels end as 7x7, and any other size will do. expansion, zero_init_residual: see `residual_block`.
    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition (2015), section 4.1, table 1.
    """
    at_least_one("resnet", classes=classes, width=width)
    stem = (*_normalized(image_channels("resnet", input_shape), width, 7, 2), ReLU(), MaxPool2d(3, 2, padding=1))
    stages = residual_stages(width, blocks, expansion, zero_init_residual)
    return Sequential(*stem, *stages, GlobalAvgPool2d(), Linear(None, classes))


def residual_stages(width: int, blocks: Sequence[int], expansion: int, zero_init_residual: bool) -> list[Layer]:
    """A stage for each of `blocks`, of that many residual blocks each; from stage to stage the width doubles and the
    image halves."""
    layers: list[Layer] = []
    inputs = width
    for stage, count in enumerate(blocks):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            layers += [residual_block(inputs, width, expansion, stride, zero_init_residual), ReLU()]
            inputs = width * expansion
        width *= 2
    return layers


def residual_block(inputs: int, width: int, expansion: int, stride: int, zero_init_residual: bool) -> Residual:
    """Convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    expansion 1: two 3x3 convolutions. Else a bottleneck: 1x1 to `width` channels, 3x3, and 1x1 to expansion * width.
    Its stride is in the 3x3, as almost everywhere today ("v1.5"); the paper has it in the 1x1 before, which skips three
    of four pixels. zero_init_residual: the last scale starts at 0, so the block at its shortcut (Goyal et al., 2017,
    section 5.1).
    """
    outputs = width * expansion
    last = BatchNorm2d(outputs)
    if zero_init_residual and last.weight is not None:
        last.weight.initializer = Zeros()
    body: list[Layer]
    if expansion == 1:
        body = [*_normalized(inputs, width, 3, stride), ReLU(), _convolution(width, outputs, 3), last]
    else:
        body = [*_normalized(inputs, width, 1), ReLU(), *_normalized(width, width, 3, stride), ReLU()]
        body += [_convolution(width, outputs, 1), last]
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = Sequential(*_normalized(inputs, outputs, 1, stride))
    return Residual(Sequential(*body), shortcut)


def _normalized(inputs: int, width: int, size: int, stride: int = 1) -> tuple[Conv2d, BatchNorm2d]:
    return _convolution(inputs, width, size, stride), BatchNorm2d(width)


def _convolution(inputs: int, width: int, size: int, stride: int = 1) -> Conv2d:
    """A convolution without a bias, which the normalisation behind it would cancel."""
    return Conv2d(inputs, width, size, stride, padding=size // 2, bias=False)
