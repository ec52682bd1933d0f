"""Bias with activation in one pass over memory, its backward with the gradient of the bias, and the residual sum."""

from dataclasses import dataclass

from bp.bench import Benchmark, Sizes, grid
from bp.benchmarks.bench_activation import FORMULAS, of_torch
from bp.ops import activation

FUNCTIONS = ["relu", "gelu_tanh", "silu"]


@dataclass(frozen=True)
class OfColumns(Benchmark):
    """x: (rows, columns), with one bias for each column."""

    target = 95
    sampled = ("x", "dy")
    sizes = Sizes(
        cuda=grid(rows=[1 << 13, 1 << 16], columns=[4096], function=FUNCTIONS),
        cpu=grid(rows=[128], columns=[512], function=FUNCTIONS)
        + grid(rows=[1 << 16], columns=[32], function=FUNCTIONS),
        quick=grid(rows=[64], columns=[512], function=FUNCTIONS[1:2]),
    )
    rows: int
    columns: int
    function: str

    def draw(self, draw):
        return {"x": draw.normal(self.rows, self.columns), "bias": draw.normal(self.columns)}


class BiasActivation(OfColumns):
    name = "bias + activation"

    def nbytes(self, itemsize):
        return 2 * self.rows * self.columns * itemsize

    def bp(self, x, bias):
        return lambda: activation.bias_activation(x, bias, self.function)[0]

    def numpy(self, x, bias):
        formula = FORMULAS[self.function]
        return lambda: formula(x + bias)

    def cupy(self, x, bias):
        return self.numpy(x, bias)  # NumPy's functions compute on a GPU where they are given arrays of CuPy

    def torch(self, x, bias):
        function = of_torch(self.function)
        return lambda: function(x + bias)


class BiasActivationBackward(OfColumns):
    """dx, and its sum over all rows, which is the gradient of the bias. relu keeps y, the others x."""

    name = "bias + activation backward"

    def draw(self, draw):
        drawn = {"dy": draw.normal(self.rows, self.columns), "dbias": draw.zeros(self.columns, wide=True)}
        return super().draw(draw) | drawn

    def nbytes(self, itemsize):
        return 3 * self.rows * self.columns * itemsize

    def length(self):
        return self.rows

    def bp(self, x, bias, dy, dbias):
        kept = activation.bias_activation(x, bias, self.function)[1]
        backward = activation.bias_activation_backward
        return lambda: (backward(dy, kept, bias, dbias, self.function, False), dbias)

    def torch(self, x, bias, dy, dbias):
        import torch
        from torch.ops import aten

        total = x + bias  # which its users' forward has kept
        y = torch.relu(total)
        gradient = {
            "relu": lambda: aten.threshold_backward(dy, y, 0),
            "gelu_tanh": lambda: aten.gelu_backward(dy, total, approximate="tanh"),
            "silu": lambda: aten.silu_backward(dy, total),
        }[self.function]

        def backward():
            dx = gradient()
            return dx, dx.sum(0, dtype=torch.float32)

        return backward


@dataclass(frozen=True)
class ResidualSum(Benchmark):
    name = "residual sum"
    sampled = ("a", "b")
    sizes = Sizes(cuda=grid(n=[1 << 28]), cpu=grid(n=[1 << 16, 1 << 21]), quick=grid(n=[1 << 15]))
    n: int

    def draw(self, draw):
        return {"a": draw.normal(self.n), "b": draw.normal(self.n)}

    def nbytes(self, itemsize):
        return 3 * self.n * itemsize

    def bp(self, a, b):
        return lambda: activation.add(a, b)

    def numpy(self, a, b):
        return lambda: a + b

    cupy = torch = numpy
