"""Activation layers: an elementwise function and its derivative."""

import bp.ops.activation as ops
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.ops.array import Array


class ReLU(Layer):
    """y = max(x, 0). Backward: dx = dy where y > 0, else 0."""

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.relu(x)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.relu_backward(dy, y)
