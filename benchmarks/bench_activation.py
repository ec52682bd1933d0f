"""Activations: elementwise functions y = f(x), and their gradients dx = dy f'(x)."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import activation

# Of the operations of bp, as PyTorch has them unless told; "gelu_tanh" is gelu with its tanh form.
SETTINGS = {"leaky_relu": [0.01], "elu": [1.0], "gelu": ["none"], "gelu_tanh": ["tanh"], "softplus": [1.0, 20.0]}
FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}
FUNCTIONS = [*FORMULAS, "gelu"]  # for whose error function NumPy has none
TARGETS = {"relu": 95, "silu": 95, "gelu_tanh": 95, "gelu": 85, "mish": 85}


def of_torch(function):
    from torch.nn import functional

    if function == "gelu_tanh":
        return lambda x: functional.gelu(x, approximate="tanh")
    return getattr(functional, function)


def gradient_of_torch(function):
    from torch.ops import aten

    gradients = {
        "relu": lambda dy, y: aten.threshold_backward(dy, y, 0),
        "leaky_relu": lambda dy, y: aten.leaky_relu_backward(dy, y, 0.01, True),
        "elu": lambda dy, y: aten.elu_backward(dy, 1.0, 1.0, 1.0, True, y),
        "gelu_tanh": lambda dy, x: aten.gelu_backward(dy, x, approximate="tanh"),
        "softplus": lambda dy, x: aten.softplus_backward(dy, x, 1.0, 20.0),
    }
    return gradients.get(function) or getattr(aten, f"{function}_backward")


@dataclass(frozen=True)
class Elementwise(Benchmark):
    sampled = ("x", "dy", "kept")
    sizes = Sizes(
        cuda=grid(n=[1 << 28], function=FUNCTIONS),
        cpu=grid(n=[1 << 16, 1 << 21], function=FUNCTIONS),
        quick=grid(n=[1 << 15], function=FUNCTIONS[:2]),
    )
    n: int
    function: str

    @property
    def target(self):
        return TARGETS.get(self.function)


class Activation(Elementwise):
    name = "activation"

    def draw(self, draw):
        return {"x": draw.normal(self.n)}

    def nbytes(self, itemsize):
        return 2 * self.n * itemsize

    def bp(self, x):
        operation = getattr(activation, self.function.removesuffix("_tanh"))
        return lambda: operation(x, *SETTINGS.get(self.function, []))

    def numpy(self, x):
        formula = FORMULAS.get(self.function)
        return formula and (lambda: formula(x))

    def cupy(self, x):
        return self.numpy(x)  # NumPy's functions compute on a GPU where they are given arrays of CuPy

    def torch(self, x):
        function = of_torch(self.function)
        return lambda: function(x)


class ActivationBackward(Elementwise):
    """kept: what the forward leaves, its output where that tells the slope, else its input."""

    name = "activation backward"

    def draw(self, draw):
        return {"dy": draw.normal(self.n), "kept": draw.normal(self.n)}

    def nbytes(self, itemsize):
        return 3 * self.n * itemsize

    def bp(self, dy, kept):
        operation = getattr(activation, self.function.removesuffix("_tanh") + "_backward")
        return lambda: operation(dy, kept, *SETTINGS.get(self.function, []))

    def torch(self, dy, kept):
        gradient = gradient_of_torch(self.function)
        return lambda: gradient(dy, kept)
