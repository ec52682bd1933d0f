"""Convolutions with what follows them in the same pass: bias and ReLU, or the statistics of a batch norm."""

import dataclasses

from bp.bench import Sizes, a_part, only_on
from bp.benchmarks.bench_conv import DEPTHWISE, RESNET20, RESNET50, Images, layers, nchw
from bp.ops import activation, conv, norm

EPSILON = 1e-5


class Fused(Images):
    """In the same row, what fusion is worth: "bp unfused" is one operation after the other, "bp product" the
    convolution alone."""

    compiles = True
    sampled = ("x",)
    sizes = Sizes(
        cuda=layers(128, [RESNET20[1], RESNET20[5]]) + layers(64, [RESNET50[0], RESNET50[1], RESNET50[7]]),
        cpu=layers(64, RESNET20[1:2]),
        quick=layers(4, [(14, 16, 24, 3, 2, 1)]),
    )

    @property
    def group(self):
        return "fused convolutions"

    @a_part
    def bp_product(self, x, weight, **_):
        return lambda: conv.conv2d(x, weight, None, *self.settings(self.groups))

    def torch(self, x, weight, **more):
        return self.in_torch(x.movedim(-1, 1), weight.movedim(-1, 1), **more)

    def torch_nchw(self, x, weight, **more):
        return self.torch(nchw(x), nchw(weight), **more)

    def convolved(self, x, weight, bias):
        """By PyTorch, of tensors indexed as it has them."""
        from torch.nn.functional import conv2d

        return conv2d(x, weight, bias, self.stride, self.kernel // 2, 1, self.groups)


class ConvolutionActivation(Fused):
    name = "convolution + bias + ReLU"
    sizes = Sizes(Fused.sizes.cuda + layers(64, DEPTHWISE[2:]), *Fused.sizes[1:])

    def draw(self, draw):
        return super().draw(draw) | {"bias": draw.normal(self.outputs)}

    def bp(self, x, weight, bias):
        return lambda: conv.conv2d_activation(x, weight, bias, "relu", True, *self.settings(self.groups))[0]

    def bp_unfused(self, x, weight, bias):
        return lambda: activation.relu(conv.conv2d(x, weight, bias, *self.settings(self.groups)))

    def in_torch(self, x, weight, bias):
        return lambda: self.convolved(x, weight, bias).relu().movedim(1, -1)

    @only_on("cuda")
    def torch_cudnn(self, x, weight, bias):
        """One call of cuDNN, which PyTorch makes where it freezes a model."""
        from torch import cudnn_convolution_relu

        x, weight = x.movedim(-1, 1), weight.movedim(-1, 1)
        settings = ([self.stride] * 2, [self.kernel // 2] * 2, [1, 1], self.groups)
        return lambda: cudnn_convolution_relu(x, weight, bias, *settings).movedim(1, -1)


class ConvolutionNorm(Fused):
    """Batch norm in training, without running statistics."""

    name = "convolution + batch norm"
    sampled = ()

    def draw(self, draw):
        return super().draw(draw) | {"gamma": draw.normal(self.outputs), "beta": draw.normal(self.outputs)}

    def checked(self):
        """Few images: what a batch norm gives depends on all of them, so no part can stand for the whole."""
        return dataclasses.replace(self, batch=min(self.batch, 4))

    def nbytes(self, itemsize):
        """The statistics need all of the convolution before any of it is normalised: it is written, and read again."""
        *_, (images, height, width, outputs) = self.shapes
        return super().nbytes(itemsize) + 2 * images * height * width * outputs * itemsize

    def bp(self, x, weight, gamma, beta):
        def normalised():
            y, mean, rest, variance = conv.conv2d_statistics(x, weight, None, *self.settings(self.groups))
            return norm.batch_norm_of(y, mean, rest, variance, gamma, beta, None, None, 0.1, EPSILON)[0]

        return normalised

    def bp_unfused(self, x, weight, gamma, beta):
        def normalised():
            y = conv.conv2d(x, weight, None, *self.settings(self.groups))
            return norm.batch_norm(y, gamma, beta, None, None, True, 0.1, EPSILON)[0]

        return normalised

    def in_torch(self, x, weight, gamma, beta):
        from torch.nn.functional import batch_norm

        gamma, beta = gamma.float(), beta.float()  # which stay so under autocast
        return lambda: batch_norm(self.convolved(x, weight, None), None, None, gamma, beta, True, 0.1, EPSILON).movedim(
            1, -1
        )
