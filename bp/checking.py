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
from bp.layers.parameter import Parameter
from bp.ops.array import Array

Pairs = list[tuple[Any, Any]]  # (value, gradient)

_EPS = float(np.finfo(np.float64).eps)
# At this step of a smooth function the truncation of a central difference (of the order h^2) and its rounding (eps / h)
# balance. 100 covers the constants that the orders leave out (third derivatives, rounding within backward).
_STEP = _EPS ** (1 / 3)
_RELATIVE = 100 * _STEP**2
_DEVIATIONS = 16  # of the rounding error, which is itself an estimate
_STEPS = 5
_DIRECTIONS = 3


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
    """Compare every backward of a built model with central differences; stop at the first that is wrong.

    The model is copied to float64 on the CPU and run once on the batch `x`; then each call of each layer is
    checked alone, on the input it received there, in the order in which the calls ended: inner layers before the
    layers made of them, so the first to disagree is the culprit. `compare` says what is checked. Random numbers
    (dropout) are the same in every pass and running statistics are left alone.

    Every parameter and input is first moved at random by a tenth of its deviation: a maximum of equal numbers, such as
    the zeros that a ReLU leaves, has no derivative, nor has a ReLU at a bias of zero on its own. Raises GradientError
    naming the layer. Returns all comparisons.
    """
    model = model.copy(device="cpu", dtype=np.float64)
    x = np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else np.asarray(x)
    generator = np.random.default_rng(seed)
    for _, parameter in model.named_parameters():
        _jitter(parameter.value, generator)
    calls: list[tuple[Layer, Array]] = []
    with _recorded(model, calls):
        model.forward(x, _context(training, seed))
    comparisons = []
    for layer, layer_input in calls:
        if layer_input.dtype.kind == "f":
            _jitter(layer_input, generator)
        for comparison in compare(layer, layer_input, training=training, seed=seed):
            if not comparison.agrees:
                raise GradientError(str(comparison))
            comparisons.append(comparison)
    return comparisons


def _jitter(values: np.ndarray, generator: np.random.Generator) -> None:
    if values.size:
        values += 0.1 * (values.std() or 1.0) * generator.standard_normal(values.shape)


def compare(layer: Layer, x: np.ndarray, *, training: bool = True, seed: int = 0) -> Iterator[Comparison]:
    """The comparisons of one float64 layer at one input: along the input, then along each trainable parameter.

    For a random weighting r of the outputs, L = sum(r * y), and a random direction u, <backward, u> stands against
    (L(+hu) - L(-hu)) / 2h. A layer made of layers is compared along all of its parameters at once.

    Raises GradientError where backward is no derivative to compare or breaks a rule: it (or forward) writes into x, dy
    or y, dx has another shape than x, what forward saved is left on the context, a second backward does not add the
    same gradients again, or `backward_parameters` gives others than `backward`.
    """
    generator = np.random.default_rng(seed)
    trained = {name: p for name, p in layer.named_parameters() if p.trainable}

    def forward() -> Array:
        return np.array(layer.forward(x, _context(training, seed)))

    given = x.copy()
    y = forward()
    _expect_unchanged(layer, "forward", "input x", x, given)
    r = generator.standard_normal(y.shape)

    def gradients(method: str) -> Any:
        """dx of a first backward after an optimizer step, whose parameter gradients overwrite what was there."""
        for parameter in trained.values():
            parameter.grad = np.full(parameter.shape or (), np.nan)
            parameter._written = False
        return _backward(layer, method, x, r, _context(training, seed))

    dx = gradients("backward")
    if x.dtype.kind == "f" and np.shape(dx) != x.shape:
        raise GradientError(f"{layer.label}: backward gives dx of shape {np.shape(dx)} for x of shape {x.shape}")
    grads = {name: np.array(p.grad) for name, p in trained.items()}
    for name, gradient in grads.items():
        if np.isnan(gradient).any():
            raise GradientError(
                f"{layer.label}: the gradient of {name} has NaN: backward computes one, leaves elements unwritten, or "
                "adds to the gradient before an optimizer step where it has to overwrite (accumulate is False)"
            )
    inputs: Pairs = [(x, np.array(dx))] if x.dtype.kind == "f" else []
    pairs: dict[str, tuple[Any, Any]] = {name: (p.value, grads[name]) for name, p in trained.items()}
    rounding = _rounding([*inputs, *pairs.values()], forward, r, generator)
    if inputs:
        yield _along("input", layer, inputs, forward, r, rounding, generator)
    if pairs and any(True for _ in layer.children()):
        # Each layer inside has been checked alone; what is left is how their gradients come together.
        yield _along("all parameters", layer, list(pairs.values()), forward, r, rounding, generator)
    else:
        for name, pair in pairs.items():
            yield _along(name, layer, [pair], forward, r, rounding, generator)

    _backward(layer, "backward", x, r, _context(training, seed))
    _expect_gradients(layer, trained, {name: 2 * g for name, g in grads.items()}, "a second backward has to add to")
    if type(layer).backward_parameters is not Layer.backward_parameters:
        gradients("backward_parameters")
        _expect_gradients(layer, trained, grads, "backward_parameters has to give the same as backward for")


def _backward(layer: Layer, method: str, x: Array, r: Array, ctx: Context) -> Any:
    """dx for dy = r (None of `backward_parameters`); raises GradientError where one of the rules is broken."""
    dy, given = r.copy(), x.copy()
    y = layer.forward(x, ctx)
    made = np.array(y)
    dx = getattr(layer, method)(dy, ctx)
    for what, now, before in (("input x", x, given), ("output gradient dy", dy, r), ("output y", y, made)):
        _expect_unchanged(layer, method, what, now, before)
    if ctx.open_layers:
        raise GradientError(
            f"{layer.label}: {method} leaves on the context what {', '.join(ctx.open_layers)} saved: the backward of "
            "each forward has to be called"
        )
    return dx


def _expect_unchanged(layer: Layer, method: str, what: str, now: Array, before: Array) -> None:
    if not np.array_equal(now, before, equal_nan=True):
        raise GradientError(f"{layer.label}: {method} writes into the {what}, which others may use")


def _expect_gradients(layer: Layer, trained: dict[str, Parameter], expected: dict[str, np.ndarray], rule: str) -> None:
    """The gradients are the expected ones but for the order of sums."""
    size = _norm(*expected.values())
    for name, gradient in expected.items():
        error = _norm(trained[name].grad - gradient)
        if not error <= _RELATIVE * size:
            raise GradientError(f"{layer.label}: {rule} the gradient of {name}, and is off by {error:.3g}")


def _along(
    name: str,
    layer: Layer,
    pairs: Pairs,
    forward: Callable[[], Array],
    r: Array,
    rounding: float,
    generator: np.random.Generator,
) -> Comparison:
    """Compare along a random direction of the values in `pairs`, (value, gradient).

    Where the two disagree, a kink (of a ReLU, of a maximum) may lie between the two points of the difference; among
    many elements there is often one. The difference at a smaller step along the same direction tells: if it is the
    same, there is none, and backward is wrong. If it is another, a still smaller step passes more kinks, at the price
    of more rounding; after the last of them another direction is tried.
    """
    for _ in range(_DIRECTIONS):
        directions, at = _line(pairs, forward, generator)
        terms = [gradient * direction for (_, gradient), direction in zip(pairs, directions, strict=True)]
        backward = float(sum(np.sum(term) for term in terms))
        noise = rounding + _EPS * _norm(*(gradient * value for value, gradient in pairs))
        h = _STEP
        previous = math.nan
        for attempt in range(_STEPS):
            slopes = r * (at(h) - at(-h)) / (2 * h)
            if attempt == 0 and (size := _norm(slopes)) and noise > 64 * _EPS * size:
                # Outputs with a large constant part are rounded coarsely; a larger step balances that.
                h = min((noise / size) ** (1 / 3), 0.1)
                slopes = r * (at(h) - at(-h)) / (2 * h)
            allowed = _DEVIATIONS * noise / h + _RELATIVE * _norm(*terms)
            comparison = Comparison(layer.label, name, backward, float(np.sum(slopes)), allowed)
            if comparison.agrees or abs(comparison.difference - previous) <= allowed:
                return comparison
            previous = comparison.difference
            h /= 8
    return comparison


def _line(
    pairs: Pairs, forward: Callable[[], Array], generator: np.random.Generator
) -> tuple[list[np.ndarray], Callable[[float], Array]]:
    """A random direction of the values, on their own scale where that is below 1, and the output at a distance."""
    kept = [value.copy() for value, _ in pairs]
    scales = [min(_norm(value) / math.sqrt(max(value.size, 1)) or 1.0, 1.0) for value in kept]
    directions = [scale * generator.standard_normal(value.shape) for scale, value in zip(scales, kept, strict=True)]

    def at(distance: float) -> Array:
        for (value, _), start, direction in zip(pairs, kept, directions, strict=True):
            value[...] = start + distance * direction
        y = forward()
        for (value, _), start in zip(pairs, kept, strict=True):
            value[...] = start
        return y

    return directions, at


def _rounding(pairs: Pairs, forward: Callable[[], Array], r: Array, generator: np.random.Generator) -> float:
    """Standard deviation of the rounding error of L = sum(r * y), measured by moving all values a little.

    Over a distance d far below `_STEP` the second difference of a smooth y, of the order d^2, vanishes beside the
    rounding errors of its three terms, which count as 1 + 4 + 1 variances. They add up as a random walk.
    """
    _, at = _line(pairs, forward, generator)
    y, d = at(0.0), _STEP / 4096
    return _norm(r * (at(d) - 2 * y + at(-d))) / math.sqrt(6) + _EPS * _norm(r * y)


def _norm(*arrays: Any) -> float:
    """The joint Euclidean norm."""
    return math.sqrt(sum(float(np.sum(np.square(array))) for array in arrays))


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
    eps = 2.0**-7 if str(dtype) == "bfloat16" else float(np.finfo(dtype).eps)  # NumPy itself does not know bfloat16
    return 8 * math.sqrt(max(length, 1)) * eps
