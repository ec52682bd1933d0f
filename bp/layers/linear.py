"""Linear: every output is a weighted sum of every input, plus a bias."""

import bp.ops.linear as ops
from bp.initializers import Initializer, KaimingUniform, Zeros
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.layers.parameter import Parameter, gradients
from bp.layers.settings import size, size_or_none
from bp.ops.array import Array, Shape


class Linear(Layer):
    """y = x W^T + b on the last axis: (..., in_features) -> (..., out_features).

    in_features: None infers it from the input at build. weight: (out_features, in_features); bias: (out_features,).
    Backward: dx = dy W, dW = dy^T x, db = sum of dy over all rows (derived in `bp.ops.linear`).
    """

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        bias: bool = True,
        *,
        weight_initializer: Initializer | None = None,
        bias_initializer: Initializer | None = None,
    ) -> None:
        self.in_features = size_or_none(self, "in_features", in_features)
        self.out_features = size(self, "out_features", out_features)
        self.weight = Parameter(weight_initializer or KaimingUniform())
        self.bias = Parameter(bias_initializer or Zeros(), decay=False) if bias else None

    def declare(self, input_shape: Shape) -> Shape:
        in_features = self.expect("features", self.in_features, input_shape, axis=-1)
        self.weight.declare((self.out_features, in_features))
        if self.bias is not None:
            self.bias.declare((self.out_features,))
        return (*input_shape[:-1], self.out_features)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        return ops.linear(x, self.weight.value, None if self.bias is None else self.bias.value)

    def backward(self, dy: Array, ctx: Context) -> Array:
        self.backward_parameters(dy, ctx)
        return ops.linear_backward_input(dy, self.weight.value)

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        (x,) = ctx.take(self)
        ops.linear_backward_parameters(dy, x, *gradients(self.weight, self.bias))
