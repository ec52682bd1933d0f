"""Reductions: running sums and the largest element."""

import numpy as np
import pytest

import bp.ops.reduce as reduce
from bp.cpu import native
from bp.errors import ShapeError
from bp.ops import control as block


def test_means_of_unequal_batches_add_up_to_the_mean_of_all():
    values = np.random.default_rng(0).standard_normal(10)
    total, control = np.zeros(()), np.zeros(block.SIZE)
    for part in (values[:7], values[7:]):
        control[block.LOSS_DENOMINATOR] = part.size
        reduce.accumulate(total, np.asarray(part.mean(), np.float32), control)
    assert total / 10 == pytest.approx(values.mean(), abs=1e-7)


@pytest.mark.parametrize("kernels", ["native", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(5,), (1,), (4, 1), (3, 7), (0, 3), (2, 3, 17), (2, 2, 2, 40)])
def test_argmax(shape, dtype, kernels, monkeypatch):
    if kernels == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    index = reduce.argmax(x)
    assert isinstance(index, np.ndarray) and index.dtype == np.int64 and index.shape == shape[:-1]
    expected = [max(range(len(row)), key=row.__getitem__) for row in x.reshape(-1, shape[-1]).tolist()]
    assert index.reshape(-1).tolist() == expected


def test_argmax_takes_the_first_of_equals_and_nan_above_all():
    inf, nan = np.inf, np.nan
    x = np.array([[1, 3, 3], [-inf, -inf, -inf], [inf, nan, 0], [nan, inf, nan]])
    assert reduce.argmax(x).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("shape", [(), (3, 0), (0,)])
def test_argmax_of_nothing(shape):
    with pytest.raises(ShapeError, match="argmax expected x with at least one element along its last axis"):
        reduce.argmax(np.zeros(shape))
