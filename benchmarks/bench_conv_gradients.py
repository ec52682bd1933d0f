"""Gradients of a convolution of images: of the input, and of weight and bias."""

import math

from bp.benchmarks.bench_conv import Images, nchw
from bp.ops import conv


class Gradient(Images):
    def in_torch(self, dy, x, weight, wanted):
        """PyTorch has one function for all. It asks for every array, even where only its shape matters.

        wanted: which of the gradients of input, weight and bias.
        """
        from torch.ops import aten

        dy, x, weight = (array.movedim(-1, 1) for array in (dy, x, weight))
        stride, edge = [self.stride] * 2, [self.kernel // 2] * 2
        settings = ([self.outputs], stride, edge, [1, 1], False, [0, 0], self.groups, wanted)
        return lambda: aten.convolution_backward(dy, x, weight, *settings)


class ConvolutionInputGradient(Gradient):
    name = "convolution input gradient"
    sampled = ("x", "dy")

    def draw(self, draw):
        return super().draw(draw) | {"dy": draw.normal(*self.shapes[2])}

    def nbytes(self, itemsize):
        return sum(map(math.prod, self.shapes)) * itemsize

    def length(self):
        return self.kernel**2 * (self.outputs // self.groups)

    def bp(self, x, weight, dy):
        return lambda: conv.conv2d_backward_input(dy, weight, x.shape[1:3], *self.settings(self.groups))

    def torch(self, x, weight, dy):
        gradients = self.in_torch(dy, x, weight, [True, False, False])
        return lambda: gradients()[0].movedim(1, -1)

    def torch_nchw(self, x, weight, dy):
        return self.torch(nchw(x), nchw(weight), nchw(dy))


class ConvolutionParameterGradients(Gradient):
    """Into destinations, which are float32 where dy and x have 16 bits, as in bp; PyTorch's have the dtype of dy."""

    name = "convolution parameter gradients"

    @property
    def sampled(self):
        """By outputs: each has weights of its own, and an input of its own where the convolution is depthwise."""
        outputs = (("dy", 3), "dweight", "dbias")
        if self.groups == 1:
            return outputs
        return (*outputs, ("x", 3)) if self.channels == self.outputs == self.groups else ()

    def draw(self, draw):
        x, weight, y = self.shapes
        destinations = {"dweight": draw.zeros(*weight, wide=True), "dbias": draw.zeros(self.outputs, wide=True)}
        return {"x": draw.normal(*x), "dy": draw.normal(*y)} | destinations

    def nbytes(self, itemsize):
        _, weight, y = map(math.prod, self.shapes)
        return (self.read + y) * itemsize + (weight + self.outputs) * max(itemsize, 4)

    def length(self):
        return math.prod(self.shapes[2][:3])

    def bp(self, x, dy, dweight, dbias):
        settings = self.settings(x.shape[3] // dweight.shape[3])  # fewer groups where only some are checked

        def gradients():
            conv.conv2d_backward_parameters(dy, x, dweight, dbias, False, *settings)
            return dweight, dbias

        return gradients

    def torch(self, x, dy, dweight, dbias):
        gradients = self.in_torch(dy, x, dweight.to(dy.dtype), [False, True, True])

        def of_parameters():
            _, weights, biases = gradients()
            return weights.movedim(1, -1), biases

        return of_parameters

    def torch_nchw(self, x, dy, dweight, dbias):
        return self.torch(nchw(x), nchw(dy), nchw(dweight), dbias)
