"""Gradient checking: is every hand-derived backward the derivative of its forward?"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bp.errors import BPError
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.ops.array import Array


class GradientError(BPError, AssertionError):
    """A backward pass disagrees with the central difference of its forward pass."""


@dataclass(frozen=True)
class Comparison:
    """One directional derivative: of `layer` along `direction` ("input" or a parameter's name)."""

    layer: str
    direction: str
    backward: float
    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the two derivatives differ by no more than rounding and truncation explain."""
        return bool(abs(self.backward - self.difference) <= self.allowed)

    def __str__(self) -> str:
        return (
            f"{self.layer}: dL along {self.direction}: backward gives {self.backward:.12g}, the central difference "
            f"{self.difference:.12g}; they differ by {abs(self.backward - self.difference):.3g}, "
            f"allowed {self.allowed:.3g}"
        )


def check(model: Layer, x: Array, *, training: bool = True, seed: int = 0) -> list[Comparison]:
    """Compare every backward of a built model with central differences; stop at the first that disagrees.

    The model is copied to float64 on the CPU and run once on the batch `x`; then each call of each layer is
    checked alone, on the input it received there, in the order in which the calls ended: inner layers before the
    layers made of them, so the first to disagree is the culprit. For a random weighting r of the outputs,
    L = sum(r * y), dL along a random direction u of the input and of each parameter is compared:
    <backward, u> against (L(+hu) - L(-hu)) / 2h with h = eps^(1/3), at which truncation and rounding balance and leave
    a relative error of the order eps^(2/3), about 4e-11. Random numbers (dropout) are the same in every pass and
    running statistics are left alone.

    Raises GradientError naming the layer. Returns all comparisons. Not for points where a derivative does not exist.
    """
    model = model.copy(device="cpu", dtype=np.float64)
    x = np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else np.asarray(x)
    calls: list[tuple[Layer, Array]] = []
    with _recorded(model, calls):
        model.forward(x, _context(training, seed))
    comparisons = []
    for layer, layer_input in calls:
        for comparison in compare(layer, layer_input, training=training, seed=seed):
            if not comparison.agrees:
                raise GradientError(str(comparison))
            comparisons.append(comparison)
    return comparisons


def compare(layer: Layer, x: np.ndarray, *, training: bool = True, seed: int = 0) -> Iterator[Comparison]:
    """The comparisons of one float64 layer at one input: along the input, then along each trainable parameter."""
    generator = np.random.default_rng(seed)
    ctx = _context(training, seed)
    y = layer.forward(x, ctx)
    r = generator.standard_normal(y.shape)
    for _, parameter in layer.named_parameters():
        parameter._written = False
    dx = layer.backward(r, ctx)

    def loss() -> float:
        return float(np.sum(r * layer.forward(x, _context(training, seed))))

    scale = float(np.sum(np.abs(r * y)))
    if x.dtype.kind == "f":
        yield _along("input", layer, x, dx, loss, scale, generator)
    for name, parameter in layer.named_parameters():
        if parameter.trainable:
            yield _along(name, layer, parameter.value, parameter.grad, loss, scale, generator)


def _along(
    name: str,
    layer: Layer,
    value: np.ndarray,
    gradient: Any,
    loss: Callable[[], float],
    scale: float,
    generator: np.random.Generator,
) -> Comparison:
    h = np.finfo(np.float64).eps ** (1 / 3)
    direction = generator.standard_normal(value.shape)
    kept = value.copy()
    value[...] = kept + h * direction
    above = loss()
    value[...] = kept - h * direction
    below = loss()
    value[...] = kept
    terms = gradient * direction
    # 100 covers the constants that the orders leave out (third derivative, sums of a few thousand terms).
    allowed = 100 * h**2 * (scale + float(np.sum(np.abs(terms))))
    return Comparison(layer.label, name, float(np.sum(terms)), (above - below) / (2 * h), allowed)


def _context(training: bool, seed: int) -> Context:
    ctx = Context(training, saving=True, seed=seed, step=0)
    ctx.recomputing = True
    return ctx


@contextmanager
def _recorded(model: Layer, calls: list[tuple[Layer, Array]]) -> Iterator[None]:
    """Record (layer, input) of every forward call below `model`, in the order in which the calls end."""

    def record(layer: Layer) -> Callable[[Array, Context], Array]:
        forward = layer.forward

        def recorded(x: Array, ctx: Context) -> Array:
            kept = np.array(x)
            y = forward(x, ctx)
            calls.append((layer, kept))
            return y

        return recorded

    layers = [layer for _, layer in model.named_layers()]
    try:
        for layer in layers:
            object.__setattr__(layer, "forward", record(layer))
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def tolerance(dtype: Any, length: int = 1) -> float:
    """Relative error allowed to a result of `dtype` that sums `length` rounded terms, against float64.

    Rounding errors of a sum of n terms behave like a random walk: sqrt(n) units in the last place; 8 covers the few
    roundings of each term and the tail of the distribution. Source: Higham and Mary, A New Approach to
    Probabilistic Rounding Error Analysis (2019).
    """
    return 8 * math.sqrt(max(length, 1)) * float(np.finfo(dtype).eps)
