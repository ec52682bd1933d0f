"""Flatten and Reshape, and the operations concatenate and split."""

import itertools

import numpy as np
import pytest
from table import LAYER_CHECKS, Case

import bp
import bp.ops.shape as ops


def reshaped(*shape):
    return lambda layer, x: x.reshape(x.shape[0], *shape)


def in_torch(*shape):
    return lambda p, torch, x: x.reshape(x.shape[0], *shape)


CASES = [
    Case(bp.Flatten, (4, 3, 2, 5), reshaped(30), in_torch(30)),
    Case(bp.Flatten, (4, 3), reshaped(3), in_torch(3)),
    Case(bp.Flatten, (4,), reshaped(1), in_torch(1), name="rank1"),
    Case(bp.Flatten, (0, 3, 2), reshaped(6), in_torch(6), name="empty"),
    Case(lambda: bp.Reshape(2, 6), (4, 3, 4), reshaped(2, 6), in_torch(2, 6)),
    Case(lambda: bp.Reshape(-1, 2), (4, 3, 4), reshaped(6, 2), in_torch(6, 2), name="inferred"),
    Case(lambda: bp.Reshape(-1), (0, 3, 4), reshaped(12), in_torch(12), name="empty"),
    Case(lambda: bp.Reshape(1, 1), (4,), reshaped(1, 1), in_torch(1, 1), name="rank1"),
    Case(bp.Reshape, (4, 1), reshaped(), in_torch(), name="to-scalars"),
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (bp.Reshape(5), r"Reshape '0': samples of shape \(3, 4\) \(12 elements\) do not fit shape \(5,\)"),
        (bp.Reshape(-1, 5), r"do not fit shape \(-1, 5\)"),
        (bp.Reshape(0, -1), r"do not fit shape \(0, -1\)"),
    ],
)
def test_shape_that_does_not_fit(layer, message):
    model = bp.Sequential(layer)
    with pytest.raises(bp.errors.ShapeError, match=message):
        model.build((3, 4))


@pytest.mark.parametrize("shape", [(-1, -1), (-2,)])
def test_wrong_shape(shape):
    with pytest.raises(bp.errors.ConfigurationError, match="Reshape expected sizes >= 0 and at most one -1"):
        bp.Reshape(*shape)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_concatenate_and_split(axis, dtype):
    generator = np.random.default_rng(0)
    sizes = (3, 0, 1, 4)
    arrays = []
    for size in sizes:
        shape = [2, 3, 5]
        shape[axis] = size
        arrays.append(generator.integers(0, 100, shape).astype(dtype))
    joined = ops.concatenate(arrays[0], arrays[1:], axis)
    np.testing.assert_array_equal(joined, np.concatenate(arrays, axis))
    assert joined.flags.c_contiguous and joined.dtype == dtype
    parts = ops.split(joined, sizes, axis)
    for part, array in zip(parts, arrays, strict=True):
        np.testing.assert_array_equal(part, array)
        assert part.flags.c_contiguous and part.base is None


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_transpose(dtype):
    x = np.random.default_rng(0).integers(0, 100, (2, 3, 1, 5)).astype(dtype)
    for axes in itertools.permutations(range(4)):
        y = ops.transpose(x, axes)
        for index in np.ndindex(x.shape):
            assert y[tuple(index[axis] for axis in axes)] == x[index]
        assert y.flags.c_contiguous and y.base is None and y.dtype == dtype
        np.testing.assert_array_equal(ops.transpose(y, np.argsort(axes)), x)  # its backward, with the inverse order
    assert ops.transpose(np.zeros((0, 3)), (1, 0)).shape == (3, 0)
    assert ops.transpose(np.array(2.0), ()) == 2


@pytest.mark.parametrize("axes", [(0,), (0, 0), (0, 2), (-1, 0), (0, 1, 2)])
def test_transpose_without_every_axis_once(axes):
    with pytest.raises(bp.errors.ShapeError, match=r"transpose expected each axis of shape \(2, 3\) once, got"):
        ops.transpose(np.zeros((2, 3)), axes)


def test_errors():
    a = np.zeros((2, 3), np.float32)
    with pytest.raises(bp.errors.ShapeError, match=r"differ along axis 1 only, got \(2, 3\) and \(3, 3\)"):
        ops.concatenate(a, [np.zeros((3, 3), np.float32)], 1)
    with pytest.raises(bp.errors.ShapeError, match=r"differ along axis 1 only, got \(2, 3\) and \(2,\)"):
        ops.concatenate(a, [np.zeros(2, np.float32)], 1)
    with pytest.raises(bp.errors.DtypeError, match="concatenate expected array 1 of dtype float32 like array 0"):
        ops.concatenate(a, [np.zeros((2, 3))], 1)
    with pytest.raises(bp.errors.ShapeError, match=r"concatenate expected arrays with an axis 2, got shape \(2, 3\)"):
        ops.concatenate(a, [], 2)
    with pytest.raises(bp.errors.ShapeError, match=r"split expected 4 elements along axis 1, got shape \(2, 3\)"):
        ops.split(a, [1, 3], 1)
