"""Activation layers: an elementwise function and its derivative (both in `bp.ops.activation`), and softmax."""

import math

import bp.ops.activation as ops
from bp.errors import ConfigurationError
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.layers.settings import number
from bp.ops.array import Array, Shape


class ReLU(Layer):
    """y = max(x, 0). Backward: dx = dy where y > 0, else 0."""

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.relu(x)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.relu_backward(dy, y)


class LeakyReLU(Layer):
    """y = x where x > 0, else negative_slope x. Backward: dx = dy, or negative_slope dy.

    negative_slope: in [0, 1].
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = number(self, negative_slope, "negative_slope in [0, 1]", lambda slope: 0 <= slope <= 1)

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.leaky_relu(x, self.negative_slope)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.leaky_relu_backward(dy, y, self.negative_slope)


class ELU(Layer):
    """y = x where x > 0, else alpha (e^x - 1). Backward: dx = dy, or dy (y + alpha).

    alpha: the size of the negative plateau, not negative.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = number(self, alpha, "a finite alpha >= 0", lambda alpha: 0 <= alpha < math.inf)

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.elu(x, self.alpha)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.elu_backward(dy, y, self.alpha)


class GELU(Layer):
    """y = x Phi(x), with the normal distribution function Phi. Backward: dx = dy (Phi(x) + x Phi'(x)).

    approximate: "none" for the exact function, "tanh" for the form that GPT-2 uses.
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ConfigurationError(f"GELU expected approximate 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        return ops.gelu(x, self.approximate)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (x,) = ctx.take(self)
        return ops.gelu_backward(dy, x, self.approximate)


class SiLU(Layer):
    """y = x sigma(x), also known as swish. Backward: dx = dy sigma (1 + x (1 - sigma))."""

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        return ops.silu(x)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (x,) = ctx.take(self)
        return ops.silu_backward(dy, x)


class Sigmoid(Layer):
    """y = 1 / (1 + e^-x). Backward: dx = dy y (1 - y)."""

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.sigmoid(x)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.sigmoid_backward(dy, y)


class Tanh(Layer):
    """y = tanh(x). Backward: dx = dy (1 - y^2)."""

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.tanh(x)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.tanh_backward(dy, y)


class Softplus(Layer):
    """y = log(1 + e^(beta x)) / beta, and y = x where beta x > threshold. Backward: dx = dy sigma(beta x), or dy."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta = number(self, beta, "a finite beta > 0", lambda beta: 0 < beta < math.inf)
        self.threshold = number(self, threshold, "a finite threshold", math.isfinite)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        return ops.softplus(x, self.beta, self.threshold)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (x,) = ctx.take(self)
        return ops.softplus_backward(dy, x, self.beta, self.threshold)


class Mish(Layer):
    """y = x tanh(log(1 + e^x)). Backward: the product rule, in powers of e^-|x|."""

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        return ops.mish(x)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (x,) = ctx.take(self)
        return ops.mish_backward(dy, x)


class Hardswish(Layer):
    """y = x min(max(x + 3, 0), 6) / 6. Backward: dx = 0 below -3, dy above 3, dy (x / 3 + 1 / 2) between."""

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        return ops.hardswish(x)

    def backward(self, dy: Array, ctx: Context) -> Array:
        (x,) = ctx.take(self)
        return ops.hardswish_backward(dy, x)


class Softmax(Layer):
    """y_c = e^(x_c) / sum_k e^(x_k) along the last axis. Backward: dx = y (dy - sum(dy y)).

    For training on classes leave it out: `CrossEntropyLoss` takes logits, and is exact where a softmax has rounded
    to 0 or 1.
    """

    def declare(self, input_shape: Shape) -> Shape:
        self.expect("classes", None, input_shape, axis=-1)
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.softmax(x)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.softmax_backward(dy, y)


class LogSoftmax(Layer):
    """y_c = x_c - log sum_k e^(x_k) along the last axis. Backward: dx = dy - e^y sum(dy)."""

    def declare(self, input_shape: Shape) -> Shape:
        self.expect("classes", None, input_shape, axis=-1)
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        y = ops.log_softmax(x)
        ctx.save(self, y)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        (y,) = ctx.take(self)
        return ops.log_softmax_backward(dy, y)
