"""Linear layers forward: y = x W^T + b, alone and with an activation behind it."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from bp.bench import Benchmark, Sizes, grid, only_on
from bp.benchmarks.cublas import product
from bp.ops import activation, linear
from bp.ops.device import device_of

SQUARES = [{"m": n, "n": n, "k": n} for n in (4096, 8192)]
# GPT-2 124M on 16 sequences of 1024: attention's projections out and in, both layers of an MLP, the logits.
GPT2 = [{"m": 16384, "n": n, "k": k} for n, k in ((768, 768), (2304, 768), (3072, 768), (768, 3072), (50304, 768))]
SKINNY = grid(m=[16, 32, 64, 128], n=[4096], k=[4096])
MLP = [{"m": m, "n": n, "k": k} for m, n, k in ((32, 64, 64), (128, 512, 784), (128, 512, 512), (512, 1024, 1024))]
QUICK = grid(m=[128], n=[256], k=[192])


def for_each_function(sizes):
    return [one | {"function": function} for one in sizes for function in ("gelu_tanh", "relu")]


@dataclass(frozen=True)
class Layer(Benchmark):
    """What all have in common. m: rows of x and y; n: outputs; k: inputs."""

    precisions = ("bf16", "tf32", "fp32")
    ladder = "linear"
    axis = "m"
    compiles = False  # torch.compile calls the same library
    m: int
    n: int
    k: int

    def draw_weight(self, draw):
        return draw.normal(self.n, self.k, scale=self.k**-0.5)

    def flops(self):
        return 2.0 * self.m * self.n * self.k


class Forward(Layer):
    sampled = ("x",)

    def draw(self, draw):
        return {"x": draw.normal(self.m, self.k), "weight": self.draw_weight(draw), "bias": draw.normal(self.n)}

    def nbytes(self, itemsize):
        return (self.m * self.k + self.n * self.k + self.n + self.m * self.n) * itemsize

    def length(self):
        return self.k


class Linear(Forward):
    name = "linear"
    sizes = Sizes(
        cuda=[*SQUARES, *GPT2, *SKINNY],
        cpu=[*MLP, *({"m": n, "n": n, "k": n} for n in (1024, 2048))],
        quick=QUICK,
    )

    def bp(self, x, weight, bias):
        return lambda: linear.linear(x, weight, bias)

    def numpy(self, x, weight, bias):
        return lambda: x @ weight.T + bias

    def torch(self, x, weight, bias):
        from torch.nn.functional import linear

        return lambda: linear(x, weight, bias)

    def cupy(self, x, weight, bias):
        """The bias is a product as well, with a column of ones, so that all of it is cuBLAS's."""
        y, ones = device_of(x).zeros((self.m, self.n), x.dtype), device_of(x).zeros((self.m, 1), x.dtype)
        device_of(x).fill(ones, 1.0)
        start = product(ones, bias.reshape(1, self.n), y)
        add = product(x, weight, y, transpose_b=True, accumulate=True)
        return lambda: (start(), add())[1]


@dataclass(frozen=True)
class LinearActivation(Forward):
    """f(x W^T + b). GELU in its form with tanh is the one that bp's kernel and cuBLASLt have."""

    name = "linear + activation"
    compiles = True
    sizes = Sizes(*(for_each_function(sizes) for sizes in ([GPT2[2], SKINNY[3]], MLP[2:], QUICK)))
    function: str

    def bp(self, x, weight, bias):
        if isinstance(x, np.ndarray):
            apply = {"gelu_tanh": partial(activation.gelu, approximate="tanh"), "relu": activation.relu}[self.function]
            return lambda: apply(linear.linear(x, weight, bias))
        from bp.cuda.linear import linear_activation

        return lambda: linear_activation(x, weight, bias, self.function)[0]

    def numpy(self, x, weight, bias):
        def gelu(y):
            return y / (1 + np.exp(np.float32(-((8 / np.pi) ** 0.5)) * (y + np.float32(0.044715) * y**3)))

        apply = {"gelu_tanh": gelu, "relu": lambda y: np.maximum(y, 0)}[self.function]
        return lambda: apply(x @ weight.T + bias)

    def torch(self, x, weight, bias):
        from torch.nn import functional

        apply = {"gelu_tanh": partial(functional.gelu, approximate="tanh"), "relu": functional.relu}[self.function]
        return lambda: apply(functional.linear(x, weight, bias))

    @only_on("cuda")
    def torch_cublaslt(self, x, weight, bias):
        from torch import _addmm_activation

        return lambda: _addmm_activation(bias, x, weight.t(), use_gelu=self.function == "gelu_tanh")
