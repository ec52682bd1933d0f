"""Reductions: running sums and the largest element."""

import numpy as np
import pytest
from table import assert_close

import bp.ops.reduce as reduce
from bp.checking import tolerance
from bp.cpu import native
from bp.cpu.reduce import sum_rows
from bp.errors import DtypeError, ShapeError
from bp.ops import control as block


@pytest.fixture(params=["native", "numpy"])
def either(request, monkeypatch):
    """float32 runs on the native kernels, then on NumPy."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    elif native.kernels is None:
        pytest.skip("the native extension is not built")


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
def test_sum_mean_and_max(shape, axis, dtype, either):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for operation, expected in ((reduce.sum, np.sum), (reduce.mean, np.mean), (reduce.max, np.max)):
        y = operation(x, axis)
        assert isinstance(y, np.ndarray) and y.dtype == dtype
        np.testing.assert_array_equal(y, expected(x.astype("float64"), axis).astype(dtype))


# Trees of terms and what is left of them, blocks of long rows and of many rows, strips of columns, narrow matrices.
SHAPES = [(1000,), (300, 7), (3, 513), (2049, 3), (70_001,), (3, 40_000), (1031, 260), (9, 2500), (700, 1), (2, 3, 129)]


@pytest.mark.parametrize("axis", [None, -1, 0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_large_arrays_of_any_layout(shape, axis, either):
    wide = np.random.default_rng(0).random(shape).astype("float32")
    for x in (wide, wide[..., ::-1], np.asfortranarray(wide)):
        exact = x.astype("float64")
        assert_close(reduce.sum(x, axis), exact.sum(axis), tolerance("float32"))
        assert_close(reduce.mean(x, axis), exact.mean(axis), tolerance("float32"))
        np.testing.assert_array_equal(reduce.max(x, axis), x.max(axis))
        np.testing.assert_array_equal(reduce.max(-x, axis), -x.min(axis))


@pytest.mark.parametrize("axis", [None, -1, 0])
@pytest.mark.parametrize("place", [0, 1, 40, -2, -1])
@pytest.mark.parametrize("size", [(150, 63), (63, 150), (41, 257), (257, 41)], ids=str)
def test_one_nan_or_infinity_among_many(size, place, axis, either):
    x = np.random.default_rng(0).standard_normal(size).astype("float32")
    for value in (np.nan, np.inf, -np.inf):
        x[place, place] = value
        for operation, expected in ((reduce.sum, np.sum), (reduce.mean, np.mean), (reduce.max, np.max)):
            assert_close(operation(x, axis), expected(x.astype("float64"), axis), tolerance("float32", max(size)))


def test_sums_of_terms_that_overflow_together(either):
    """In float32 the sum of any two is infinite, that of all in the wrong order NaN."""
    x = np.full((256, 256), 3e38, "float32")
    for axis in (None, -1, 0):
        assert (reduce.mean(x, axis) == np.float32(3e38)).all()
    x[1::2, ::2] = x[::2, 1::2] = -3e38
    for axis in (None, -1, 0):
        assert (reduce.sum(x, axis) == 0).all()
    x[:128], x[128:] = 3e38, -3e38
    assert reduce.sum(x, None) == 0 and (reduce.sum(x, 0) == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 10), (129, 33), (2100, 2), (600, 140)])
def test_sum_of_rows_into_a_destination(shape, either):
    wide = np.random.default_rng(0).standard_normal((shape[0], 2 * shape[1])).astype("float32")
    for matrix in (wide[:, : shape[1]].copy(), wide[:, ::2]):
        for accumulate in (False, True):
            out = np.full(shape[1], 0.5, "float32")
            sum_rows(matrix, out, accumulate)
            expected = matrix.sum(axis=0, dtype=np.float64) + 0.5 * accumulate
            assert_close(out, expected, tolerance("float32", shape[0]))


def test_sum_mean_and_max_of_special_values(either):
    x = np.array([[np.nan, 1, 2], [np.inf, 3, -np.inf]])
    np.testing.assert_array_equal(reduce.max(x, 0), [np.nan, 3, 2])
    np.testing.assert_array_equal(reduce.max(x, -1), [np.nan, np.inf])
    np.testing.assert_array_equal(reduce.sum(x, 0), [np.nan, 4, -np.inf])
    assert np.isnan(reduce.mean(x, None))
    # Equal terms in float32, each of which loses the same way.
    assert reduce.sum(np.full((1 << 18, 2), 0.1, np.float32), 0)[0] == np.float32(
        (1 << 18) * np.float64(np.float32(0.1))
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_nothing(dtype, either):
    x = np.zeros((0, 3), dtype)
    assert (reduce.sum(x.T, -1) == np.zeros(3)).all() and reduce.sum(x.T, 0).shape == reduce.max(x.T, 0).shape == (0,)
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
