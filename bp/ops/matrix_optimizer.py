"""Optimizer steps that look at whole matrices, Adafactor and Muon: one operation updates one parameter in place.

values and gradients are views of one parameter in the arena, of shape (rows, columns), and settings is the one row
(1, 4) of its tiles. Learning rate, decay, the regularised gradient g, the step t, low_precision (a view of the copy, of
the same shape), stochastic_rounding and a step that is skipped are as in `bp.ops.optimizer`; the element that random
bits belong to is counted from the beginning of the matrix.
"""

from bp.ops.array import Array
from bp.ops.operation import operation


@operation
def adafactor(
    values: Array,
    gradients: Array,
    row_mean_square: Array | None,
    column_mean_square: Array,
    settings: Array,
    control: Array,
    beta2_decay: float,
    eps: tuple[float, float],
    threshold: float,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """Adam's scaling with v kept as r c^T / mean(r): rows + columns numbers in place of rows * columns.

    row_mean_square r: (rows,); column_mean_square c: (columns,). With w = t^beta2_decay and eps = (eps1, eps2),
    r = (1 - w) r + w (mean of g^2 along the row), c likewise, v = r c^T / max(mean(r), eps1),
    u = g / sqrt(max(v, eps1^2)) and value -= alpha u / max(1, rms(u) / threshold), where the step is relative to the
    weights: alpha = max(eps2, rms(value before decay)) min(lr, 1 / sqrt(t)).
    row_mean_square None: nothing to factor, v = c, for a vector as the matrix (1, size).
    Source: Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (2018), in PyTorch's form.
    """


@operation
def muon(
    values: Array,
    gradients: Array,
    first_moment: Array,
    settings: Array,
    control: Array,
    momentum: float,
    nesterov: bool,
    coefficients: tuple[float, float, float],
    iterations: int,
    eps: float,
    adjust_lr: str,
    low_precision: Array | None,
    stochastic_rounding: bool,
) -> None:
    """m = momentum m + (1 - momentum) g; value -= lr s orth(u) with u = m, or (1 - momentum) g + momentum m (Nesterov).

    values, gradients, first_moment: (rows, columns). orth(u) has the singular vectors of u and singular values near
    1, so that rare directions count as much as frequent ones. It comes from `iterations` of the Newton-Schulz step
    X = a X + (b X X^T + c (X X^T)^2) X from X = u / max(||u||, eps) (transposed where rows > columns), which maps each
    singular value x to a x + b x^3 + c x^5. The usual coefficients (a, b, c) take values above about 0.002 into
    [0.7, 1.2] in 5 iterations rather than to 1 exactly. adjust_lr: "original" takes s = sqrt(max(1, rows / columns)),
    "match_rms_adamw" s = 0.2 sqrt(max(rows, columns)), at which a step is as large as one of AdamW.
    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); Liu et al., Muon is Scalable
    for LLM Training (2025), for the second s.
    """
