"""Lion: every weight moves by the learning rate, in the direction of an averaged sign."""

from collections.abc import Sequence

import bp.ops.optimizer as ops
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer


class Lion(Optimizer):
    """w -= lr sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g; weight decay is decoupled.

    Half of Adam's state. Usual learning rates are 3 to 10 times smaller than Adam's, with weight decay as much larger.
    betas: (b1, b2). Source: Chen et al., Symbolic Discovery of Optimization Algorithms (2023).
    """

    slots = ("first_moment",)
    decoupled = True

    def __init__(
        self,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.betas = self.expect_betas(betas)

    def update(self, values: Array, gradients: Array) -> None:
        first_moment, rule = self.moments["first_moment"], (*self.betas, *self.low_precision)
        ops.lion(values, gradients, first_moment, self.settings, self.control, *rule)
