"""Linear layers with an activation in the same pass, forward: y, and what backward needs."""

from dataclasses import dataclass

from bp.bench import Sizes, a_part, only_on
from bp.benchmarks import cublaslt
from bp.benchmarks.bench_activation import FORMULAS, of_torch
from bp.benchmarks.bench_linear import GPT2, MLP, QUICK, Layer
from bp.ops import activation, linear
from bp.ops.device import device_of

DECODING = {"m": 128, "n": 4096, "k": 4096}


def for_each_function(sizes):
    return [one | {"function": function} for one in sizes for function in ("gelu_tanh", "relu")]


@dataclass(frozen=True)
class WithActivation(Layer):
    """The form of GELU with tanh is the one that cuBLASLt has.

    What fusion is worth stands in the same row: "bp unfused" is the product and then the activation, "bp product" the
    product alone. Fused work cannot take less than the product; it reaches p per cent of what that promises, of
    unfused / product, where the product takes p per cent of its time.
    """

    compiles = True
    function: str

    @property
    def group(self):
        return f"with {self.function}" if self.m == GPT2[0]["m"] else ""


class LinearActivation(WithActivation):
    """y = f(z) with z = x W^T + b; returns y, and for GELU z as well, which backward takes."""

    name = "linear + activation"
    sampled = ("x",)
    sizes = Sizes(*(for_each_function(sizes) for sizes in ([GPT2[2], DECODING], MLP[2:], QUICK)))

    def draw(self, draw):
        return {"x": draw.normal(self.m, self.k), "weight": self.draw_weight(draw), "bias": draw.normal(self.n)}

    def nbytes(self, itemsize):
        outputs = 1 if self.function == "relu" else 2
        return (self.m * self.k + self.n * self.k + self.n + outputs * self.m * self.n) * itemsize

    def outputs(self, y, z):
        return y if self.function == "relu" else (y, z)

    def bp(self, x, weight, bias):
        return lambda: self.outputs(*linear.linear_activation(x, weight, bias, self.function, True, None, None))

    def bp_unfused(self, x, weight, bias):
        apply = {"relu": activation.relu, "gelu_tanh": lambda z: activation.gelu(z, "tanh")}[self.function]
        return lambda: self.outputs(apply(z := linear.linear(x, weight, bias)), z)

    @a_part
    def bp_product(self, x, weight, bias):
        return lambda: linear.linear(x, weight, bias)

    def numpy(self, x, weight, bias):
        return lambda: self.outputs(FORMULAS[self.function](z := x @ weight.T + bias), z)

    def torch(self, x, weight, bias):
        from torch.nn.functional import linear

        apply = of_torch(self.function)

        def with_activation():
            z = linear(x, weight, bias)
            return self.outputs(apply(z), z)

        return with_activation

    @only_on("cuda")
    def torch_cublaslt(self, x, weight, bias):
        """An epilogue of cuBLASLt through PyTorch, which keeps no z."""
        from torch import _addmm_activation

        return (lambda: _addmm_activation(bias, x, weight.t())) if self.function == "relu" else None

    def cupy_cublaslt(self, x, weight, bias):
        y, z = (device_of(x).zeros((self.m, self.n), x.dtype) for _ in range(2))
        kept = {} if self.function == "relu" else {"before": z}
        work = cublaslt.product(x, weight, y, transpose_b=True, bias=bias, activation=self.function, **kept)
        return lambda: self.outputs(work(), z)
