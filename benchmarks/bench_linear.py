"""Matrix products by themselves, and what all benchmarks of linear layers share."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.benchmarks.cublas import product
from bp.cuda.product import WAYS
from bp.ops.device import device_of

SQUARES = [{"m": n, "n": n, "k": n} for n in (4096, 8192)]
# GPT-2 124M on 16 sequences of 1024: attention's projections out and in, both layers of an MLP, the logits.
GPT2 = [{"m": 16384, "n": n, "k": k} for n, k in ((768, 768), (2304, 768), (3072, 768), (768, 3072), (50304, 768))]
MLP = [{"m": m, "n": n, "k": k} for m, n, k in ((32, 64, 64), (128, 512, 784), (128, 512, 512), (512, 1024, 1024))]
QUICK = grid(m=[128], n=[256], k=[192])


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

    @property
    def group(self):
        sizes = {"m": self.m, "n": self.n, "k": self.k}
        return "GPT-2 124M" if sizes in GPT2 else "squares" if sizes in SQUARES else ""

    def worth(self, precision):
        """The large cases where they are trained in: a training of GPT-2 in float32 takes another GPU."""
        return precision == "bf16" or not self.group

    def draw_weight(self, draw):
        return draw.normal(self.n, self.k, scale=self.k**-0.5)

    def flops(self):
        return 2.0 * self.m * self.n * self.k

    def nbytes(self, itemsize):
        return (self.m * self.k + self.n * self.k + self.m * self.n) * itemsize

    def length(self):
        return self.k


@dataclass(frozen=True)
class Product(Layer):
    """C = op(A) op(B) of N(0, 1), in the dtype of the factors; way: which of them is transposed, as in `WAYS`."""

    name = "product"
    axis = "k"
    devices = ("cuda", "emulator")
    sizes = Sizes(
        cuda=[sizes | {"way": way} for sizes in SQUARES for way in WAYS],
        quick=[sizes | {"way": way} for sizes in QUICK for way in WAYS],
    )
    way: str

    @property
    def sampled(self):
        return (("a", int(WAYS[self.way][0])),)  # along the rows of C

    def worth(self, precision):
        return precision == "bf16" or self.k <= 4096

    def draw(self, draw):
        transpose_a, transpose_b = WAYS[self.way]
        a, b = (self.m, self.k), (self.k, self.n)
        return {"a": draw.normal(*(a[::-1] if transpose_a else a)), "b": draw.normal(*(b[::-1] if transpose_b else b))}

    def bp(self, a, b):
        if isinstance(a, np.ndarray):
            return self.torch(a, b)  # for the reference: a CPU has no such product by itself
        from bp.cuda.linear import gemm

        transpose_a, transpose_b = WAYS[self.way]
        c = device_of(a).zeros((self.m, self.n), a.dtype)
        return lambda: gemm(a, b, c, transpose_a=transpose_a, transpose_b=transpose_b) or c

    def torch(self, a, b):
        transpose_a, transpose_b = WAYS[self.way]
        return lambda: (a.T if transpose_a else a) @ (b.T if transpose_b else b)

    def cupy(self, a, b):
        transpose_a, transpose_b = WAYS[self.way]
        c = device_of(a).zeros((self.m, self.n), a.dtype)
        return product(a, b, c, transpose_a=transpose_a, transpose_b=transpose_b)
