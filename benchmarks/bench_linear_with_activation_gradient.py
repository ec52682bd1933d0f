"""The input gradient of a linear layer, carried on through the activation of the layer below in the same pass."""

from bp.bench import Sizes, a_part
from bp.benchmarks import cublaslt
from bp.benchmarks.bench_activation import gradient_of_torch
from bp.benchmarks.bench_linear import GPT2, MLP, QUICK
from bp.benchmarks.bench_linear_with_activation import WithActivation, for_each_function
from bp.ops import linear
from bp.ops.device import device_of


class InputGradientActivation(WithActivation):
    """dz = (dy W) f'(z), where x = f(z) came out of the layer below; kept: its y for ReLU, its z for GELU."""

    name = "linear input gradient * activation gradient"
    sampled = ("dy", "kept")
    sizes = Sizes(*(for_each_function(sizes) for sizes in ([GPT2[3]], MLP[2:], QUICK)))

    def draw(self, draw):
        arrays = {"dy": draw.normal(self.m, self.n), "weight": self.draw_weight(draw)}
        return arrays | {"kept": draw.normal(self.m, self.k)}

    def nbytes(self, itemsize):
        return (self.m * self.n + self.n * self.k + 2 * self.m * self.k) * itemsize

    def length(self):
        return self.n

    def bp(self, dy, weight, kept):
        return lambda: linear.linear_backward_input_activation(dy, weight, kept, self.function, None)

    def bp_unfused(self, dy, weight, kept):
        backward, gradient = linear.linear_activation_backward, linear.linear_backward_input
        return lambda: backward(gradient(dy, weight), kept, self.function, None)

    @a_part
    def bp_product(self, dy, weight, kept):
        return lambda: linear.linear_backward_input(dy, weight)

    def torch(self, dy, weight, kept):
        gradient = gradient_of_torch(self.function)
        return lambda: gradient(dy @ weight, kept)

    def cupy_cublaslt(self, dy, weight, kept):
        if self.function == "relu":
            return None  # its gradient of ReLU takes a mask of bits that its forward makes
        dz = device_of(dy).zeros((self.m, self.k), dy.dtype)
        return cublaslt.product(dy, weight, dz, transpose_b=False, activation="gelu_tanh", kept=kept)
