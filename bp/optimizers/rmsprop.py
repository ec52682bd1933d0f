"""RMSprop: steps scaled by the running root mean square of each gradient."""

from collections.abc import Sequence

import bp.ops.optimizer as ops
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer


class RMSprop(Optimizer):
    """v = alpha v + (1 - alpha) g^2; w -= lr g / (sqrt(v) + eps); weight_decay is an L2 term of g.

    centered: divides by the standard deviation instead (v minus the square of the running mean). momentum: of the
    scaled gradients. Source: Tieleman and Hinton, Lecture 6.5 (2012); Graves, Generating Sequences (2013).
    """

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.expect_fraction("alpha", alpha)
        self.expect_fraction("momentum", momentum)
        self.expect_eps(eps)
        self.alpha = alpha
        self.eps = eps
        self.momentum = momentum
        self.centered = centered
        self.slots = ("mean_square", *(("mean",) if centered else ()), *(("velocity",) if momentum else ()))

    def update(self, values: Array, gradients: Array) -> None:
        mean_square = self.moments["mean_square"]
        mean, velocity = self.moments.get("mean"), self.moments.get("velocity")
        rule = (self.alpha, self.eps, self.momentum, *self.low_precision)
        ops.rmsprop(values, gradients, mean_square, mean, velocity, self.settings, self.control, *rule)
