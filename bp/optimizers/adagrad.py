"""Adagrad: steps scaled by the root of all squared gradients so far."""

from collections.abc import Sequence
from typing import Self

import bp.ops.optimizer as ops
from bp.layers.layer import Layer
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer


class Adagrad(Optimizer):
    """s += g^2; w -= lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps); weight_decay is an L2 term of g.

    Rare features keep large steps; since s only grows, every step shrinks in time. initial_accumulator_value: s at
    the start. Source: Duchi, Hazan, Singer, Adaptive Subgradient Methods (2011).
    """

    slots = ("sum_of_squares",)

    def __init__(
        self,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        *,
        initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.expect(lr_decay >= 0, "lr_decay >= 0", lr_decay)
        self.expect(initial_accumulator_value >= 0, "initial_accumulator_value >= 0", initial_accumulator_value)
        self.expect_eps(eps)
        self.lr_decay = lr_decay
        self.eps = eps
        self.initial_accumulator_value = initial_accumulator_value

    def setup(self, model: Layer) -> Self:
        super().setup(model)
        for _, sum_of_squares in self.named_state():
            self.arena.device.fill(sum_of_squares, self.initial_accumulator_value)
        return self

    def update(self, values: Array, gradients: Array) -> None:
        sum_of_squares = self.moments["sum_of_squares"]
        rule = (self.lr_decay, self.eps, *self.low_precision)
        ops.adagrad(values, gradients, sum_of_squares, self.settings, self.control, *rule)
