"""Optimizer steps over the flat arena: one operation updates all parameters of the model in place.

Arrays named values and gradients, and the running means of a rule, are flat, of one floating dtype and one size, a
whole number of tiles of `TILE` elements, and begin at a multiple of 16 bytes. settings: (tiles, 4) of the same dtype,
the settings of each tile by the column numbers below: learning-rate factor, decoupled weight decay, L2 coefficient, L1
coefficient. The learning rate lr, the clip factor and the count t of applied steps are read from the control block; lr
below is already times the factor.

Every rule first shrinks the weights, value -= lr * decay * value, and forms from the values before that
g = scale * gradient + l2 * value + l1 * sign(value), where scale is control[GRADIENT_SCALE]. Where value, gradient and
state are zero they stay zero, so the padding of the arena does. Where control[SKIP_STEP] is 1 a rule changes nothing.

low_precision: a copy of the values in a 16-bit dtype, written in the same pass; None where there is none, as on the
CPU. stochastic_rounding: of that copy. A value between two neighbours of the 16-bit dtype then becomes either of them,
with probabilities that make the expectation the value itself, to 1/65536 of the gap; to the nearest, a change of less
than half a gap would not show in the copy at all. The random bits depend on the index of the element, the step and the
seed alone: those of Philox4x32-10 at key = seed and counter = (element // 4 low, high, t, ROUNDING_SITE), the upper
half of word element % 4. A value goes away from zero where these 16 bits, as a number, plus 65536 times its distance
from the neighbour towards zero, in gaps, reach 65536. What is not finite, or beyond the largest finite number of the
dtype, is rounded to the nearest.
Source: Gupta et al., Deep Learning with Limited Numerical Precision (2015).

The order of a step is: clip_by_value, clip_by_global_norm, adjust_loss_scale (each where wanted), advance_step, a rule.

Every rule here is elementwise; those that look at whole matrices stand in `bp.ops.matrix_optimizer`.
"""

from bp.ops.array import Array
from bp.ops.operation import operation

TILE = 128

# Stands where dropout has the number of its call site, so that the two never draw the same bits.
ROUNDING_SITE = 0xFFFFFFFF

# The loss scale stays between these.
LEAST_LOSS_SCALE = 1.0
LARGEST_LOSS_SCALE = 2.0**24

LR_FACTOR = 0
DECOUPLED_DECAY = 1
L2 = 2
L1 = 3


@operation
def advance_step(control: Array) -> None:
    """Count one attempted step, and one applied step unless control[SKIP_STEP] is 1, in place."""


@operation
def clip_by_value(gradients: Array, control: Array, limit: float) -> None:
    """Each gradient to [-s limit, s limit] with s = control[LOSS_SCALE], in place; NaN stays NaN.

    Under a loss scale (s > 1) infinities stay too: they are the overflow that `adjust_loss_scale` looks for.
    Unlike clipping by norm this turns the direction of the step towards a diagonal.
    """


@operation
def clip_by_global_norm(gradients: Array, control: Array, max_norm: float) -> None:
    """control[GRADIENT_NORM] = n = ||gradients||_2 / s and control[GRADIENT_SCALE] = min(1, max_norm / n) / s.

    s is control[LOSS_SCALE], which is in the gradients; the norm is without it. One factor for all parameters keeps the
    direction of the step. The gradients themselves are not touched: the optimizer multiplies them by the factor as it
    reads them. max_norm = inf measures the norm only. A norm that is not finite leaves the factor at 1 / s, so the step
    shows the fault rather than hides it. Accumulated in float64, where squares of float32 numbers do not overflow, over
    blocks of fixed size, so the result is the same for any number of threads.
    Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks (2013).
    """


@operation
def adjust_loss_scale(control: Array, growth_factor: float, backoff_factor: float, growth_interval: int) -> None:
    """Dynamic loss scaling, from control[GRADIENT_NORM] of this step, in place.

    Not finite: a gradient overflowed. SKIP_STEP = 1, GOOD_STEPS = 0 and LOSS_SCALE *= backoff_factor. Finite:
    SKIP_STEP = 0 and GOOD_STEPS += 1, which at growth_interval becomes 0 again with LOSS_SCALE *= growth_factor. The
    scale stays within [LEAST_LOSS_SCALE, LARGEST_LOSS_SCALE]. The new one is for the next step: GRADIENT_SCALE undoes
    the one that is in the gradients of this step.
    Source: Micikevicius et al., Mixed Precision Training (2018).
    """


@operation
def moving_average(averages: Array, values: Array, updates: Array, decay: float, warmup: bool) -> None:
    """averages = d averages + (1 - d) values, in place, and updates += 1.

    updates: float64 of shape (1,), the number t of updates before this one. d = decay, or with `warmup`
    min(decay, (1 + t) / (10 + t)), so that an average with a long memory forgets the random start at first.
    Written as averages += (1 - d)(values - averages): an average of equal values is that value exactly.
    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992), with exponential weights.
    """


@operation
def sgd(
    values: Array,
    gradients: Array,
    velocity: Array | None,
    settings: Array,
    control: Array,
    momentum: float,
    dampening: float,
    nesterov: bool,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """v = momentum v + (1 - dampening) g (the first step: v = g); value -= lr v, or lr (g + momentum v) with Nesterov.

    velocity None: plain gradient descent, value -= lr g.
    Source: Sutskever et al., On the importance of initialization and momentum (2013), in PyTorch's form.
    """


@operation
def adagrad(
    values: Array,
    gradients: Array,
    sum_of_squares: Array,
    settings: Array,
    control: Array,
    lr_decay: float,
    eps: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """s += g^2; value -= lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps).

    Source: Duchi, Hazan, Singer, Adaptive Subgradient Methods (2011).
    """


@operation
def adadelta(
    values: Array,
    gradients: Array,
    mean_square: Array,
    mean_square_step: Array,
    settings: Array,
    control: Array,
    rho: float,
    eps: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """v = rho v + (1 - rho) g^2; d = g sqrt(u + eps) / sqrt(v + eps); u = rho u + (1 - rho) d^2; value -= lr d.

    v is `mean_square` and u is `mean_square_step`: their ratio gives the step the unit of the weights.
    Source: Zeiler, ADADELTA: An Adaptive Learning Rate Method (2012).
    """


@operation
def rmsprop(
    values: Array,
    gradients: Array,
    mean_square: Array,
    mean: Array | None,
    velocity: Array | None,
    settings: Array,
    control: Array,
    alpha: float,
    eps: float,
    momentum: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """v = alpha v + (1 - alpha) g^2; d = g / (sqrt(v) + eps); value -= lr d.

    With `mean` (centred) m = alpha m + (1 - alpha) g, and v - m^2, the variance, stands in for v under the root; where
    rounding makes it negative it counts as zero. With `velocity` b = momentum b + d and value -= lr b.
    Source: Tieleman and Hinton, Lecture 6.5 (2012); centred: Graves, Generating Sequences (2013).
    """


@operation
def adam(
    values: Array,
    gradients: Array,
    first_moment: Array,
    second_moment: Array,
    largest_second_moment: Array | None,
    settings: Array,
    control: Array,
    beta1: float,
    beta2: float,
    eps: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; value -= lr m^ / (sqrt(v^) + eps).

    m^ = m / (1 - beta1^t) and v^ = v / (1 - beta2^t) undo the bias of starting at zero. With `largest_second_moment`
    (AMSGrad) the largest v so far stands in for v. AdamW is this step with decoupled decay, Adam with L2 in g.
    Source: Kingma and Ba, Adam (2015); Reddi, Kale, Kumar, On the Convergence of Adam and Beyond (2018); Loshchilov
    and Hutter, Decoupled Weight Decay Regularization (2019).
    """


@operation
def nadam(
    values: Array,
    gradients: Array,
    first_moment: Array,
    second_moment: Array,
    settings: Array,
    control: Array,
    beta1: float,
    beta2: float,
    eps: float,
    momentum_decay: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """Adam with Nesterov's look-ahead: m^ = mu_{t+1} m / (1 - P_{t+1}) + (1 - mu_t) g / (1 - P_t).

    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2), and P_t = mu_1 mu_2 ... mu_t is kept in control[MOMENTUM_PRODUCT].
    m, v and the step are as in `adam`. Source: Dozat, Incorporating Nesterov Momentum into Adam (2016).
    """


@operation
def lion(
    values: Array,
    gradients: Array,
    first_moment: Array,
    settings: Array,
    control: Array,
    beta1: float,
    beta2: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """value -= lr sign(beta1 m + (1 - beta1) g); then m = beta2 m + (1 - beta2) g.

    Every weight moves by lr whatever its gradient, hence learning rates 3 to 10 times smaller than Adam's.
    Source: Chen et al., Symbolic Discovery of Optimization Algorithms (2023), algorithm 2.
    """
