"""Reductions: running sums and the largest element."""

import numpy as np
import pytest

import bp.ops.reduce as reduce
from bp.cpu import native
from bp.errors import DtypeError, ShapeError
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [None, -1, 0])
@pytest.mark.parametrize("shape", [(5,), (1, 1), (3, 7), (2, 3, 4)])
def test_sum_mean_and_max(shape, axis, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for operation, expected in ((reduce.sum, np.sum), (reduce.mean, np.mean), (reduce.max, np.max)):
        y = operation(x, axis)
        assert isinstance(y, np.ndarray) and y.dtype == dtype
        np.testing.assert_array_equal(y, expected(x.astype("float64"), axis).astype(dtype))


def test_sum_mean_and_max_of_special_values():
    x = np.array([[np.nan, 1, 2], [np.inf, 3, -np.inf]])
    np.testing.assert_array_equal(reduce.max(x, 0), [np.nan, 3, 2])
    np.testing.assert_array_equal(reduce.max(x, -1), [np.nan, np.inf])
    np.testing.assert_array_equal(reduce.sum(x, 0), [np.nan, 4, -np.inf])
    assert np.isnan(reduce.mean(x, None))
    # Equal terms in float32, each of which loses the same way.
    assert reduce.sum(np.full((1 << 18, 2), 0.1, np.float32), 0)[0] == np.float32(
        (1 << 18) * np.float64(np.float32(0.1))
    )


def test_sums_of_nothing():
    x = np.zeros((0, 3))
    np.testing.assert_array_equal(reduce.sum(x, 0), np.zeros(3))
    assert reduce.sum(x, None) == 0 and reduce.sum(x, -1).shape == reduce.max(x, -1).shape == (0,)
    for operation in (reduce.mean, reduce.max):
        for axis in (None, 0):
            with pytest.raises(ShapeError, match=r"with at least one element along axis .*, got shape \(0, 3\)"):
                operation(x, axis)


@pytest.mark.parametrize("operation", [reduce.sum, reduce.mean, reduce.max])
def test_an_axis_that_is_not_there(operation):
    with pytest.raises(ShapeError, match=r"expected axis None, 0 or -1 of x, got 1 for shape \(2, 3\)"):
        operation(np.zeros((2, 3)), 1)
    with pytest.raises(ShapeError, match=r"got 0 for shape \(\)"):
        operation(np.zeros(()), 0)
    with pytest.raises(DtypeError, match="expected x of a floating dtype, got int64"):
        operation(np.zeros(3, np.int64), 0)
    assert operation(np.array(2.0), None) == 2
