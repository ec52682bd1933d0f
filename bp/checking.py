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
    """One directional derivative: of `layer` along `direction` ("input", a parameter's name, "all parameters")."""

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

    Every input is first moved at random by a tenth of its deviation: a maximum of equal numbers, such as the zeros that
    a ReLU leaves, has no derivative. Raises GradientError naming the layer. Returns all comparisons.
    """
    model = model.copy(device="cpu", dtype=np.float64)
    x = np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else np.asarray(x)
    calls: list[tuple[Layer, Array]] = []
    with _recorded(model, calls):
        model.forward(x, _context(training, seed))
    comparisons = []
    generator = np.random.default_rng(seed)
    for layer, layer_input in calls:
        if layer_input.dtype.kind == "f" and layer_input.size:
            layer_input += 0.1 * (layer_input.std() or 1.0) * generator.standard_normal(layer_input.shape)
        for comparison in compare(layer, layer_input, training=training, seed=seed):
            if not comparison.agrees:
                raise GradientError(str(comparison))
            comparisons.append(comparison)
    return comparisons


def compare(layer: Layer, x: np.ndarray, *, training: bool = True, seed: int = 0) -> Iterator[Comparison]:
    """The comparisons of one float64 layer at one input: along the input, then along each trainable parameter.

    A layer made of layers is compared along all of its parameters at once.
    """
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
        yield _along("input", layer, [(x, dx)], loss, scale, generator)
    pairs: dict[str, tuple[Any, Any]] = {name: (p.value, p.grad) for name, p in layer.named_parameters() if p.trainable}
    if pairs and any(True for _ in layer.children()):
        # Each layer inside has been checked alone; what is left is how their gradients come together.
        yield _along("all parameters", layer, list(pairs.values()), loss, scale, generator)
        return
    for name, pair in pairs.items():
        yield _along(name, layer, [pair], loss, scale, generator)


Pairs = list[tuple[Any, Any]]


def _along(
    name: str,
    layer: Layer,
    pairs: Pairs,
    loss: Callable[[], float],
    scale: float,
    generator: np.random.Generator,
) -> Comparison:
    """Compare along random directions of the values in `pairs`, (value, gradient), until one agrees, else the first.

    With a kink (of a ReLU, of a maximum) between its two points a difference is off though backward is right. Among
    many elements there is often one within h; a smaller step passes nearly all, at the price of more rounding.
    A backward that is wrong agrees along no direction.
    """
    h = float(np.finfo(np.float64).eps) ** (1 / 3)
    tries: list[Comparison] = []
    for step in (h, h / 8, h / 64, h / 64, h / 512, h / 512):
        tries.append(_difference(name, layer, pairs, loss, scale, generator, step))
        if tries[-1].agrees:
            return tries[-1]
    return tries[0]


def _difference(
    name: str,
    layer: Layer,
    pairs: Pairs,
    loss: Callable[[], float],
    scale: float,
    generator: np.random.Generator,
    h: float,
) -> Comparison:
    directions = [generator.standard_normal(value.shape) for value, _ in pairs]
    kept = [value.copy() for value, _ in pairs]

    def moved(distance: float) -> float:
        for (value, _), start, direction in zip(pairs, kept, directions, strict=True):
            value[...] = start + distance * direction
        return loss()

    above, below = moved(h), moved(-h)
    for (value, _), start in zip(pairs, kept, strict=True):
        value[...] = start
    terms = [gradient * direction for (_, gradient), direction in zip(pairs, directions, strict=True)]
    backward = float(sum(np.sum(term) for term in terms))
    # Truncation goes with h^2, rounding with eps / h; 100 covers the constants that the orders leave out (third
    # derivative, sums of a few thousand terms).
    order = max(h**2, float(np.finfo(np.float64).eps) / h)
    allowed = 100 * order * (scale + float(sum(np.sum(np.abs(term)) for term in terms)))
    return Comparison(layer.label, name, backward, (above - below) / (2 * h), allowed)


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
