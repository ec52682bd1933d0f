"""Initializers: how the first value of a parameter is drawn, so that signals neither vanish nor explode."""

import hashlib
import math
from typing import Protocol

import numpy as np

from bp.ops.array import Shape


class Initializer(Protocol):
    """Draws a float64 array of the given shape from a generator."""

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray: ...


def generator_for(seed: int, name: str) -> np.random.Generator:
    """The generator for the parameter of that name: independent of every other parameter and of their order."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out): how many inputs an output sums over, and how many outputs an input feeds.

    shape: (out, in) of a Linear weight, or (out, kernel_height, kernel_width, in / groups) of a convolution.
    """
    receptive_field = math.prod(shape[1:-1])
    return shape[-1] * receptive_field, shape[0] * receptive_field


class Zeros:
    """All zero: for biases, and for the last layer of a branch that should start as the identity."""

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        return np.zeros(shape)


class KaimingUniform:
    """Uniform on [-limit, limit] with limit = gain sqrt(3 / fan_in): keeps the variance of forward signals.

    A sum of fan_in terms has fan_in times the variance of one, and a ReLU passes half of it, hence gain sqrt(2).
    Source: He, Zhang, Ren, Sun, Delving Deep into Rectifiers (2015), eq. 10.
    """

    def __init__(self, gain: float = math.sqrt(2.0)) -> None:
        self.gain = gain

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        limit = self.gain * math.sqrt(3.0 / max(1, fans(shape)[0]))
        return generator.uniform(-limit, limit, shape)
