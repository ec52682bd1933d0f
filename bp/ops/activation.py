"""Activations: elementwise functions y = f(x), and their gradients dx = dy f'(x)."""

from bp.ops.array import Array
from bp.ops.checks import has_shape
from bp.ops.operation import operation


@operation
def relu(x: Array) -> Array:
    """y = max(x, 0), elementwise on any shape; NaN stays NaN. Source: Nair and Hinton (2010)."""


@operation
def relu_backward(dy: Array, y: Array) -> Array:
    """dx = dy where y > 0, else 0: the slope is 1 above zero and 0 below; at zero bp, like PyTorch, takes 0.

    y is the output of `relu`: it carries the sign of x, so x itself need not be kept. dy, y, dx: one shape.
    """
    has_shape("relu_backward", "dy", dy, y.shape)
