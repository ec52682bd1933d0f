"""Adadelta: steps in the unit of the weights, from two running means of squares."""

from collections.abc import Sequence

import bp.ops.optimizer as ops
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer


class Adadelta(Optimizer):
    """d = g sqrt(mean of d^2 + eps) / sqrt(mean of g^2 + eps); w -= lr d; weight_decay is an L2 term of g.

    rho: what a mean keeps per step. Source: Zeiler, ADADELTA: An Adaptive Learning Rate Method (2012).
    """

    slots = ("mean_square", "mean_square_step")

    def __init__(
        self,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.expect_fraction("rho", rho)
        self.expect_eps(eps)
        self.rho = rho
        self.eps = eps

    def update(self, values: Array, gradients: Array) -> None:
        mean_square, mean_square_step = self.moments["mean_square"], self.moments["mean_square_step"]
        rule = (self.rho, self.eps, *self.low_precision)
        ops.adadelta(values, gradients, mean_square, mean_square_step, self.settings, self.control, *rule)
