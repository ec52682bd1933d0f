"""Containers: layers made of layers."""

from collections.abc import Iterator
from typing import Any, overload

import bp.ops.activation
import bp.ops.shape
from bp.errors import ConfigurationError, ShapeError
from bp.layers.context import Context
from bp.layers.fusion import Group, LinearGroup, Plan
from bp.layers.layer import Layer, _located
from bp.ops.array import Array, Shape


class Sequential(Layer):
    """The layers one after the other; backward is the chain rule: the same layers in reverse.

    Layers are named "0", "1", ...; `model[i]` gives one, `model[1:3]` a Sequential of the same layers, and `len(model)`
    their number. Without layers it is the identity. Neighbours run as one operation where they stand in the table
    of `bp.layers.fusion`.
    """

    _plan = Plan(())

    def __init__(self, *layers: Layer) -> None:
        self.layers = _checked("Sequential", layers)

    def children(self) -> Iterator[tuple[str, Layer]]:
        return ((str(index), layer) for index, layer in enumerate(self.layers))

    def declare(self, input_shape: Shape) -> Shape:
        for layer in self.layers:
            input_shape = layer.declare(input_shape)
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        for group in self._groups(ctx):
            x = group.forward(x, ctx)
        return x

    def backward(self, dy: Array, ctx: Context) -> Array:
        for group in reversed(self._groups(ctx)):
            dy = group.backward(dy, ctx)
        return dy

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        groups = self._groups(ctx)
        first = next((index for index, group in enumerate(groups) if group.trains), len(groups))
        for group in reversed(groups[first + 1 :]):
            dy = group.backward(dy, ctx)
        if first < len(groups):
            groups[first].backward_parameters(dy, ctx)
        for group in reversed(groups[:first]):
            ctx.drop(group.first)

    @_located
    def forward_plus(self, x: Array, ctx: Context) -> Array | None:
        """forward(x) + x, where the last layers can add it in their own pass; None, and nothing is done, elsewhere."""
        groups = self._groups(ctx)
        last = groups[-1] if groups else None
        if not isinstance(last, LinearGroup) or not last.adds:
            return None
        y = x
        for group in groups[:-1]:
            y = group.forward(y, ctx)
        return last.forward(y, ctx, x)

    def _groups(self, ctx: Context) -> tuple[Group, ...]:
        """The layers as they run in a pass of `ctx`: by themselves, or several as one."""
        if self._plan.layers != tuple(self.layers):
            self._plan = Plan(self.layers)
        return self._plan.groups(ctx)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...

    @overload
    def __getitem__(self, index: slice) -> "Sequential": ...

    def __getitem__(self, index: int | slice) -> Layer:
        return Sequential(*self.layers[index]) if isinstance(index, slice) else self.layers[index]


class Residual(Layer):
    """y = body(x) + shortcut(x); without a shortcut, y = body(x) + x.

    Backward: both summands receive dy, and x, which went into both, the sum of their input gradients.
    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition (2016).
    """

    def __init__(self, body: Layer, shortcut: Layer | None = None) -> None:
        self.body, *rest = _checked("Residual", (body,) if shortcut is None else (body, shortcut))
        self.shortcut = rest[0] if rest else None

    def declare(self, input_shape: Shape) -> Shape:
        output_shape = self.body.declare(input_shape)
        other_shape = input_shape if self.shortcut is None else self.shortcut.declare(input_shape)
        if output_shape != other_shape:
            source = "input" if self.shortcut is None else "shortcut's output"
            raise ShapeError(
                f"the body's output, of shape {output_shape}, cannot be added to the {source}, of shape {other_shape}"
            )
        return output_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        if self.shortcut is None and type(self.body) is Sequential and "forward" not in vars(self.body):
            total = self.body.forward_plus(x, ctx)
            if total is not None:
                return total
        y = self.body.forward(x, ctx)
        return bp.ops.activation.add(y, x if self.shortcut is None else self.shortcut.forward(x, ctx))

    def backward(self, dy: Array, ctx: Context) -> Array:
        other = dy if self.shortcut is None else self.shortcut.backward(dy, ctx)
        return bp.ops.activation.add(self.body.backward(dy, ctx), other)


class Concat(Layer):
    """Every branch receives the input, and their outputs are concatenated along `axis`.

    axis: of the batched output, not 0. Branches are named "0", "1", ...; an empty `Sequential()` passes the input on.
    Backward: each branch receives its part of dy, and x, which went into all, the sum of their input gradients.
    """

    def __init__(self, *branches: Layer, axis: int = -1) -> None:
        self.branches = _checked("Concat", branches)
        if not branches:
            raise ConfigurationError("Concat expected at least one branch, got none")
        if axis == 0:
            raise ConfigurationError("Concat expected an axis of the samples, got 0, which is the batch")
        self.axis = axis

    def children(self) -> Iterator[tuple[str, Layer]]:
        return ((str(index), branch) for index, branch in enumerate(self.branches))

    def declare(self, input_shape: Shape) -> Shape:
        shapes = [branch.declare(input_shape) for branch in self.branches]
        axis = self.axis - 1 if self.axis > 0 else self.axis
        for shape in shapes:
            if not -len(shape) <= axis < len(shape):
                raise ShapeError(f"expected branches with an axis {self.axis}, got an output of shape {shape}")
        joined = list(shapes[0])
        joined[axis] = sum(shape[axis] for shape in shapes)
        for shape in shapes:
            expected = list(shapes[0])
            expected[axis] = shape[axis]
            if list(shape) != expected:
                raise ShapeError(
                    f"expected branches whose outputs differ along axis {self.axis} only, got {shapes[0]} and {shape}"
                )
        return tuple(joined)

    def forward(self, x: Array, ctx: Context) -> Array:
        first, *others = [branch.forward(x, ctx) for branch in self.branches]
        ctx.save(self, [y.shape[self.axis] for y in (first, *others)])
        return bp.ops.shape.concatenate(first, others, self.axis)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (sizes,) = ctx.take(self)
        parts = bp.ops.shape.split(dy, sizes, self.axis)
        *others, dx = [
            branch.backward(part, ctx) for branch, part in zip(reversed(self.branches), reversed(parts), strict=True)
        ]
        for other in reversed(others):
            dx = bp.ops.activation.add(dx, other)
        return dx


class Recompute(Layer):
    """`layer`, saving its input only: backward runs the forward again, for what it needs (gradient checkpointing).

    A second forward is paid for the memory of everything that the layer would have kept. Dropout draws the same masks
    again, and running statistics are updated by the first forward alone.
    Source: Chen, Xu, Zhang, Guestrin, Training Deep Nets with Sublinear Memory Cost (2016).
    """

    def __init__(self, layer: Layer) -> None:
        (self.layer,) = _checked("Recompute", (layer,))

    def declare(self, input_shape: Shape) -> Shape:
        return self.layer.declare(input_shape)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x, ctx.call_site)
        with ctx.without_saving():
            return self.layer.forward(x, ctx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        x, call_site = ctx.take(self)
        again = ctx.replay(call_site)
        self.layer.forward(x, again)
        return self.layer.backward(dy, again)


def _checked(container: str, layers: tuple[Any, ...]) -> tuple[Layer, ...]:
    """The layers; raises ConfigurationError where an item is none, with the likely reason."""
    for position, item in enumerate(layers):
        if isinstance(item, Layer):
            continue
        if isinstance(item, type) and issubclass(item, Layer):
            got = f"the class {item.__name__}; write {item.__name__}(...)"
        elif isinstance(item, (list, tuple)):
            got = f"a {type(item).__name__}; write {container}(*layers)"
        else:
            got = repr(item)
        raise ConfigurationError(f"{container} expected layers, got at position {position} {got}")
    return layers
