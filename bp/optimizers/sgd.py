"""SGD: steps along the gradient, with momentum."""

from collections.abc import Sequence

import bp.ops.optimizer as ops
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer


class SGD(Optimizer):
    """w -= lr v with v = momentum v + (1 - dampening) g, or w -= lr (g + momentum v) with Nesterov.

    weight_decay is an L2 term of g. Without momentum there is no state.
    Source: Sutskever et al., On the importance of initialization and momentum in deep learning (2013).
    """

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.expect_fraction("momentum", momentum)
        self.expect(0 <= dampening <= 1, "dampening in [0, 1]", dampening)
        if nesterov:
            self.expect(momentum > 0 and dampening == 0, "momentum > 0 and dampening 0 with nesterov", momentum)
        self.momentum = momentum
        self.dampening = dampening
        self.nesterov = nesterov
        self.slots = ("velocity",) if momentum else ()

    def update(self, values: Array, gradients: Array) -> None:
        velocity = self.moments.get("velocity")
        rule = (self.momentum, self.dampening, self.nesterov, *self.low_precision)
        ops.sgd(values, gradients, velocity, self.settings, self.control, *rule)
