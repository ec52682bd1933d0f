"""Containers: layers made of layers."""

from collections.abc import Iterator

from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.ops.array import Array, Shape


class Sequential(Layer):
    """The layers one after the other; backward is the chain rule: the same layers in reverse.

    Layers are named "0", "1", ...; `model[i]` gives one, `len(model)` their number.
    """

    def __init__(self, *layers: Layer) -> None:
        self.layers = list(layers)

    def children(self) -> Iterator[tuple[str, Layer]]:
        return ((str(index), layer) for index, layer in enumerate(self.layers))

    def declare(self, input_shape: Shape) -> Shape:
        for layer in self.layers:
            input_shape = layer.declare(input_shape)
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        for layer in self.layers:
            x = layer.forward(x, ctx)
        return x

    def backward(self, dy: Array, ctx: Context) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy, ctx)
        return dy

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        first = self._first_with_parameters
        for layer in reversed(self.layers[first + 1 :]):
            dy = layer.backward(dy, ctx)
        if first < len(self.layers):
            self.layers[first].backward_parameters(dy, ctx)
        for layer in reversed(self.layers[:first]):
            ctx.take(layer)

    @property
    def _first_with_parameters(self) -> int:
        """Index of the first layer that is not a bare elementwise one: below it no gradient is of use to anybody."""
        for index, layer in enumerate(self.layers):
            if any(True for _ in layer.named_parameters()) or any(True for _ in layer.children()):
                return index
        return len(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]
