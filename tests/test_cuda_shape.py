"""Strided copies and transpositions on the emulator: what the table of layers does not reach."""

import itertools

import numpy as np
import pytest
from emulated import sparse, to_device, to_host
from table import KERNEL_DEVICE, emulating

import bp
import bp.cuda.kernel
import bp.cuda.shape as shape
import bp.ops.shape as ops
from bp.ops.array import known_dtype
from bp.ops.device import find_device

ALL_DTYPES = ["bool", "int8", "uint16", "float16", "bfloat16", "int32", "float32", "int64", "float64"]


def numbers(*sizes, dtype="float32"):
    return np.random.default_rng(len(sizes)).integers(0, 100, sizes).astype(known_dtype(dtype))


def shifted(x, elements):
    """On the device, beginning so many elements beyond a multiple of 16 bytes."""
    whole = to_device(np.concatenate([np.zeros(elements, x.dtype), x.ravel()]))
    return whole[elements:].reshape(x.shape)


@pytest.fixture(params=["one-block", "many-blocks"])
def grid(request, monkeypatch):
    """Large arrays are taken in steps of the whole grid; with one block of threads, small ones are as well."""
    if request.param == "one-block":
        monkeypatch.setattr(bp.cuda.kernel, "_MAX_BLOCKS", 1)
        monkeypatch.setattr(shape, "_MAX_TASKS", 1)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("sizes", [(3, 0, 1, 4), (8, 16), (16, 1), (5,), (0, 0)])
def test_concatenate_and_split(sizes, axis, dtype):
    arrays = []
    for size in sizes:
        dimensions = [2, 3, 8]
        dimensions[axis] = size
        arrays.append(numbers(*dimensions, dtype=dtype))
    for offset in (0, 1, 3):
        first, *others = [shifted(array, offset) for array in arrays]
        joined = ops.concatenate(first, others, axis)
        np.testing.assert_array_equal(to_host(joined), np.concatenate(arrays, axis))
        parts = ops.split(shifted(to_host(joined), offset), sizes, axis)
        for part, array in zip(parts, arrays, strict=True):
            np.testing.assert_array_equal(to_host(part), array)


def test_many_rows(grid):
    a, b = numbers(700, 5), numbers(700, 3)
    joined = ops.concatenate(to_device(a), [to_device(b)], 1)
    np.testing.assert_array_equal(to_host(joined), np.concatenate([a, b], 1))
    for part, array in zip(ops.split(joined, (5, 3), 1), (a, b), strict=True):
        np.testing.assert_array_equal(to_host(part), array)


def test_one_launch_a_part():
    a, b = to_device(numbers(4, 5)), to_device(numbers(4, 0))
    with find_device(KERNEL_DEVICE).recording() as ledger:
        ops.split(ops.concatenate(a, [b, a], 1), (5, 5), 1)
    assert len(ledger.launches) == 4
    assert sum(launch.nbytes for launch in ledger.launches) == 2 * 4 * 20 * 4


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_every_transposition(rank, dtype):
    x = numbers(*(3, 4, 2, 5)[:rank], dtype=dtype)
    on_device = to_device(x)
    for axes in itertools.permutations(range(rank)):
        y = ops.transpose(on_device, axes)
        np.testing.assert_array_equal(to_host(y), x.transpose(axes))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int64"])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 70), (31, 33), (32, 32), (65, 34), (2, 33, 40), (2, 33, 2, 35)])
def test_tiles(sizes, dtype, grid):
    """Whole tiles and parts of them, with and without axes around."""
    x = numbers(*sizes, dtype=dtype)
    rank = len(sizes)
    orders = {tuple(reversed(range(rank))), (*range(rank - 2), rank - 1, rank - 2), (rank - 1, *range(rank - 1))}
    for offset in (0, 1):
        on_device = shifted(x, offset)
        for axes in orders:
            with emulating(detector=True, seed=offset):
                y = ops.transpose(on_device, axes)
            np.testing.assert_array_equal(to_host(y), x.transpose(axes))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("run", [1, 3, 8, 16])
def test_runs_that_stay_together(run, dtype, grid):
    x = numbers(5, 3, 4, run, dtype=dtype)
    for offset in (0, 1, 2, 4):
        on_device = shifted(x, offset)
        for axes in ((1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3)):
            np.testing.assert_array_equal(to_host(ops.transpose(on_device, axes)), x.transpose(axes))


@pytest.mark.parametrize(
    ("sizes", "axes", "kernels"),
    [
        ((2, 3, 4), (0, 1, 2), ["copy_bytes"]),
        ((5, 1, 7), (1, 0, 2), ["copy_bytes"]),  # an axis of size 1 moves: the same memory
        ((), (), ["copy_bytes"]),
        ((2, 5, 5, 8), (0, 3, 1, 2), ["transpose_tiles"]),  # images, channels first
        ((2, 9, 4, 8), (0, 2, 1, 3), ["copy_strided"]),  # heads of attention
        ((0, 3), (1, 0), []),
    ],
)
def test_kernel_for_a_transposition(sizes, axes, kernels):
    x = numbers(*sizes)
    on_device = to_device(x)
    with find_device(KERNEL_DEVICE).recording() as ledger:
        y = ops.transpose(on_device, axes)
    assert [launch.variant.kernel.name for launch in ledger.launches] == kernels
    assert all(launch.nbytes == 2 * x.nbytes for launch in ledger.launches)
    np.testing.assert_array_equal(to_host(y), x.transpose(axes))


def test_axes_that_stay_neighbours_are_joined():
    assert shape._joined((2, 3, 4, 5), (2, 3, 0, 1)) == ((6, 20), (1, 0))
    assert shape._joined((2, 1, 4, 5), (3, 1, 2, 0)) == ((2, 4, 5), (2, 1, 0))
    assert shape._joined((2, 3, 1, 5), (0, 1, 3, 2)) == ((30,), (0,))


def test_six_axes_and_more():
    x = numbers(2, 3, 2, 2, 3, 2)
    for axes in ((5, 4, 3, 2, 1, 0), (4, 3, 2, 1, 0, 5), (1, 0, 3, 2, 5, 4)):
        np.testing.assert_array_equal(to_host(ops.transpose(to_device(x), axes)), x.transpose(axes))
    x = numbers(2, 2, 2, 2, 2, 2, 2, 2)
    axes = (2, 3, 0, 1, 6, 7, 4, 5)
    np.testing.assert_array_equal(to_host(ops.transpose(to_device(x), axes)), x.transpose(axes))
    with pytest.raises(bp.errors.ShapeError, match=r"takes 6 axes, .* 8 are left of shape \(2, 2, 2, 2, 2, 2, 2, 2\)"):
        ops.transpose(to_device(x), range(8)[::-1])


def test_rows_more_than_2_31_bytes_apart():
    x = sparse((2, (1 << 32) + 3), "uint8")
    x[0][5:8] = np.array([1, 2, 3], np.uint8)
    x[1][5:8] = np.array([4, 5, 6], np.uint8)
    y = x.device.empty((2, 3), "uint8")
    step = x.shape[1]
    shape._copy_rows(1, x, y, 2, 3, 5, step, 0, 3)
    np.testing.assert_array_equal(to_host(y), [[1, 2, 3], [4, 5, 6]])
