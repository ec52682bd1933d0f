"""Convolution of images."""

import math
from dataclasses import dataclass

from bp.bench import Benchmark, Sizes
from bp.ops import conv

# Side of the input, channels, outputs, kernel, stride, groups.
MNIST = [(28, 1, 32, 3, 1, 1), (14, 32, 64, 3, 1, 1)]
RESNET20 = [(32, 3, 16, 3, 1, 1), (32, 16, 16, 3, 1, 1), (32, 16, 32, 3, 2, 1), (16, 32, 32, 3, 1, 1)]
RESNET20 += [(16, 32, 64, 3, 2, 1), (8, 64, 64, 3, 1, 1), (32, 16, 32, 1, 2, 1), (16, 32, 64, 1, 2, 1)]
# Of each stage the kernels of 3 x 3 and of 1 x 1, narrowing or widening; three steps of the stride.
RESNET50 = [(56, 64, 64, 3, 1, 1), (56, 64, 256, 1, 1, 1), (56, 256, 64, 1, 1, 1), (56, 256, 512, 1, 2, 1)]
RESNET50 += [(28, 128, 128, 3, 1, 1), (28, 128, 512, 1, 1, 1), (28, 256, 256, 3, 2, 1), (14, 256, 256, 3, 1, 1)]
RESNET50 += [(14, 1024, 256, 1, 1, 1), (14, 1024, 2048, 1, 2, 1), (7, 512, 512, 3, 1, 1), (7, 512, 2048, 1, 1, 1)]
STEM = [(224, 3, 64, 7, 2, 1)]
DEPTHWISE = [(112, 32, 32, 3, 1, 32), (56, 128, 128, 3, 2, 128), (14, 512, 512, 3, 1, 512)]


def layers(batch, rows):
    names = ("batch", "side", "channels", "outputs", "kernel", "stride", "groups")
    return [dict(zip(names, (batch, *row), strict=True)) for row in rows]


def nchw(images):
    """The same tensor, indexed as before, in the layout in memory that PyTorch takes unless it is told otherwise."""
    return images.movedim(-1, 1).contiguous().movedim(1, -1)


@dataclass(frozen=True)
class Images(Benchmark):
    """What forward and gradients have in common. side: of the square images; groups: as many as channels: depthwise."""

    precisions = ("bf16", "tf32", "fp32")
    ladder = "conv"
    compiles = False  # torch.compile calls the same library
    sizes = Sizes(
        # Fewer of the large images: float64 on the host would take seconds for the gradients of their weights.
        cuda=layers(128, RESNET20[1:]) + layers(64, [*RESNET50, *DEPTHWISE]) + layers(16, STEM),
        cpu=layers(128, MNIST) + layers(64, RESNET20) + layers(16, [(16, 64, 64, 3, 1, 64)]),
        quick=layers(16, [(14, 16, 24, 3, 2, 1), (14, 16, 16, 3, 1, 16)]),
    )
    batch: int
    side: int
    channels: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def group(self):
        row = (self.side, self.channels, self.outputs, self.kernel, self.stride, self.groups)
        groups = {"ResNet-20": RESNET20, "ResNet-50": RESNET50 + STEM, "depthwise": DEPTHWISE}
        return next((name for name, rows in groups.items() if row in rows), "")

    def worth(self, precision):
        """All in bf16, and one layer in each precision."""
        return precision == "bf16" or (self.side == 56 and self.shapes[1] == (64, 3, 3, 64))

    @property
    def shapes(self):
        """Of input, weight and output."""
        edge = self.kernel // 2
        size = conv.output_size(self.side, self.kernel, self.stride, (edge, edge), 1)
        weight = (self.outputs, self.kernel, self.kernel, self.channels // self.groups)
        return (self.batch, self.side, self.side, self.channels), weight, (self.batch, size, size, self.outputs)

    def settings(self, groups):
        """What the operations of bp take after their arrays."""
        edge = self.kernel // 2
        return (self.stride, self.stride), ((edge, edge), (edge, edge)), (1, 1), groups

    def draw(self, draw):
        x, weight, _ = self.shapes
        return {"x": draw.normal(*x), "weight": draw.normal(*weight, scale=math.prod(weight[1:]) ** -0.5)}

    def flops(self):
        _, weight, y = self.shapes
        return 2.0 * math.prod(y) * math.prod(weight[1:])

    @property
    def read(self):
        """Elements of the input that windows cover: with a stride beyond the kernel they leave some out."""
        size = self.shapes[2][1]
        return self.batch * min(self.side, size * self.kernel) ** 2 * self.channels

    def nbytes(self, itemsize):
        _, weight, y = map(math.prod, self.shapes)
        return (self.read + weight + y) * itemsize

    def length(self):
        return math.prod(self.shapes[1][1:])


class Convolution(Images):
    """Without a bias, as those in front of a normalisation are."""

    name = "convolution"
    sampled = ("x",)

    def bp(self, x, weight):
        return lambda: conv.conv2d(x, weight, None, *self.settings(self.groups))

    def torch(self, x, weight):
        from torch.nn.functional import conv2d

        x, weight = x.movedim(-1, 1), weight.movedim(-1, 1)
        return lambda: conv2d(x, weight, None, self.stride, self.kernel // 2, 1, self.groups).movedim(1, -1)

    def torch_nchw(self, x, weight):
        return self.torch(nchw(x), nchw(weight))
