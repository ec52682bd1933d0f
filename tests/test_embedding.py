"""Embedding: the table of its cases, repeated and padded indices, and indices outside the table."""

import numpy as np
import pytest
from table import LAYER_CHECKS, Case, assert_close

import bp
import bp.ops.embedding as ops
from bp.checking import tolerance
from bp.cpu import native


def reference(layer, x):
    one_hot = np.eye(layer.num_embeddings)[x] * (x != layer.padding_idx)[..., None]
    return one_hot @ layer.weight.value


def in_torch(p, torch, x):
    # PyTorch reads the padding row, which is zero there until somebody changes it, as the table of cases does.
    padding = -1 if p.layer.padding_idx is None else p.layer.padding_idx
    return torch.nn.functional.embedding(x, p["weight"]) * (x != padding)[..., None]


CASES = [
    Case(lambda: bp.Embedding(11, 4), (3, 5), reference, in_torch, integers=11, length=15),
    Case(lambda: bp.Embedding(3, 65), (40, 7), reference, in_torch, integers=3, length=7, name="repeated"),
    Case(lambda: bp.Embedding(11, 4, padding_idx=2), (6, 5), reference, in_torch, integers=11, length=5, name="padded"),
    Case(lambda: bp.Embedding(11, 4, padding_idx=0), (9,), reference, in_torch, integers=1, name="all-padding"),
    Case(lambda: bp.Embedding(1, 1), (1,), reference, in_torch, integers=1),
    Case(lambda: bp.Embedding(5, 3), (0, 4), reference, in_torch, integers=5, name="empty"),
    Case(lambda: bp.Embedding(5, 3), (2, 3, 2), reference, in_torch, integers=5, length=6, name="rank3"),
    Case(
        lambda: bp.Sequential(bp.Reshape(6), bp.Embedding(5, 3), bp.Linear(3, 2)),
        (4, 2, 3),
        integers=5,
        length=6,
        name="below-a-reshape",
    ),
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


@pytest.mark.parametrize("use_native", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_gradient_is_the_sum_by_row(padding_idx, dtype, use_native, monkeypatch):
    if not use_native:
        monkeypatch.setattr(native, "kernels", None)
    generator = np.random.default_rng(0)
    indices = generator.integers(0, 50, (40, 60))
    indices[:, ::3] = 7  # a row with many terms
    dy = generator.standard_normal((40, 60, 70)).astype(dtype)
    expected = np.zeros((50, 70))
    np.add.at(expected, indices, dy.astype(np.float64))
    if padding_idx is not None:
        expected[padding_idx] = 0
    dweight = np.full((50, 70), np.nan, dtype)
    ops.embedding_backward_parameters(dy, indices, dweight, padding_idx, False)
    assert_close(dweight, expected, tolerance(dtype, 900))
    once = dweight.copy()
    ops.embedding_backward_parameters(dy, indices, dweight, padding_idx, True)
    assert_close(dweight, 2 * expected, tolerance(dtype, 1800))
    ops.embedding_backward_parameters(dy, indices, dweight, padding_idx, False)
    np.testing.assert_array_equal(dweight, once)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_any_integer_dtype(dtype):
    layer = bp.Embedding(5, 3)
    layer.build((4,))
    x = np.array([[0, 4, 2, 2]])
    ctx = bp.Context(training=True)
    np.testing.assert_array_equal(layer.forward(x.astype(dtype), ctx), layer.weight.value[x])
    dx = layer.backward(np.ones((1, 4, 3), np.float32), ctx)
    np.testing.assert_array_equal(dx, np.zeros((1, 4), np.float32))
    np.testing.assert_array_equal(layer.weight.grad[:, 0], [1, 0, 2, 0, 1])


def test_non_contiguous_indices():
    layer = bp.Embedding(9, 3)
    layer.build((4,))
    x = np.arange(8).reshape(4, 2).T
    ctx = bp.Context(training=True)
    np.testing.assert_array_equal(layer.forward(x, ctx), layer.weight.value[x])
    layer.backward(np.ones((2, 4, 3), np.float32), ctx)
    np.testing.assert_array_equal(layer.weight.grad[:, 0], [1] * 8 + [0])


def test_padding_row_starts_as_zero():
    layer = bp.Embedding(5, 3, padding_idx=1)
    layer.build(())
    assert (layer.weight.value[1] == 0).all() and (layer.weight.value[[0, 2, 3, 4]] != 0).all()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[1, 5]], r"Embedding '1': embedding expected indices in 0\.\.4, got 5 at position \(0, 1\)"),
        ([[1, 1], [-1, 2]], r"Embedding '1': embedding expected indices in 0\.\.4, got -1 at position \(1, 0\)"),
    ],
)
def test_index_outside_the_table(indices, message):
    model = bp.Sequential(bp.Flatten(), bp.Embedding(5, 3))
    model.build((2,))
    with pytest.raises(bp.errors.DataError, match=message):
        model(np.array(indices))


def test_wrong_dtype_and_shape():
    layer = bp.Embedding(5, 3)
    layer.build((4,))
    with pytest.raises(bp.errors.DtypeError, match="Embedding: embedding expected integer indices, got float32"):
        layer(np.zeros((2, 4), np.float32))
    ctx = bp.Context(training=True)
    layer.forward(np.zeros((2, 4), np.int64), ctx)
    with pytest.raises(bp.errors.ShapeError, match=r"expected dy of shape \(2, 4, 3\), got \(2, 3, 3\)"):
        layer.backward(np.zeros((2, 3, 3), np.float32), ctx)
    with pytest.raises(bp.errors.ConfigurationError, match=r"Embedding expected padding_idx in 0\.\.4, got 5"):
        bp.Embedding(5, 3, padding_idx=5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_gradients_sum_without_a_warning(dtype, monkeypatch):
    monkeypatch.setattr(native, "kernels", None)
    largest = np.finfo(dtype).max
    dy = np.array([[largest], [largest], [np.inf], [-np.inf]], dtype)
    dweight = np.zeros((2, 1), dtype)
    ops.embedding_backward_parameters(dy, np.array([0, 0, 1, 1]), dweight, None, False)
    np.testing.assert_array_equal(dweight, [[np.inf], [np.nan]])
