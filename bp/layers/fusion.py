"""Fusion: which neighbouring layers of a Sequential run as one operation; PATTERNS, at the end, is the whole list.

A group of layers computes what the layers compute one after the other, with fewer passes over memory: an activation, a
dropout and a residual are applied to the result of a product before it is stored. In backward the gradient in front of
an activation is an elementwise factor on the input gradient of the product above it, dx = dy W, so that product takes
it in: a group leaves the backward of its activation and dropout to the group above wherever that one is a product too.

The layers stay what they are: names, parameters, indexing and checkpoints do not know of groups. Only a layer whose
type is exactly one of the table's is fused, never a subclass, which may compute something else; and where the forward
or backward of one of the layers was replaced, as whoever watches them does, all run alone. So does each layer in a
context with fuse=False. What a group saves lies on the context under its first layer, whose name its launches and
errors carry.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import bp.ops.conv as conv_ops
import bp.ops.linear as linear_ops
from bp.errors import BPError
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


class Behind(NamedTuple):
    """What stands behind the product of a group, as `linear_activation_backward` takes it."""

    kept: Array | None
    activation: str
    mask: Mask | None


NOTHING = Behind(None, "identity", None)


class Group:
    """A layer that runs by itself, and the base of those that run as one with their neighbours.

    activation, dropout: the layers of the group that are such, or None. below: the group below whose activation and
    dropout the input gradient of this one takes in, or None. adds: whether `forward` takes a residual.

    `taken` in the backwards is how a group and the one above it agree: where the list is not empty, the one above has
    taken this group's saved arrays off the context, and dy is the gradient in front of the activation already. Then the
    list holds x, and whoever uses it empties it, so that no array lives longer than it is needed.
    """

    adds = False

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.first: Any = layers[0]
        self.activation = next((layer for layer in layers if type(layer) in ACTIVATIONS), None)
        self.dropout = next((layer for layer in layers if type(layer) is Dropout), None)
        self.below: Group | None = None

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

    def backward(self, dy: Array, ctx: Context, taken: list[Array | None]) -> Array:
        """dL/dx, or where there is a group `below`, the gradient in front of its activation, with its x in `taken`."""
        dx: Array = self.first.backward(dy, ctx)
        return dx

    def backward_parameters(self, dy: Array, ctx: Context, taken: list[Array | None]) -> None:
        """`backward` where nobody asks for dL/dx."""
        self.first.backward_parameters(dy, ctx)

    def take(self, ctx: Context) -> tuple[Array | None, Behind]:
        """For the group above: the x of the product (None where there is none), and what stands behind it."""
        raise NotImplementedError

    def _activation_name(self) -> str:
        return "identity" if self.activation is None else ACTIVATIONS[type(self.activation)](self.activation)


class Elementwise(Group):
    """An activation or a dropout behind something else than a product: it runs by itself; its gradient need not."""

    trains = False

    def backward(self, dy: Array, ctx: Context, taken: list[Array | None]) -> Array:
        if taken:
            taken.pop()
            return dy
        return super().backward(dy, ctx, taken)

    def take(self, ctx: Context) -> tuple[Array | None, Behind]:
        (value,) = ctx.take(self.first)
        if self.dropout is not None:
            return None, Behind(None, "identity", value)
        return None, Behind(value, self._activation_name(), None)


class _Product(Group):
    """What LinearGroup and ConvGroup share: x, and what stands behind the product, are saved under the first layer."""

    trains = True

    def take(self, ctx: Context) -> tuple[Array | None, Behind]:
        x, *behind = ctx.take(self.first)
        return x, Behind(*behind) if behind else NOTHING

    def _in_front(self, dy: Array, ctx: Context, taken: list[Array | None]) -> tuple[Array, Array]:
        """(the gradient in front of the activation, x)."""
        if taken:
            return dy, taken.pop()
        x, behind = self.take(ctx)
        return linear_ops.linear_activation_backward(dy, *behind) if behind is not NOTHING else dy, x


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
        if len(self.layers) == 1:
            ctx.save(layer, x)
            if residual is None:
                return linear_ops.linear(x, layer.weight.value, bias)
            return linear_ops.linear_activation(x, layer.weight.value, bias, "identity", None, residual)[0]
        activation = self._activation_name()
        mask = None if self.dropout is None else self.dropout.draw(x, (*x.shape[:-1], layer.out_features), ctx)
        y, kept = linear_ops.linear_activation(x, layer.weight.value, bias, activation, mask, residual)
        ctx.save(layer, x, kept, activation, mask)
        return y

    @_located
    def backward(self, dy: Array, ctx: Context, taken: list[Array | None]) -> Array:
        dz = self._parameters(dy, ctx, taken)
        if self.below is None:
            return linear_ops.linear_backward_input(dz, self.first.weight.value)
        x, behind = self.below.take(ctx)
        taken.append(x)
        return linear_ops.linear_backward_input_activation(dz, self.first.weight.value, *behind)

    @_located
    def backward_parameters(self, dy: Array, ctx: Context, taken: list[Array | None]) -> None:
        self._parameters(dy, ctx, taken)

    def _parameters(self, dy: Array, ctx: Context, taken: list[Array | None]) -> Array:
        """Write the gradients of the parameters; returns the gradient in front of the activation."""
        dz, x = self._in_front(dy, ctx, taken)
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
        activation = self._activation_name()
        bias = None if layer.bias is None else layer.bias.value
        y, kept = conv_ops.conv2d_activation(x, layer.weight.value, bias, activation, *layer.geometry)
        ctx.save(layer, x, kept, activation, None)
        return y

    @_located
    def backward(self, dy: Array, ctx: Context, taken: list[Array | None]) -> Array:
        layer = self.first
        dz, size = self._parameters(dy, ctx, taken)
        if self.below is None:
            return conv_ops.conv2d_backward_input(dz, layer.weight.value, size, *layer.geometry)
        x, (kept, activation, _) = self.below.take(ctx)
        taken.append(x)
        return conv_ops.conv2d_backward_input_activation(
            dz, layer.weight.value, kept, activation, size, *layer.geometry
        )

    @_located
    def backward_parameters(self, dy: Array, ctx: Context, taken: list[Array | None]) -> None:
        self._parameters(dy, ctx, taken)

    def _parameters(self, dy: Array, ctx: Context, taken: list[Array | None]) -> tuple[Array, Pair]:
        """Write the gradients of the parameters; returns the gradient in front of the activation, and the size of x."""
        dz, x = self._in_front(dy, ctx, taken)
        return dz, self.first.write_gradients(dz, x)


class ConvNormGroup(ConvGroup):
    """Conv2d, then BatchNorm2d: in training the convolution sums up the statistics of what it stores.

    In inference the normalisation takes the running statistics, and the two layers run as they are.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self.norm: Any = layers[1]

    @_located
    def forward(self, x: Array, ctx: Context) -> Array:
        layer, norm = self.first, self.norm
        if not ctx.training:
            return norm.forward(layer.forward(x, ctx), ctx)
        bias = None if layer.bias is None else layer.bias.value
        z, mean, variance = conv_ops.conv2d_statistics(x, layer.weight.value, bias, *layer.geometry)
        try:
            y, rstd = norm.normalise(z, mean, variance, ctx)
        except BPError as error:
            raise error.at(norm.label) from error.__cause__
        ctx.save(layer, x, z, mean, rstd)
        return y

    def _parameters(self, dy: Array, ctx: Context, taken: list[Array | None]) -> tuple[Array, Pair]:
        if ctx.training:
            x, z, mean, rstd = ctx.take(self.first)
            dz = self.norm.input_gradient(dy, z, mean, rstd, True)
        else:
            dz = self.norm.backward(dy, ctx)
            (x,) = ctx.take(self.first)
        return dz, self.first.write_gradients(dz, x)


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
            fused.append(group)
            start += len(group.layers)
        self.fused = tuple(fused)

    def groups(self, ctx: Context) -> tuple[Group, ...]:
        """Those that a pass with this context runs, first to last."""
        if not ctx.fuse:
            return self.alone
        for layer in self.layers:
            replaced = vars(layer)
            if "forward" in replaced or "backward" in replaced or "backward_parameters" in replaced:
                return self.alone
        return self.fused


def _group_at(layers: Sequence[Layer], start: int) -> Group:
    """The group that begins there."""
    for pattern, kind in PATTERNS:
        found = layers[start : start + len(pattern)]
        if len(found) == len(pattern) and all(map(_fits, found, pattern)):
            return kind(found)
    return Group(layers[start : start + 1])


def _fits(layer: Layer, types: type[Layer] | tuple[type[Layer], ...]) -> bool:
    return type(layer) in types if isinstance(types, tuple) else type(layer) is types
