"""What the machine can do at most: copies from small to large, large products, and the shortest piece of work."""

import concurrent.futures
from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.bench.machine import cores
from bp.benchmarks.cublas import product
from bp.ops import activation, linear
from bp.ops.device import device_of


@dataclass(frozen=True)
class Copy(Benchmark):
    """One array into another; the sizes reach from what the nearest cache holds to what no cache does."""

    name = "copy"
    precisions = ("fp32",)
    sampled = ("source", "destination")
    compiles = False
    sizes = Sizes(
        cuda=grid(n=[1 << 20, 1 << 23, 1 << 26, 1 << 28]),
        cpu=grid(n=[1 << bits for bits in range(12, 28, 2)]),
        quick=grid(n=[1 << bits for bits in (12, 16, 18, 20, 23)]),
    )
    n: int

    def draw(self, draw):
        return {"source": draw.normal(self.n), "destination": draw.zeros(self.n)}

    def nbytes(self, itemsize):
        return 2 * self.n * itemsize

    def bp(self, source, destination):
        device = device_of(source)
        return lambda: device.copy(destination, source) or destination

    def numpy_threads(self, source, destination):
        """NumPy's copy on every core at once."""
        pool = concurrent.futures.ThreadPoolExecutor(cores())
        parts = [np.array_split(array, cores()) for array in (destination, source)]
        return lambda: list(pool.map(np.copyto, *parts)) and destination

    def torch(self, source, destination):
        return lambda: destination.copy_(source)

    def cupy(self, source, destination):
        return lambda: destination.data.copy_from_device_async(source.data, source.nbytes) or destination


@dataclass(frozen=True)
class Product(Benchmark):
    """Square matrices, so large that memory plays no part; the larger of two may be slower, where power is short."""

    name = "matrix product"
    precisions = ("bf16", "fp16", "tf32", "fp32")
    sampled = ("a",)
    compiles = False
    sizes = Sizes(cuda=grid(n=[4096, 8192]), cpu=grid(n=[768, 2048]), quick=grid(n=[512, 1024]))
    n: int

    def draw(self, draw):
        return {"a": draw.normal(self.n, self.n), "b": draw.normal(self.n, self.n)}

    def flops(self):
        return 2.0 * self.n**3

    def nbytes(self, itemsize):
        return 3 * self.n**2 * itemsize

    def length(self):
        return self.n

    def bp(self, a, b):
        return lambda: linear.linear(a, b, None)

    def numpy(self, a, b):
        return lambda: a @ b.T

    def torch(self, a, b):
        return lambda: a @ b.T

    def cupy(self, a, b):
        return product(a, b, device_of(a).zeros((self.n, self.n), a.dtype), transpose_b=True)


@dataclass(frozen=True)
class Launch(Benchmark):
    """One element: all that is left is the way to the kernel and back."""

    name = "launch"
    precisions = ("fp32",)
    compiles = False
    sizes = Sizes(cuda=grid(n=[1]), cpu=grid(n=[1]), quick=grid(n=[1]))
    n: int

    def draw(self, draw):
        return {"x": draw.normal(self.n)}

    def nbytes(self, itemsize):
        return 0.0

    def bp(self, x):
        return lambda: activation.relu(x)

    def numpy(self, x):
        return lambda: np.maximum(x, 0)

    def torch(self, x):
        return lambda: x.relu()
