"""Dropout: random elements are zeroed in training, so that no unit can rely on a single other one."""

import math

import bp.ops.dropout as ops
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.layers.settings import number
from bp.ops.array import Array


class Dropout(Layer):
    """In training y = x / (1 - rate) where kept, else 0; in inference y = x. Backward: dx = dy by the same mask.

    rate: the probability that an element is dropped, in [0, 1); carried out in steps of 1 / 65536, with a scale that
    fits, so the expectation of y is x exactly (see `bp.ops.dropout`). The mask depends on the context's seed and
    step, on the element's index in the global batch, and on how many random draws came before in the pass.
    """

    def __init__(self, rate: float = 0.5) -> None:
        self.rate = number(self, rate, "a rate in [0, 1)", lambda rate: 0 <= rate < 1)

    def forward(self, x: Array, ctx: Context) -> Array:
        if not ctx.training or self.rate == 0:
            ctx.save(self, None)
            return x
        call_site = ctx.random_call_site()
        ctx.save(self, call_site)
        return ops.dropout(x, ctx.control_beside(x), call_site, _first_element(x, ctx), self.rate)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (call_site,) = ctx.take(self)
        if call_site is None:
            return dy
        return ops.dropout_backward(dy, ctx.control_beside(dy), call_site, _first_element(dy, ctx), self.rate)


def _first_element(x: Array, ctx: Context) -> int:
    """The index of x's first element in the global batch."""
    return ctx.sample_offset * math.prod(x.shape[1:])
