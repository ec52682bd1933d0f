"""Reductions of the CUDA device, on the emulator: one and two levels, rows and columns of every size and alignment."""

import numpy as np
import pytest
from emulated import DTYPES, Exact, Offset, compare, to_device, to_host
from table import KERNEL_DEVICE, assert_close, emulating

import bp.cuda.reduce as cuda
import bp.ops.reduce as reduce
from bp.checking import tolerance
from bp.ops import control as block
from bp.ops.device import find_device

inf, nan = np.inf, np.nan


def normal(shape):
    return np.random.default_rng(0).standard_normal(shape)


def watched(operation, *arguments, **settings):
    """As `compare`, under the detector and in two orders of threads that give the same bits."""
    with emulating(detector=True, seed=0):
        first = to_host(compare(operation, *arguments, **settings))
    with emulating(detector=False, seed=5):
        np.testing.assert_array_equal(to_host(compare(operation, *arguments, **settings)), first)


# Rows of part of a warp, of a warp, and of a block; parts of columns, one vector, several tiles; one split and more.
SHAPES = [(1,), (5,), (1, 1), (7, 1), (1, 7), (3, 10), (37, 16), (2, 3, 65), (2, 1024), (2, 1025), (3, 4099), (300, 3)]
COLUMN_SHAPES = [*SHAPES, (1100, 2), (70, 400), (530, 300)]  # the last in two levels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@pytest.mark.parametrize("axis", [None, -1, 0])
def test_sum_mean_and_max(name, axis, dtype):
    operation = getattr(reduce, name)
    for shape in COLUMN_SHAPES if axis == 0 else SHAPES:
        length = int(np.prod(shape)) if axis is None else shape[axis]
        output = "float32" if name != "max" else dtype
        for x in (normal(shape), Offset(normal(shape))):
            compare(operation, x, axis, dtype=dtype, length=length, output_dtypes=[output])


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((70000,), None), ((3, 2050), -1), ((5, 33), -1), ((1100, 3), 0), ((600, 140), 0)]
)
def test_several_levels_do_not_depend_on_the_order_of_threads(name, shape, axis):
    length = int(np.prod(shape)) if axis is None else shape[axis]
    watched(getattr(reduce, name), normal(shape), axis, length=length)


def test_two_levels_were_taken():
    device = find_device(KERNEL_DEVICE)
    for x, axis, launches in ((np.zeros(32769), None, 2), (np.zeros(32768), None, 1), (np.zeros((600, 140)), 0, 2)):
        x = to_device(x, "float32")
        for operation in (reduce.sum, reduce.max):
            with device.recording() as ledger:
                operation(x, axis)
            assert len(ledger.launches) == launches


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 3)])
def test_nothing(shape):
    x = to_device(np.zeros(shape), "float32")
    for axis in (None, -1, 0):
        total = to_host(reduce.sum(x, axis))
        assert total.shape == np.zeros(shape).sum(axis).shape and not total.any()
        if axis is not None and shape[axis]:
            assert reduce.max(x, axis).shape == reduce.mean(x, axis).shape == total.shape


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@pytest.mark.parametrize("special", [nan, inf, -inf])
def test_nan_and_infinity_show(name, special):
    x = normal((1100, 9))
    x[1099, 4] = special
    for axis in (None, -1, 0):
        compare(getattr(reduce, name), x, axis, length=9900)
    if name == "max":  # -inf alone
        compare(reduce.max, np.full((3, 5), special), -1)
        compare(reduce.max, np.full((3, 5), special), 0)


def test_a_long_sum_keeps_its_digits():
    # In float32, each of a million additions of 0.1 would lose the same way.
    for shape, axis in (((1 << 20,), None), ((2, 1 << 18), -1), ((1 << 18, 2), 0)):
        x = np.full(shape, 0.1, np.float32)
        total = to_host(reduce.sum(to_device(x), axis)).astype(np.float64)
        np.testing.assert_allclose(total, x.astype(np.float64).sum(axis), rtol=np.finfo(np.float32).eps)


def test_a_sum_beyond_the_type_of_its_terms():
    np.testing.assert_array_equal(to_host(reduce.sum(to_device(np.full(9, 6e4), "float16"), None)), np.float32(540000))
    np.testing.assert_array_equal(to_host(reduce.mean(to_device(np.full(9, 3e38), "float32"), None)), np.float32(3e38))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 10), (129, 33), (2100, 2), (600, 140)])
def test_sum_of_rows_into_a_destination(shape, dtype):
    x = normal(shape).astype(np.float32)
    for accumulate in (False, True):
        matrix, out = to_device(x, dtype), to_device(np.full(shape[1], 0.5), "float32")
        cuda.sum_rows(matrix, out, accumulate)
        expected = to_host(matrix).astype(np.float64).sum(axis=0) + 0.5 * accumulate
        assert_close(to_host(out), expected, tolerance("float32", shape[0]))


# argmax -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax(dtype):
    for shape in [*SHAPES, (0, 3), (2, 2, 2, 40), (1, 30011)]:
        for x in (normal(shape), Offset(normal(shape))):
            compare(reduce.argmax, x, dtype=dtype)


def test_argmax_does_not_depend_on_the_order_of_threads():
    x = np.round(normal((3, 3000)))  # many ties
    watched(reduce.argmax, x)
    watched(reduce.argmax, x.reshape(-1, 40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [3, 33, 1030])
def test_argmax_takes_the_first_of_equals_and_nan_above_all(columns, dtype):
    x = np.full((6, columns), -1.0)
    x[0, 1:3] = 3
    x[1] = -inf
    x[2, 0], x[2, 1] = inf, nan
    x[3, 0] = x[3, 2] = nan
    x[4, -1] = 0
    x[5] = nan
    assert to_host(reduce.argmax(to_device(x, dtype))).tolist() == [1, 0, 1, 0, columns - 1, 0]


# accumulate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate(dtype):
    control = np.zeros(block.SIZE)
    control[block.LOSS_DENOMINATOR] = 7
    compare(reduce.accumulate, Exact(np.array(2.0**40)), np.array(0.3), Exact(control), dtype=dtype)
    # float64: what a float32 would swallow stays.
    total = to_device(np.array(2.0**40))
    reduce.accumulate(total, to_device(np.array(2.0**-3), dtype), to_device(control))
    assert to_host(total) == 2.0**40 + 7 / 8
