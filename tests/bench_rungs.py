"""Benchmarks that tell which kernels ran: what test_bench_contestants.py runs on several rungs."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Measured, Sizes, grid
from bp.ops import conv, linear
from bp.ops.device import device_of


def with_kernels(work, x):
    """The work, and beside it how often each kernel ran."""

    def kernels():
        if isinstance(x, np.ndarray):
            from bp.cpu import native

            return {"native kernels": float(native.kernels is not None)}
        with device_of(x).recording() as ledger:
            work()
        names = [launch.variant.kernel.name for launch in ledger.launches]
        return {name: float(names.count(name)) for name in names}

    return Measured(work, kernels)


@dataclass(frozen=True)
class Product(Benchmark):
    """On its own ladder."""

    name = "product"
    precisions = ("fp32",)
    ladder = "linear"
    sizes = Sizes(quick=grid(n=[5]))
    n: int

    def draw(self, draw):
        return {"x": draw.normal(self.n, self.n), "weight": draw.normal(self.n, self.n)}

    def nbytes(self, itemsize):
        return 3 * self.n**2 * itemsize

    def bp(self, x, weight):
        return with_kernels(lambda: linear.linear(x, weight, None), x)


@dataclass(frozen=True)
class Both(Product):
    """On no ladder: a step of a model that has products and convolutions."""

    name = "both"
    ladder = ""

    def bp(self, x, weight):
        image, kernel = x.reshape(1, 1, 1, x.size), weight.reshape(1, 1, 1, weight.size)
        settings = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
        return with_kernels(lambda: (linear.linear(x, weight, None), conv.conv2d(image, kernel, None, *settings)), x)
