"""Adam and AdamW: steps scaled by the running mean and variance of each gradient."""

from collections.abc import Sequence

import bp.ops.optimizer as ops
from bp.ops.array import Array
from bp.optimizers.optimizer import Group, Optimizer


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr m^ / (sqrt(v^) + eps); weight decay is an L2 term of g.

    betas: (b1, b2). amsgrad: the largest v so far stands in for v, which never lets a step grow again.
    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization (2015); Reddi, Kale, Kumar (2018) for AMSGrad.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        *,
        weight_decay: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
        self.betas = self.expect_betas(betas)
        self.expect_eps(eps)
        self.eps = eps
        self.slots = ("first_moment", "second_moment", *(("largest_second_moment",) if amsgrad else ()))

    def update(self, values: Array, gradients: Array) -> None:
        first, second = self.moments["first_moment"], self.moments["second_moment"]
        largest = self.moments.get("largest_second_moment")
        rule = (*self.betas, self.eps, *self.low_precision)
        ops.adam(values, gradients, first, second, largest, self.settings, self.control, *rule)


class AdamW(Adam):
    """Adam whose weight decay shrinks the weights directly, w -= lr * decay * w, apart from the gradient.

    In Adam an L2 term is divided by sqrt(v) like the rest of the gradient, so weights with large gradients are
    decayed less; decoupled, all are decayed at one rate. Source: Loshchilov and Hutter (2019).
    """

    decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        *,
        weight_decay: float = 0.01,
        l1: float = 0.0,
        l2: float = 0.0,
        groups: Sequence[Group] = (),
    ) -> None:
        super().__init__(lr, betas, eps, amsgrad, weight_decay=weight_decay, l1=l1, l2=l2, groups=groups)
