"""Linear layers of few rows, as in decoding: the weight is read once, from memory or from the second-level cache."""

from dataclasses import dataclass

from bp.bench import Sizes, grid
from bp.benchmarks import cublaslt
from bp.benchmarks.bench_linear import Layer
from bp.ops import linear
from bp.ops.device import device_of

ROWS = [16, 32, 64, 128]


@dataclass(frozen=True)
class Skinny(Layer):
    """y = x W^T. cache: what the second-level cache holds before a run: "warm", the same weight as the run before."""

    name = "skinny linear"
    precisions = ("bf16", "fp32")
    sampled = ("x",)
    sizes = Sizes(
        cuda=grid(m=ROWS, n=[4096], k=[4096], cache=["cold", "warm"]),
        cpu=grid(m=ROWS[:1], n=[1024], k=[1024], cache=["warm"]),
        quick=grid(m=ROWS[:1], n=[256], k=[192], cache=["warm"]),
    )
    cache: str

    @property
    def group(self):
        return f"skinny, {self.cache}"

    def worth(self, precision):
        return precision == "bf16"

    def draw(self, draw):
        return {"x": draw.normal(self.m, self.k), "weight": self.draw_weight(draw)}

    def bp(self, x, weight):
        return lambda: linear.linear(x, weight, None)

    def numpy(self, x, weight):
        return lambda: x @ weight.T

    def torch(self, x, weight):
        from torch.nn.functional import linear

        return lambda: linear(x, weight)

    def cupy_cublaslt(self, x, weight):
        """cuBLAS without CuPy between, which refuses to call it while a graph is captured."""
        return cublaslt.product(x, weight, device_of(x).zeros((self.m, self.n), x.dtype), transpose_b=True)
