"""Optimizer steps over the flat arena: one operation updates all parameters of the model in place.

Arrays named values, gradients, and the moments are flat, of one size and dtype, a whole number of tiles of
`TILE` elements. tile_groups: int32 of shape (tiles,), the group of each tile. groups: float64 of shape (groups, 4):
learning-rate factor, decoupled weight decay, L2 coefficient, L1 coefficient, by the column numbers below. The
learning rate, the clip factor and the count of applied steps are read from the control block.

Every step first forms g = scale * gradient + l2 * value + l1 * sign(value), where scale is
control[GRADIENT_SCALE], and, with decoupled decay, value -= lr * decay * value (lr already times the factor).
"""

from bp.ops.array import Array
from bp.ops.operation import operation

TILE = 128

LR_FACTOR = 0
DECOUPLED_DECAY = 1
L2 = 2
L1 = 3


@operation
def advance_step(control: Array) -> None:
    """Count one attempted and one applied step, in place."""


@operation
def clip_by_global_norm(gradients: Array, control: Array, max_norm: float) -> None:
    """control[GRADIENT_NORM] = ||gradients||_2 and control[GRADIENT_SCALE] = min(1, max_norm / norm).

    One factor for all parameters keeps the direction of the step. The gradients themselves are not touched:
    the optimizer multiplies them by the factor as it reads them. max_norm = inf measures the norm only. A norm that is
    not finite leaves the factor at 1, so the step shows the fault rather than hides it. Accumulated in float64.
    Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks (2013).
    """


@operation
def sgd(
    values: Array,
    gradients: Array,
    velocity: Array | None,
    tile_groups: Array,
    groups: Array,
    control: Array,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    """v = momentum v + (1 - dampening) g (the first step: v = g); value -= lr v, or lr (g + momentum v) with Nesterov.

    velocity None: plain gradient descent, value -= lr g.
    Source: Sutskever et al., On the importance of initialization and momentum (2013), in PyTorch's form.
    """


@operation
def adam(
    values: Array,
    gradients: Array,
    first_moment: Array,
    second_moment: Array,
    tile_groups: Array,
    groups: Array,
    control: Array,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; value -= lr m^ / (sqrt(v^) + eps).

    m^ = m / (1 - beta1^t) and v^ = v / (1 - beta2^t) undo the bias of starting at zero; t is control[APPLIED_STEP].
    AdamW is this step with decoupled decay, Adam with L2 in g.
    Source: Kingma and Ba, Adam (2015); Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019).
    """
