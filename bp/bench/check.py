"""Is the result right? Outputs of a contestant against those of float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bp.checking import tolerance
from bp.ops.device import PRECISIONS

WHOLE = 1 << 24  # elements up to which float64 on the host computes all of an array,
FLOPS = 1 << 33  # and operations: about a second on two cores
ROWS = 3  # from each end, of arrays that are larger
ELEMENTS = 2048  # the same for arrays of one axis

_TF32_EPS = 2.0**-10  # of the unit in the last place of factors that are rounded to tf32


def sample_length(shape: Sequence[int]) -> int:
    """Rows or elements that are looked at, from each end of an array that is checked in part."""
    return ELEMENTS if len(shape) == 1 else ROWS


def allowed(precision: str, length: int) -> float:
    """The relative error that rounding explains, of sums of `length` terms in float32 or wider."""
    dtype = PRECISIONS[precision]
    if precision == "tf32":
        return tolerance("float32", length) + 8 * _TF32_EPS
    if dtype in ("float16", "bfloat16"):
        return tolerance("float32", length) + tolerance(dtype, 2)
    return tolerance(dtype, length)


def as_outputs(returned: Any) -> list[Any]:
    """The arrays that work returned: one, several, or none."""
    if isinstance(returned, (tuple, list)):
        return [array for array in returned if array is not None]
    return [] if returned is None else [returned]


def error(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray | None], precision: str, length: int) -> float:
    """The largest relative error of all outputs in units of what is allowed: at most 1 where they are right.

    expected: None for an output that was not computed in float64. The error of an output is the Euclidean norm of the
    difference over that of what was expected, and infinite where the shapes differ or a number is not finite that
    should be.
    """
    if len(actual) != len(expected):
        return np.inf
    return max(
        (_apart(a, e) / allowed(precision, length) for a, e in zip(actual, expected, strict=True) if e is not None),
        default=0.0,
    )


def _apart(actual: np.ndarray, expected: np.ndarray) -> float:
    if actual.shape != expected.shape:
        return np.inf
    known = np.isfinite(expected)
    # Infinities and NaN have to be where they are expected, whatever they are there.
    if not np.array_equal(known, np.isfinite(actual)):
        return np.inf
    difference = float(np.linalg.norm(actual[known] - expected[known]))
    size = float(np.linalg.norm(expected[known]))
    return 0.0 if difference == 0.0 else difference / max(size, np.finfo(np.float64).tiny)
