"""Shape layers: the same numbers seen in another shape."""

import math

from bp.errors import ConfigurationError, ShapeError
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.ops.array import Array, Shape


class Reshape(Layer):
    """Every sample in another shape of as many elements: (N, ...) -> (N, *shape). Backward: the shape before.

    shape: of one sample, without the batch; one size may be -1 and takes what is left. The order of the elements stays;
    the output is a view of the input.
    """

    def __init__(self, *shape: int) -> None:
        if any(not isinstance(size, int) or size < -1 for size in shape) or shape.count(-1) > 1:
            raise ConfigurationError(f"Reshape expected sizes >= 0 and at most one -1, got {shape}")
        self.shape = shape

    def declare(self, input_shape: Shape) -> Shape:
        return self._resolve(input_shape)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x.shape)
        return x.reshape(*x.shape[:1], *self._resolve(x.shape[1:]))

    def backward(self, dy: Array, ctx: Context) -> Array:
        (shape,) = ctx.take(self)
        return dy.reshape(shape)

    def _resolve(self, sample: Shape) -> Shape:
        elements = math.prod(sample)
        known = math.prod(size for size in self.shape if size != -1)
        free = elements // known if known else 0
        shape = tuple(free if size == -1 else size for size in self.shape)
        if math.prod(shape) != elements:
            raise ShapeError(f"samples of shape {sample} ({elements} elements) do not fit shape {self.shape}")
        return shape


class Flatten(Layer):
    """All axes but the batch become one: (N, ...) -> (N, F). Backward: the shape before. The output is a view."""

    def declare(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x.shape)
        return x.reshape(*x.shape[:1], math.prod(x.shape[1:]))

    def backward(self, dy: Array, ctx: Context) -> Array:
        (shape,) = ctx.take(self)
        return dy.reshape(shape)
