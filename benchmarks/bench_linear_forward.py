"""Linear layers forward: y = x W^T + b."""

from bp.bench import Sizes
from bp.benchmarks import cublaslt
from bp.benchmarks.bench_linear import GPT2, MLP, QUICK, Layer
from bp.ops import linear
from bp.ops.device import device_of


class Linear(Layer):
    name = "linear"
    sampled = ("x",)
    sizes = Sizes(cuda=GPT2, cpu=[*MLP, *({"m": n, "n": n, "k": n} for n in (1024, 2048))], quick=QUICK)

    def draw(self, draw):
        return {"x": draw.normal(self.m, self.k), "weight": self.draw_weight(draw), "bias": draw.normal(self.n)}

    def bp(self, x, weight, bias):
        return lambda: linear.linear(x, weight, bias)

    def numpy(self, x, weight, bias):
        return lambda: x @ weight.T + bias

    def torch(self, x, weight, bias):
        from torch.nn.functional import linear

        return lambda: linear(x, weight, bias)

    def cupy_cublaslt(self, x, weight, bias):
        y = device_of(x).zeros((self.m, self.n), x.dtype)
        return cublaslt.product(x, weight, y, transpose_b=True, bias=bias)
