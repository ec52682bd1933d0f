"""Adafactor: Adam's scaling from row and column means of the squared gradients, in little memory."""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

import bp.ops.matrix_optimizer as ops
from bp.layers.layer import Layer
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer, matrix_shape


class Adafactor(Optimizer):
    """Scales by the root of v = r c^T / mean(r), from the mean squares r of rows and c of columns of the gradient.

    The state of an (n, k) matrix is n + k numbers; parameters of rank 1 keep a full v. The step is relative to the
    size of the weights (`bp.ops.matrix_optimizer.adafactor` has the formula). beta2_decay: the exponent of the
    weight t^beta2_decay of a new square. eps: (eps1, eps2), the least r and the least size of the weights that
    count; eps1 None is the precision of the dtype. d: steps of larger root mean square are scaled down to it. Weight
    decay is decoupled.

    It looks at whole matrices, hence one parameter after the other rather than the arena in one pass. A weight of
    higher rank, such as a convolution's, counts as the matrix (out, the rest); PyTorch factors its last two axes.
    Source: Shazeer and Stern, Adafactor (2018), in PyTorch's form.
    """

    decoupled = True

    def __init__(
        self,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.expect(beta2_decay <= 0, "beta2_decay <= 0", beta2_decay)
        self.expect(len(eps) == 2, "two eps", eps)
        self.expect(eps[0] is None or eps[0] >= 0, "eps[0] >= 0 or None", eps[0])
        self.expect(eps[1] >= 0, "eps[1] >= 0", eps[1])
        self.expect(d >= 1, "d >= 1", d)
        self.beta2_decay = beta2_decay
        self.eps = (eps[0], eps[1])
        self.d = d
        self._means: dict[str, tuple[Array | None, Array]] = {}

    def setup(self, model: Layer) -> Self:
        super().setup(model)
        zeros, dtype = self.arena.device.zeros, self.arena.values.dtype
        self._means = {}
        for parameter in self.arena.parameters:
            rows, columns = matrix_shape(parameter)
            factored = len(parameter.shape or ()) > 1
            self._means[parameter.name] = zeros((rows,), dtype) if factored else None, zeros((columns,), dtype)
        return self

    def named_state(self) -> Iterator[tuple[str, Array]]:
        """row_mean_square/name of matrices and column_mean_square/name of all, which for vectors is of each element."""
        for name, (rows, columns) in self._means.items():
            if rows is not None:
                yield f"row_mean_square/{name}", rows
            yield f"column_mean_square/{name}", columns

    def update(self, values: Array, gradients: Array) -> None:
        eps1 = float(np.finfo(values.dtype).eps) if self.eps[0] is None else self.eps[0]
        eps = (eps1, self.eps[1])
        for parameter in self.arena.parameters:
            if parameter.size:
                shape = matrix_shape(parameter)
                w, g = (self.arena.view(flat, parameter).reshape(shape) for flat in (values, gradients))
                (row_means, column_means), settings = self._means[parameter.name], self.row(parameter)
                rule = (self.beta2_decay, eps, self.d, *self.low_precision_of(parameter, shape))
                ops.adafactor(w, g, row_means, column_means, settings, self.control, *rule)
