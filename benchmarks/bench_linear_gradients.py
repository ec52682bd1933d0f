"""Gradients of linear layers: dx = dy W, and dW = dy^T x with db = sum of dy, written or added."""

import numpy as np

from bp.bench import Sizes
from bp.benchmarks.bench_linear import GPT2, MLP, QUICK, SQUARES, Layer
from bp.benchmarks.cublas import product
from bp.ops import linear
from bp.ops.device import device_of

SIZES = Sizes(cuda=GPT2, cpu=MLP, quick=QUICK)


class LinearInputGradient(Layer):
    name = "linear input gradient"
    sampled = ("dy",)
    sizes = SIZES

    def draw(self, draw):
        return {"dy": draw.normal(self.m, self.n), "weight": self.draw_weight(draw)}

    def length(self):
        return self.n

    def bp(self, dy, weight):
        return lambda: linear.linear_backward_input(dy, weight)

    def numpy(self, dy, weight):
        return lambda: dy @ weight

    def torch(self, dy, weight):
        return lambda: dy @ weight

    def cupy(self, dy, weight):
        return product(dy, weight, device_of(dy).zeros((self.m, self.k), dy.dtype))


class LinearParameterGradients(Layer):
    """Into destinations, which are float32 where dy and x have 16 bits, as in bp; PyTorch's have the dtype of dy."""

    name = "linear parameter gradients"
    sampled = (("dy", 1), "dweight", "dbias")
    sizes = SIZES
    added = False

    def draw(self, draw):
        destinations = {"dweight": draw.normal(self.n, self.k, wide=True), "dbias": draw.normal(self.n, wide=True)}
        return {"dy": draw.normal(self.m, self.n), "x": draw.normal(self.m, self.k)} | destinations

    def nbytes(self, itemsize):
        written = (self.n * self.k + self.n) * max(itemsize, 4)
        return (self.m * self.n + self.m * self.k) * itemsize + written * (2 if self.added else 1)

    def length(self):
        return self.m

    def bp(self, dy, x, dweight, dbias):
        def gradients():
            linear.linear_backward_parameters(dy, x, dweight, dbias, self.added)
            return dweight, dbias

        return gradients

    def numpy(self, dy, x, dweight, dbias):
        def gradients():
            np.matmul(dy.T, x, out=dweight)
            np.sum(dy, axis=0, out=dbias)
            return dweight, dbias

        return gradients

    def torch(self, dy, x, dweight, dbias):
        return lambda: (dy.t() @ x, dy.sum(0))

    def cupy(self, dy, x, dweight, dbias):
        """The bias's as a product with a row of ones."""
        ones = device_of(x).zeros((1, self.m), x.dtype)
        device_of(x).fill(ones, 1.0)
        weights = product(dy, x, dweight, transpose_a=True, accumulate=self.added)
        biases = product(ones, dy, dbias.reshape(1, self.n), accumulate=self.added)
        return lambda: (weights(), biases().reshape(self.n))


class AddedLinearParameterGradients(LinearParameterGradients):
    """Added to what the destinations hold, as in the second of accumulated batches; by everybody in float32."""

    name = "linear parameter gradients, added"
    sizes = Sizes(cuda=[SQUARES[0], *GPT2], cpu=MLP[1:3], quick=QUICK)
    added = True

    def numpy(self, dy, x, dweight, dbias):
        def gradients():
            np.add(dweight, dy.T @ x, out=dweight)
            np.add(dbias, dy.sum(axis=0), out=dbias)
            return dweight, dbias

        return gradients

    def torch(self, dy, x, dweight, dbias):
        from torch import addmm

        def gradients():
            if dweight.dtype == dy.dtype:
                dweight.addmm_(dy.t(), x)
            else:
                addmm(dweight, dy.t(), x, out_dtype=dweight.dtype, out=dweight)
            dbias.add_(dy.sum(0, dtype=dbias.dtype))
            return dweight, dbias

        return gradients
