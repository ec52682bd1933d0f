"""Linear: the table of its cases, and its errors."""

import numpy as np
import pytest
from table import LAYER_CHECKS, Case

import bp
import bp.ops.conv as conv_ops
import bp.ops.linear as ops
from bp.checking import tolerance
from bp.cpu import native


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


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", [256, 257, 65536, 65536 + 77])
def test_bias_gradient_of_many_equal_rows(rows, accumulate):
    dy = np.full((rows, 3), 0.1, np.float32)
    dbias = np.full(3, 7 if accumulate else np.nan, np.float32)
    ops.linear_backward_parameters(dy, dy, None, dbias, accumulate)
    expected = dy[0].astype(np.float64) * rows + (7 if accumulate else 0)
    # The error is that of a block of 256 rows, however many there are.
    np.testing.assert_allclose(dbias, expected, rtol=tolerance("float32", 256))


def test_bias_gradient_of_a_convolution_over_many_equal_pixels(monkeypatch):
    monkeypatch.setattr(native, "kernels", None)
    dy = np.full((16, 64, 64, 3), 0.1, np.float32)
    dbias = np.empty(3, np.float32)
    conv_ops.conv2d_backward_parameters(dy, dy, None, dbias, False, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    np.testing.assert_allclose(dbias, dy[0, 0, 0].astype(np.float64) * 65536, rtol=tolerance("float32", 256))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [3, 300])
def test_extreme_numbers_give_infinity_and_nan_without_a_warning(rows, dtype):
    largest = np.finfo(dtype).max
    x = np.array([[largest, largest], [np.inf, -np.inf], [np.nan, 0]], dtype)
    x = np.tile(x, (rows // 3, 1))
    weight, bias = np.array([[largest, largest], [1, 1]], dtype), np.array([largest, largest], dtype)
    y = ops.linear(x, weight, bias)
    np.testing.assert_array_equal(y[:3], [[np.inf, np.inf], [np.nan, np.nan], [np.nan, np.nan]])
    assert np.isnan(ops.linear_backward_input(y, weight)[1:3]).all()
    dweight, dbias = np.zeros((2, 2), dtype), np.zeros(2, dtype)
    ops.linear_backward_parameters(y, x, dweight, dbias, True)
    assert np.isnan(dweight).all() and np.isnan(dbias).all()
    ops.linear_backward_parameters(np.full((rows, 2), largest, dtype), x, None, dbias, False)
    assert np.isposinf(dbias).all()


def arrays(*shapes, dtype="float32"):
    return [np.ones(shape, dtype) for shape in shapes]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("wrong", ["x", "dweight", "dbias"])
def test_gradients_are_of_one_dtype(wrong, accumulate):
    named = dict(zip(["dy", "x", "dweight", "dbias"], arrays((4, 2), (4, 3), (2, 3), (2,)), strict=True))
    named[wrong] = named[wrong].astype(np.float64)
    with pytest.raises(bp.errors.DtypeError, match=f"expected {wrong} of dtype float32( like dy)?, got float64"):
        ops.linear_backward_parameters(*named.values(), accumulate)
    assert (named["dweight"] == 1).all() and (named["dbias"] == 1).all()


@pytest.mark.parametrize("wrong", ["dweight", "dbias"])
def test_destinations_are_contiguous(wrong):
    dy, x, dweight, dbias = arrays((4, 2), (4, 3), (2, 3), (2,))
    if wrong == "dweight":
        dweight = np.asfortranarray(dweight)
    else:
        dbias = np.ones(4, np.float32)[::2]
    with pytest.raises(bp.errors.BPError, match=f"linear_backward_parameters expected a C-contiguous {wrong}"):
        ops.linear_backward_parameters(dy, x, dweight, dbias, False)


def test_integers_are_refused():
    dy, x, weight, bias = arrays((4, 2), (4, 3), (2, 3), (2,), dtype="int64")
    for call in (
        lambda: ops.linear(x, weight, bias),
        lambda: ops.linear_backward_input(dy, weight),
        lambda: ops.linear_backward_parameters(dy, x, weight, bias, False),
    ):
        with pytest.raises(bp.errors.DtypeError, match="of a floating dtype, got int64"):
            call()


# What a constructor is given, and what it says; the settings of every family go through the same checks.
WRONG_SETTINGS = [
    (lambda: bp.Linear(0, 3), "Linear expected in_features as an integer >= 1, got 0"),
    (lambda: bp.Linear(3, 2.0), r"Linear expected out_features as an integer >= 1, got 2\.0"),
    (lambda: bp.Linear(3, -1), "Linear expected out_features as an integer >= 1, got -1"),
    (lambda: bp.Linear(3, True), "Linear expected out_features as an integer >= 1, got True"),
    (lambda: bp.Embedding(0, 3), "Embedding expected num_embeddings as an integer >= 1, got 0"),
    (lambda: bp.Embedding(3, "4"), "Embedding expected embedding_dim as an integer >= 1, got '4'"),
    (lambda: bp.LayerNorm(eps=0), "LayerNorm expected a finite eps > 0, got 0"),
    (lambda: bp.LayerNorm((3, 0)), "LayerNorm expected normalized_shape as an integer >= 1, got 0"),
    (lambda: bp.RMSNorm(eps=float("nan")), "RMSNorm expected a finite eps > 0, got nan"),
    (lambda: bp.BatchNorm1d(eps=float("inf")), "BatchNorm1d expected a finite eps > 0, got inf"),
    (lambda: bp.BatchNorm2d(momentum=None), r"BatchNorm2d expected momentum in \[0, 1\], got None"),
    (lambda: bp.BatchNorm2d(momentum=1.5), r"BatchNorm2d expected momentum in \[0, 1\], got 1\.5"),
    (lambda: bp.BatchNorm1d(2.5), r"BatchNorm1d expected num_features as an integer >= 1, got 2\.5"),
    (lambda: bp.GroupNorm(2.0), r"GroupNorm expected num_groups as an integer >= 1, got 2\.0"),
    (lambda: bp.GroupNorm(0), "GroupNorm expected num_groups as an integer >= 1, got 0"),
    (lambda: bp.GroupNorm(2, eps=-1e-5), "GroupNorm expected a finite eps > 0, got -1e-05"),
    (lambda: bp.LeakyReLU("0.1"), r"LeakyReLU expected negative_slope in \[0, 1\], got '0\.1'"),
    (lambda: bp.ELU(None), "ELU expected a finite alpha >= 0, got None"),
    (lambda: bp.Softplus(beta="1"), "Softplus expected a finite beta > 0, got '1'"),
    (lambda: bp.Softplus(threshold=float("nan")), "Softplus expected a finite threshold, got nan"),
    (lambda: bp.Dropout("0.5"), r"Dropout expected a rate in \[0, 1\), got '0\.5'"),
    (lambda: bp.Reshape(2.5), r"Reshape expected sizes >= 0 and at most one -1, got \(2\.5,\)"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_SETTINGS)
def test_wrong_settings_name_the_class_and_the_argument(make, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        make()


def test_numbers_of_numpy_are_settings():
    layer = bp.Linear(np.int64(3), np.int32(2))
    assert layer.build((3,)) == (2,) and type(layer.out_features) is int
    assert bp.Dropout(np.float32(0.5)).rate == 0.5
