"""Embedding: a trained vector for every index, such as a token of a vocabulary."""

import numpy as np

import bp.ops.embedding as ops
from bp.errors import ConfigurationError
from bp.initializers import Initializer, Normal
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.layers.parameter import Parameter, gradients
from bp.layers.settings import size
from bp.ops.array import Array, Shape


class Embedding(Layer):
    """y = W[x], a row for every index: integers (...,) in 0..num_embeddings - 1 -> (..., embedding_dim).

    weight: (num_embeddings, embedding_dim). padding_idx: an index for which y is zero; its row of the weight starts as
    zero, is not read and receives no gradient.
    Backward: row v of dW is the sum of dy over the positions with index v. Integers have no gradient: dx is zero, of
    the shape of x, so that layers below, such as a Reshape, have something to pass on.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        weight_initializer: Initializer | None = None,
    ) -> None:
        self.num_embeddings = size(self, "num_embeddings", num_embeddings)
        self.embedding_dim = size(self, "embedding_dim", embedding_dim)
        if padding_idx is not None and padding_idx not in range(num_embeddings):
            raise ConfigurationError(f"Embedding expected padding_idx in 0..{num_embeddings - 1}, got {padding_idx!r}")
        self.padding_idx = padding_idx
        initializer = weight_initializer or Normal()
        self.weight = Parameter(initializer if padding_idx is None else _ZeroRow(initializer, padding_idx))

    def declare(self, input_shape: Shape) -> Shape:
        self.weight.declare((self.num_embeddings, self.embedding_dim))
        return (*input_shape, self.embedding_dim)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        return ops.embedding(x, self.weight.value, self.padding_idx)

    def backward(self, dy: Array, ctx: Context) -> Array:
        self.backward_parameters(dy, ctx)
        return ops.embedding_backward_input(dy)

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        (x,) = ctx.take(self)
        (dweight, accumulate) = gradients(self.weight)
        ops.embedding_backward_parameters(dy, x, dweight, self.padding_idx, accumulate)


class _ZeroRow:
    """An initializer whose draw has one row set to zero."""

    def __init__(self, initializer: Initializer, row: int) -> None:
        self.initializer = initializer
        self.row = row

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        drawn = self.initializer(shape, generator)
        drawn[self.row] = 0
        return drawn
