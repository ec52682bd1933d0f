"""Fusion: which neighbouring layers of a Sequential run as one operation; PATTERNS, at the end, is the whole list.

A group of layers computes what the layers compute one after the other, with fewer passes over memory: an activation, a
dropout and a residual are applied to the result of a product before it is stored. In backward the gradient in front of
an activation is an elementwise factor on the input gradient of the product above it, dx = dy W, so that product takes
it in: a group leaves the backward of its activation and dropout to the group above wherever that one is a product too.

The layers stay what they are: names, parameters, indexing and checkpoints do not know of groups. Each saves on the
context what it would save by itself, so the backward of a group can follow the forwards of its layers, and theirs that
of the group. Only a layer whose type is exactly one of the table's is fused, never a subclass, which may compute
something else; and while a forward or backward of one of the layers, or of a class of the table, is replaced, as
whoever watches them does, all run alone. So does each layer in a context with fuse=False. Launches and errors of a
group carry the name of its first layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import bp.ops.conv as conv_ops
import bp.ops.linear as linear_ops
from bp.layers.activation import GELU, ReLU, SiLU
from bp.layers.context import Context
from bp.layers.conv import Conv2d
from bp.layers.dropout import Dropout
from bp.layers.layer import Layer, _located
from bp.layers.linear import Linear
from bp.layers.norm import BatchNorm2d
from bp.layers.parameter import gradients
from bp.ops.array import Array
from bp.ops.conv import Pair
from bp.ops.dropout import Mask

# The fused activation (bp.ops.activation.FUSED_ACTIVATIONS) that a layer is, by its type.
ACTIVATIONS: dict[type[Layer], Callable[[Any], str]] = {
    ReLU: lambda layer: "relu",
    GELU: lambda layer: "gelu_tanh" if layer.approximate == "tanh" else "gelu",
    SiLU: lambda layer: "silu",
}


class Group:
    """A layer that runs by itself, and the base of those that run as one with their neighbours.

    activation, dropout: the layers of the group that are such, or None. below: the group below whose activation and
    dropout the input gradient of this one takes in, or None; taken_in: whether the group above does so with those of
    this one, so that the dy of its backward is the gradient in front of them. adds: whether `forward` takes a residual.
    """

    adds = False

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.first: Any = layers[0]
        self.activation = next((layer for layer in layers if type(layer) in ACTIVATIONS), None)
        self.dropout = next((layer for layer in layers if type(layer) is Dropout), None)
        self.below: Group | None = None
        self.taken_in = False

    @property
    def label(self) -> str:
        """That of the first layer."""
        return str(self.first.label)

    @property
    def trains(self) -> bool:
        """Whether it has parameters, or may have inside: below the first that has, no gradient is of use to anybody."""
        return any(True for _ in self.first.named_parameters()) or any(True for _ in self.first.children())

    def takes_in(self, below: "Group") -> bool:
        """Whether the input gradient of this group can carry on to what stands in front of the activation below."""
        return False

    def forward(self, x: Array, ctx: Context) -> Array:
        """As the layers one after the other."""
        y: Array = self.first.forward(x, ctx)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        """dL/dx, or where there is a group `below`, the gradient in front of its activation."""
        dx: Array = self.first.backward(dy, ctx)
        return dx

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        """`backward` where nobody asks for dL/dx."""
        self.first.backward_parameters(dy, ctx)

    def take_behind(self, ctx: Context) -> tuple[Array | None, str, Mask | None]:
        """What the activation and the dropout saved, as `linear_activation_backward` takes it: (kept, which, mask)."""
        mask = None if self.dropout is None else ctx.take(self.dropout)[0]
        kept = None if self.activation is None else ctx.take(self.activation)[0]
        return kept, self._activation_name(), mask

    def _activation_name(self) -> str:
        return "identity" if self.activation is None else ACTIVATIONS[type(self.activation)](self.activation)


class Elementwise(Group):
    """An activation or a dropout behind something else than a product: it runs by itself; its gradient need not."""

    trains = False

    def backward(self, dy: Array, ctx: Context) -> Array:
        return dy if self.taken_in else super().backward(dy, ctx)


class _Product(Group):
    """What the groups share that begin with a product."""

    trains = True

    def _in_front(self, dy: Array, ctx: Context) -> Array:
        """The gradient in front of what stands behind the product."""
        if self.taken_in or len(self.layers) == 1:
            return dy
        return linear_ops.linear_activation_backward(dy, *self.take_behind(ctx))


class LinearGroup(_Product):
    """Linear, then an activation, then a dropout, each of these two or none; y = m f(x W^T + b).

    With neither it may add a residual instead of an activation, and a dropout lies in front of that.
    """

    first: Linear
    dropout: Dropout | None

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self.adds = self.activation is None

    def takes_in(self, below: Group) -> bool:
        return below.activation is not None or below.dropout is not None

    @_located
    def forward(self, x: Array, ctx: Context, residual: Array | None = None) -> Array:
        layer = self.first
        bias = None if layer.bias is None else layer.bias.value
        ctx.save(layer, x)
        if len(self.layers) == 1 and residual is None:
            return linear_ops.linear(x, layer.weight.value, bias)
        mask = None if self.dropout is None else self.dropout.draw(x, (*x.shape[:-1], layer.out_features), ctx)
        y, kept = linear_ops.linear_activation(
            x, layer.weight.value, bias, self._activation_name(), ctx.saving, mask, residual
        )
        if self.activation is not None:
            ctx.save(self.activation, kept)
        if self.dropout is not None:
            if mask is not None and kept is y:  # that of a ReLU, which has the mask in it
                mask = replace(mask, in_kept=True)
            ctx.save(self.dropout, mask)
        return y

    @_located
    def backward(self, dy: Array, ctx: Context) -> Array:
        dz = self._parameters(dy, ctx)
        if self.below is None:
            return linear_ops.linear_backward_input(dz, self.first.weight.value)
        return linear_ops.linear_backward_input_activation(dz, self.first.weight.value, *self.below.take_behind(ctx))

    @_located
    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        self._parameters(dy, ctx)

    def _parameters(self, dy: Array, ctx: Context) -> Array:
        """Write the gradients of the parameters; returns the gradient of the product."""
        dz = self._in_front(dy, ctx)
        (x,) = ctx.take(self.first)
        linear_ops.linear_backward_parameters(dz, x, *gradients(self.first.weight, self.first.bias))
        return dz


class ConvGroup(_Product):
    """Conv2d, then an activation or none; y = f(conv(x) + b)."""

    first: Conv2d

    def takes_in(self, below: Group) -> bool:
        return below.activation is not None and below.dropout is None

    @_located
    def forward(self, x: Array, ctx: Context) -> Array:
        layer = self.first
        if self.activation is None:
            return layer.forward(x, ctx)
        bias = None if layer.bias is None else layer.bias.value
        ctx.save(layer, x)
        y, kept = conv_ops.conv2d_activation(
            x, layer.weight.value, bias, self._activation_name(), ctx.saving, *layer.geometry
        )
        ctx.save(self.activation, kept)
        return y

    @_located
    def backward(self, dy: Array, ctx: Context) -> Array:
        layer = self.first
        dz, size = self._parameters(dy, ctx)
        if self.below is None:
            return conv_ops.conv2d_backward_input(dz, layer.weight.value, size, *layer.geometry)
        kept, activation, _ = self.below.take_behind(ctx)
        return conv_ops.conv2d_backward_input_activation(
            dz, layer.weight.value, kept, activation, size, *layer.geometry
        )

    @_located
    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        self._parameters(dy, ctx)

    def _parameters(self, dy: Array, ctx: Context) -> tuple[Array, Pair]:
        """Write the gradients of the parameters; returns the gradient of the convolution, and the size of x."""
        dz = self._in_front(dy, ctx)
        return dz, self.first.write_gradients(dz, *ctx.take(self.first))


class ConvNormGroup(ConvGroup):
    """Conv2d, then BatchNorm2d: in training the convolution sums up the statistics of what it stores.

    In inference the normalisation takes the running statistics, and the two layers run as they are; so they do on an
    empty batch, which has none: the normalisation says so.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self.norm: Any = layers[1]

    @_located
    def forward(self, x: Array, ctx: Context) -> Array:
        layer, norm = self.first, self.norm
        y: Array
        if not ctx.training or 0 in x.shape:
            y = norm.forward(layer.forward(x, ctx), ctx)
            return y
        bias = None if layer.bias is None else layer.bias.value
        ctx.save(layer, x)
        y = norm.forward_of(*conv_ops.conv2d_statistics(x, layer.weight.value, bias, *layer.geometry), ctx)
        return y

    def _in_front(self, dy: Array, ctx: Context) -> Array:
        dz: Array = self.norm.backward(dy, ctx)
        return dz


# The table: layers that follow each other, each of the one type or of one of several, and what runs them. The first
# pattern that fits where the last one ended is taken, so longer ones stand first.
_ACTIVATION = tuple(ACTIVATIONS)
PATTERNS: tuple[tuple[tuple[type[Layer] | tuple[type[Layer], ...], ...], type[Group]], ...] = (
    ((Linear, _ACTIVATION, Dropout), LinearGroup),
    ((Linear, _ACTIVATION), LinearGroup),
    ((Linear, Dropout), LinearGroup),
    ((Linear,), LinearGroup),
    ((Conv2d, BatchNorm2d), ConvNormGroup),
    ((Conv2d, _ACTIVATION), ConvGroup),
    ((Conv2d,), ConvGroup),
    ((_ACTIVATION,), Elementwise),
    ((Dropout,), Elementwise),
)


def _passes(kind: type[Layer]) -> tuple[Any, Any, Any]:
    return kind.forward, kind.backward, kind.backward_parameters


# Those of the classes of the table, as bp has them.
_OWN_PASSES = {kind: _passes(kind) for kind in (Linear, Conv2d, BatchNorm2d, Dropout, *ACTIVATIONS)}


class Plan:
    """The layers of a Sequential in groups: by the table, and each alone."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.alone = tuple(Group((layer,)) for layer in self.layers)
        fused: list[Group] = []
        start = 0
        while start < len(self.layers):
            group = _group_at(self.layers, start)
            if fused and group.takes_in(fused[-1]):
                group.below = fused[-1]
                group.below.taken_in = True
            fused.append(group)
            start += len(group.layers)
        self.fused = tuple(fused)

    def groups(self, ctx: Context) -> tuple[Group, ...]:
        """Those that a pass with this context runs, first to last."""
        return self.fused if ctx.fuse and not self._replaced() else self.alone

    def _replaced(self) -> bool:
        """Whether somebody set a pass of their own on one of the layers, or on a class of the table."""
        for layer in self.layers:
            own = vars(layer)
            if "forward" in own or "backward" in own or "backward_parameters" in own:
                return True
        return any(_passes(kind) != own_passes for kind, own_passes in _OWN_PASSES.items())


def _group_at(layers: Sequence[Layer], start: int) -> Group:
    """The group that begins there."""
    for pattern, kind in PATTERNS:
        found = layers[start : start + len(pattern)]
        if len(found) == len(pattern) and all(map(_fits, found, pattern)):
            return kind(found)
    return Group(layers[start : start + 1])


def _fits(layer: Layer, types: type[Layer] | tuple[type[Layer], ...]) -> bool:
    return type(layer) in types if isinstance(types, tuple) else type(layer) is types
