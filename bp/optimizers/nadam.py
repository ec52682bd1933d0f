"""NAdam: Adam with Nesterov's momentum."""

from collections.abc import Sequence
from typing import ClassVar

import bp.ops.optimizer as ops
from bp.ops import control as block
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer


class NAdam(Optimizer):
    """Adam that steps along the momentum of the next step, with a momentum that grows from b1 / 2 to b1.

    The formula stands in `bp.ops.optimizer.nadam`. momentum_decay: how fast the momentum grows.
    decoupled_weight_decay: shrinks the weights directly, as in AdamW, instead of an L2 term of g.
    Source: Dozat, Incorporating Nesterov Momentum into Adam (2016).
    """

    slots = ("first_moment", "second_moment")
    counters: ClassVar[dict[str, int]] = {**Optimizer.counters, "momentum_product": block.MOMENTUM_PRODUCT}

    def __init__(
        self,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.betas = self.expect_betas(betas)
        self.expect_eps(eps)
        self.expect(momentum_decay >= 0, "momentum_decay >= 0", momentum_decay)
        self.eps = eps
        self.momentum_decay = momentum_decay
        self.decoupled = decoupled_weight_decay

    def update(self, values: Array, gradients: Array) -> None:
        first, second = self.moments["first_moment"], self.moments["second_moment"]
        rule = (*self.betas, self.eps, self.momentum_decay, *self.low_precision)
        ops.nadam(values, gradients, first, second, self.settings, self.control, *rule)
