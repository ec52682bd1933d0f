"""Linear: the table of its cases, and its errors."""

import numpy as np
import pytest
from table import LAYER_CHECKS, Case

import bp


def reference(layer, x):
    y = np.einsum("...i,oi->...o", x, layer.weight.value)
    return y if layer.bias is None else y + layer.bias.value


def in_torch(p, torch, x):
    return torch.nn.functional.linear(x, p["weight"], p["bias"])


CASES = [
    Case(lambda: bp.Linear(5, 3), (4, 5), reference, in_torch, length=5),
    Case(lambda: bp.Linear(None, 3), (4, 5), reference, in_torch, length=5, name="inferred"),
    Case(lambda: bp.Linear(5, 3, bias=False), (4, 5), reference, in_torch, length=5, name="no-bias"),
    Case(lambda: bp.Linear(1, 1), (1, 1), reference, in_torch),
    Case(lambda: bp.Linear(7, 2), (0, 7), reference, in_torch, length=7, name="empty"),
    Case(lambda: bp.Linear(3, 4), (2, 5, 3), reference, in_torch, length=15, name="rank3"),
    Case(lambda: bp.Linear(3, 4), (2, 1, 3, 3), reference, in_torch, length=9, name="rank4"),
    Case(lambda: bp.Linear(129, 65), (33, 129), reference, in_torch, length=129),
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 6), "float32", r"Linear '0': linear expected x with 5 elements along its last axis, got shape \(4, 6\)"),
        ((), "float32", r"Linear '0': .*got shape \(\)"),
        ((4, 5), "float64", r"Linear '0': linear expected x of dtype float32 like weight, got float64"),
    ],
)
def test_wrong_input_names_the_layer(shape, dtype, message):
    model = bp.Sequential(bp.Linear(5, 3))
    model.build((5,))
    with pytest.raises(bp.errors.BPError, match=message):
        model(np.zeros(shape, dtype))
