"""Dropout: random elements are zeroed in training, so that no unit can rely on a single other one."""

import math

import bp.ops.dropout as ops
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.layers.settings import number
from bp.ops.array import Array, Shape


class Dropout(Layer):
    """In training y = x / (1 - rate) where kept, else 0; in inference y = x. Backward: dx = dy by the same mask.

    rate: the probability that an element is dropped, in [0, 1); carried out in steps of 1 / 65536, with a scale that
    fits, so the expectation of y is x exactly (see `bp.ops.dropout`). The mask depends on the context's seed and
    step, on the element's index in the global batch, and on how many random draws came before in the pass.
    """

    def __init__(self, rate: float = 0.5) -> None:
        self.rate = number(self, rate, "a rate in [0, 1)", lambda rate: 0 <= rate < 1)

    def forward(self, x: Array, ctx: Context) -> Array:
        mask = self.draw(x, x.shape, ctx)
        ctx.save(self, mask)
        if mask is None:
            return x
        return ops.dropout(x, mask.control, mask.call_site, mask.first_element, mask.rate)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (mask,) = ctx.take(self)
        if mask is None:
            return dy
        return ops.dropout_backward(dy, mask.control, mask.call_site, mask.first_element, mask.rate)

    def draw(self, beside: Array, shape: Shape, ctx: Context) -> ops.Mask | None:
        """The mask of this use of the layer, on a batch of that shape on the device of `beside`; None: all is kept."""
        if not ctx.training or self.rate == 0:
            return None
        first_element = ctx.sample_offset * math.prod(shape[1:])  # the index of the first element in the global batch
        return ops.Mask(ctx.control_beside(beside), ctx.random_call_site(), first_element, self.rate)
