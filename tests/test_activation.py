"""Activations: the table of their cases, extreme inputs, and native kernels against the reference."""

import hashlib
import math
from functools import partial

import numpy as np
import pytest
from any_threads import expect_same_on_any_threads
from table import LAYER_CHECKS, Case, assert_close

import bp
import bp.ops.activation as ops
from bp.checking import tolerance
from bp.cpu import native


def elementwise(function):
    """A reference from a function of one Python float."""
    return lambda layer, x: np.vectorize(function, otypes=[float])(x)


def functional(name, **settings):
    return lambda p, torch, x: getattr(torch.nn.functional, name)(x, **settings)


def softmax_reference(layer, x):
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


# name: (layer, formula of one float, the same in PyTorch)
ACTIVATIONS = {
    "relu": (bp.ReLU, lambda x: max(x, 0.0), functional("relu")),
    "leaky_relu": (bp.LeakyReLU, lambda x: x if x > 0 else 0.01 * x, functional("leaky_relu")),
    "leaky_relu-0": (partial(bp.LeakyReLU, 0.0), lambda x: max(x, 0.0), functional("leaky_relu", negative_slope=0.0)),
    "elu": (partial(bp.ELU, 1.5), lambda x: x if x > 0 else 1.5 * math.expm1(x), functional("elu", alpha=1.5)),
    "gelu": (bp.GELU, lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))), functional("gelu")),
    "gelu-tanh": (
        partial(bp.GELU, "tanh"),
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        functional("gelu", approximate="tanh"),
    ),
    "silu": (bp.SiLU, lambda x: x / (1 + math.exp(-x)), functional("silu")),
    "sigmoid": (bp.Sigmoid, lambda x: 1 / (1 + math.exp(-x)), functional("sigmoid")),
    "tanh": (bp.Tanh, math.tanh, functional("tanh")),
    "softplus": (bp.Softplus, lambda x: math.log1p(math.exp(x)), functional("softplus")),
    "softplus-steep": (
        partial(bp.Softplus, 3.0, 1.0),
        lambda x: x if 3 * x > 1 else math.log1p(math.exp(3 * x)) / 3,
        functional("softplus", beta=3.0, threshold=1.0),
    ),
    "mish": (bp.Mish, lambda x: x * math.tanh(math.log1p(math.exp(x))), functional("mish")),
    "hardswish": (bp.Hardswish, lambda x: x * min(max(x + 3, 0), 6) / 6, functional("hardswish")),
}

SHAPES = [(4, 7), (1, 1), (0, 3), (2, 3, 5, 2), (3,)]

CASES = [
    Case(layer, shape, elementwise(formula), in_torch, name=name)
    for name, (layer, formula, in_torch) in ACTIVATIONS.items()
    for shape in SHAPES
]
CASES += [
    Case(layer, shape, reference, functional(name, dim=-1), length=shape[-1], name=name)
    for layer, name, reference in [
        (bp.Softmax, "softmax", softmax_reference),
        (bp.LogSoftmax, "log_softmax", lambda layer, x: np.log(softmax_reference(layer, x))),
    ]
    for shape in [(4, 7), (1, 1), (0, 3), (2, 3, 5), (3, 130)]
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


# Where every activation goes for large x, and its slope there, at -infinity and at +infinity.
LIMITS = {
    "relu": ((0, 0), (np.inf, 1)),
    "leaky_relu": ((-np.inf, 0.01), (np.inf, 1)),
    "leaky_relu-0": ((0, 0), (np.inf, 1)),
    "elu": ((-1.5, 0), (np.inf, 1)),
    "gelu": ((0, 0), (np.inf, 1)),
    "gelu-tanh": ((0, 0), (np.inf, 1)),
    "silu": ((0, 0), (np.inf, 1)),
    "sigmoid": ((0, 0), (1, 0)),
    "tanh": ((-1, 0), (1, 0)),
    "softplus": ((0, 0), (np.inf, 1)),
    "softplus-steep": ((0, 0), (np.inf, 1)),
    "mish": ((0, 0), (np.inf, 1)),
    "hardswish": ((0, 0), (np.inf, 1)),
}


def run(layer, x):
    """y and the slope (dx for dy = 1)."""
    ctx = bp.Context(training=True)
    y = layer.forward(x, ctx)
    return y, layer.backward(np.ones_like(y), ctx)


@pytest.mark.parametrize("use_native", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_extreme_inputs_reach_the_limits(name, dtype, use_native, monkeypatch):
    if not use_native:
        monkeypatch.setattr(native, "kernels", None)
    largest = float(np.finfo(dtype).max)
    x = np.array([-np.inf, -largest, -1e4, 1e4, largest, np.inf, np.nan], dtype)
    y, slope = run(ACTIVATIONS[name][0](), x)
    (low, low_slope), (high, high_slope) = LIMITS[name]
    expected_low = x[:3] * dtype_of(x, 0.01) if low == -np.inf else np.full(3, low)
    np.testing.assert_allclose(y[:3], expected_low, rtol=tolerance(dtype))
    np.testing.assert_allclose(y[3:6], x[3:6] if high == np.inf else np.full(3, high), rtol=tolerance(dtype))
    np.testing.assert_allclose(slope[:3], low_slope, rtol=tolerance(dtype), atol=tolerance(dtype))
    np.testing.assert_allclose(slope[3:6], high_slope, rtol=tolerance(dtype), atol=tolerance(dtype))
    assert np.isnan(y[6])


def dtype_of(x, value):
    return x.dtype.type(value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_extreme_rows(dtype):
    rows = np.array([[1e4, -1e4, 0], [-np.inf, 0, 0], [1e4, 1e4, -np.inf]], dtype)
    expected = np.array([[1, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(ops.softmax(rows), expected)
    with np.errstate(divide="ignore"):
        finite = np.log(expected)
    finite[0] = [0, -2e4, -1e4]
    np.testing.assert_allclose(ops.log_softmax(rows), finite, rtol=tolerance(dtype))
    undefined = np.array([[-np.inf] * 3, [np.inf, 0, 0], [np.nan, 0, 0]], dtype)
    assert np.isnan(ops.softmax(undefined)).all() and np.isnan(ops.log_softmax(undefined)).all()
    y, slope = run(bp.LogSoftmax(), rows[:1])
    assert np.isfinite(y).all() and np.isfinite(slope).all()


SOFTMAXES = {"softmax": (ops.softmax, ops.softmax_backward), "log_softmax": (ops.log_softmax, ops.log_softmax_backward)}


@pytest.fixture
def without_kernels(monkeypatch):
    """Runs a function on NumPy alone."""
    if native.kernels is None:
        pytest.skip("the native extension is not built")

    def run_without(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(native, "kernels", None)
            return function(*arguments)

    return run_without


# Short rows are computed side by side, 16 at a time.
@pytest.mark.parametrize("rows", [0, 1, 15, 33])
@pytest.mark.parametrize("columns", [1, 10, 31, 32, 33, 64, 1000, 9001])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_native_softmax_equals_float64(name, columns, rows, without_kernels):
    forward, backward = SOFTMAXES[name]
    generator = np.random.default_rng(0)
    x, dy = (generator.standard_normal((rows, columns)).astype(np.float32) for _ in range(2))
    x *= 3
    y = forward(x)
    exact = without_kernels(forward, x.astype(np.float64))
    assert_close(y, exact, tolerance("float32", columns))
    np.testing.assert_allclose(y, exact, rtol=tolerance("float32", columns), atol=tolerance("float32"))
    exact_dx = without_kernels(backward, dy.astype(np.float64), y.astype(np.float64))
    assert_close(backward(dy, y), exact_dx, tolerance("float32", columns))
    for row in range(rows):  # whatever stands beside it
        np.testing.assert_array_equal(forward(x[row]), y[row])


@pytest.mark.parametrize("columns", [3, 40])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_native_softmax_of_extreme_rows_is_that_of_numpy(name, columns, without_kernels):
    forward, backward = SOFTMAXES[name]
    values = [0, 1e4, -1e4, np.inf, -np.inf, np.nan, float(np.finfo(np.float32).max), 1e-40]
    rows = [np.full(columns, value) for value in values]
    for value in values:
        for place in (0, 1, columns - 1):
            rows.append(np.arange(columns) / columns)
            rows[-1][place] = value
            rows.append(np.full(columns, -np.inf))
            rows[-1][place] = value
    x = np.array(rows, np.float32)
    dy = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    expected = without_kernels(forward, x)
    np.testing.assert_allclose(forward(x), expected, rtol=tolerance("float32"), atol=1e-37)
    expected_dx = without_kernels(backward, dy, expected)
    np.testing.assert_allclose(
        backward(dy, expected), expected_dx, rtol=tolerance("float32"), atol=tolerance("float32")
    )
    x[x == values[-2]] = 1  # a sum with it overflows in one order of its terms and not in another
    dx, expected_dx = backward(x, dy), without_kernels(backward, x, dy)
    for row in range(len(x)):
        assert_close(dx[row], expected_dx[row], tolerance("float32", columns))


@pytest.mark.parametrize("columns", [7, 40])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_of_arrays_that_are_not_contiguous(name, columns):
    forward, backward = SOFTMAXES[name]
    x, dy = np.random.default_rng(0).standard_normal((2, columns, 6)).astype(np.float32)
    y, dx = forward(x.T), backward(dy.T, x.T)
    assert y.flags.c_contiguous and dx.flags.c_contiguous
    assert_close(y, forward(np.ascontiguousarray(x.T)), tolerance("float32", columns))
    assert_close(dx, backward(np.ascontiguousarray(dy.T), np.ascontiguousarray(x.T)), tolerance("float32", columns))


def digest():
    """A hash of all bits that the float32 operations give for inputs large enough to be split among threads."""
    result = hashlib.sha256()
    for columns in (10, 200):
        x, dy = np.random.default_rng(0).standard_normal((2, (1 << 18) // columns, columns)).astype(np.float32)
        for forward, backward in SOFTMAXES.values():
            result.update(forward(x).tobytes())
            result.update(backward(dy, x).tobytes())
        for activation in ops.BIAS_ACTIVATIONS:
            result.update(ops.bias_activation(x, dy[0], activation)[0].tobytes())
    return result.hexdigest()


def test_result_does_not_depend_on_the_number_of_threads():
    expect_same_on_any_threads("import test_activation; print(test_activation.digest())")


# By how much an activation enlarges the rounding of what it computes first, where that is not about 1: the relative
# error of e^z is the absolute error of z, which is x^2 / 2 or, in the tails that float32 holds, less than 2 x^2.
CONDITION = {
    "gelu": lambda x: 1 + x * x,
    "gelu-tanh": lambda x: 1 + x * x,
    "softplus-steep": lambda x: 1 + np.abs(3 * x),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_native_equals_reference_over_the_whole_range(name, monkeypatch):
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.standard_normal(5000) * scale for scale in (1e-30, 1e-5, 0.3, 1, 5, 50)])
    x32 = x.astype(np.float32)
    dy = generator.standard_normal(x.size).astype(np.float32)
    layer = ACTIVATIONS[name][0]()
    results = {}
    for kernels, dtype in ((native.kernels, "float32"), (None, "float32"), (None, "float64")):
        monkeypatch.setattr(native, "kernels", kernels)
        ctx = bp.Context(training=True)
        y = layer.forward(x32.astype(dtype), ctx)
        results[kernels is not None, dtype] = y, layer.backward(dy.astype(dtype), ctx)
    exact, exact_dx = results[False, "float64"]
    condition = CONDITION.get(name, np.ones_like)(x32.astype(np.float64))
    for y, dx in (results[True, "float32"], results[False, "float32"]):
        # A forward is exact to a few roundings of its result, however small that is, down to subnormal numbers.
        allowed = tolerance("float32") * condition * np.abs(exact) + float(np.finfo(np.float32).tiny)
        np.testing.assert_array_less(np.abs(y - exact), allowed)
        # A slope may be a difference of numbers of size 1.
        np.testing.assert_allclose(dx, exact_dx, rtol=tolerance("float32"), atol=tolerance("float32"))


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu-tanh", "silu", "sigmoid", "tanh"])
def test_native_result_does_not_depend_on_alignment_or_size(name):
    x = np.random.default_rng(0).standard_normal(3 * 16384 + 5).astype(np.float32)
    layer = ACTIVATIONS[name][0]()
    whole = layer(x)
    for start in (1, 2, 3, 16385):
        np.testing.assert_array_equal(layer(x[start:]), whole[start:])


def test_kernels_get_aligned_arrays_only(monkeypatch):
    class Kernels:
        def relu(self, x, y):
            raise AssertionError("a kernel was given an array that is not aligned")

    monkeypatch.setattr(native, "kernels", Kernels())
    with pytest.raises(AssertionError):
        ops.relu(np.ones(3, np.float32))
    shifted = np.frombuffer(bytes(1) + np.float32([-1, 0, 2]).tobytes(), np.float32, offset=1)
    assert not shifted.flags.aligned
    np.testing.assert_array_equal(ops.relu(shifted), [0, 0, 2])


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_no_classes(name):
    with pytest.raises(bp.errors.ShapeError, match=rf"{name} expected x with at least one class .* got shape \(2, 0\)"):
        getattr(ops, name)(np.ones((2, 0), np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_non_contiguous_input(dtype):
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(dtype)
    for layer, _, _ in ACTIVATIONS.values():
        y, dx = run(layer(), x[::2, ::-1].T)
        expected_y, expected_dx = run(layer(), np.ascontiguousarray(x[::2, ::-1].T))
        assert y.flags.c_contiguous and dx.flags.c_contiguous
        assert_close(y, expected_y, tolerance(dtype))
        assert_close(dx, expected_dx, tolerance(dtype))


def test_kinks_take_the_slope_below():
    zero = np.zeros(1, np.float32)
    assert run(bp.ReLU(), zero)[1] == 0
    assert run(bp.LeakyReLU(), zero)[1] == np.float32(0.01)
    assert run(bp.ELU(2.0), zero)[1] == 2


def test_add():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(ops.add(a, b), a + b)
    assert ops.add(a[:0], b[:0]).shape == (0, 5)
    with pytest.raises(bp.errors.ShapeError, match=r"add expected b of shape \(3, 5\), got \(2, 5\)"):
        ops.add(a, b[:2])
    with pytest.raises(bp.errors.DtypeError, match="add expected b of dtype float32 like a, got float64"):
        ops.add(a, b.astype(np.float64))


# name: (f, f') of one Python float
BIAS_ACTIVATIONS = {
    "identity": (lambda z: z, lambda z: 1.0),
    "relu": (lambda z: max(z, 0.0), lambda z: float(z > 0)),
    "gelu_tanh": (ACTIVATIONS["gelu-tanh"][1], None),
    "silu": (ACTIVATIONS["silu"][1], None),
}


def slope_of(function, z):
    return (function(z + 1e-6) - function(z - 1e-6)) / 2e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (1, 1), (0, 3), (700, 3), (6,)])
@pytest.mark.parametrize("activation", ops.BIAS_ACTIVATIONS)
def test_bias_activation(activation, shape, dtype):
    generator = np.random.default_rng(0)
    x, dy = (generator.standard_normal(shape).astype(dtype) for _ in range(2))
    bias, before = (generator.standard_normal(shape[-1]).astype(dtype) for _ in range(2))
    function, derivative = BIAS_ACTIVATIONS[activation]
    z = x.astype(np.float64) + bias
    y, kept = ops.bias_activation(x, bias, activation)
    assert y.dtype == dtype
    assert_close(y, np.vectorize(function, otypes=[float])(z), tolerance(dtype))
    slope = np.vectorize(derivative or (lambda z: slope_of(function, z)), otypes=[float])(z)
    # A central difference over 2e-6 of a function of size 1 is good to 1e-9.
    relative = max(tolerance(dtype, max(math.prod(shape[:-1]), 1)), 1e-9)
    for accumulate in (False, True):
        dbias = before.copy()
        dx = ops.bias_activation_backward(dy, kept, bias, dbias, activation, accumulate)
        assert_close(dx, dy * slope, relative)
        expected = (dy * slope).reshape(-1, shape[-1]).sum(axis=0) if dy.size else np.zeros(shape[-1])
        assert_close(dbias, expected + before if accumulate else expected, relative)
    assert_close(ops.bias_activation_backward(dy, kept, bias, None, activation, False), dy * slope, relative)


# More rows than one thread takes at once, of one column and of more than a piece.
@pytest.mark.parametrize("shape", [(150_000, 1), (5, 33_000), (4_100, 33), (3, 0)])
@pytest.mark.parametrize("activation", ops.BIAS_ACTIVATIONS)
def test_native_bias_activation_equals_float64(activation, shape, without_kernels):
    generator = np.random.default_rng(0)
    x, bias = (generator.standard_normal(size).astype(np.float32) for size in (shape, shape[-1]))
    x.reshape(-1)[:5] = [np.nan, np.inf, -np.inf, 1e38, -1e38][: x.size]
    y, kept = ops.bias_activation(x, bias, activation)
    exact, _ = without_kernels(ops.bias_activation, x.astype(np.float64), bias.astype(np.float64), activation)
    np.testing.assert_allclose(y, exact, rtol=tolerance("float32"), atol=tolerance("float32"))
    assert kept is {"identity": None, "relu": y}.get(activation, x)
    apart = np.repeat(x, 2, axis=1)[:, ::2]
    np.testing.assert_allclose(ops.bias_activation(apart, bias, activation)[0], y, rtol=tolerance("float32"), atol=1e-6)


def test_bias_activation_refuses_what_does_not_fit():
    x, bias = np.ones((2, 3), np.float32), np.ones(3, np.float32)
    expect, wrong = pytest.raises, bp.errors.ConfigurationError
    with expect(wrong, match="bias_activation expected an activation of identity, relu, .* 'elu'"):
        ops.bias_activation(x, bias, "elu")
    with expect(bp.errors.ShapeError, match="bias_activation expected x with 2 elements along its last axis"):
        ops.bias_activation(x, bias[:2], "relu")
    with expect(bp.errors.ShapeError, match=r"bias_activation expected bias of shape \(3,\), got \(1, 3\)"):
        ops.bias_activation(x, bias[None], "relu")
    with expect(bp.errors.DtypeError, match="bias_activation expected bias of dtype float32 like x, got float64"):
        ops.bias_activation(x, bias.astype(np.float64), "relu")
    with expect(wrong, match="bias_activation_backward expected the kept array of 'silu', got None"):
        ops.bias_activation_backward(x, None, bias, None, "silu", False)
    with expect(wrong, match="bias_activation_backward expected no kept array for 'identity'"):
        ops.bias_activation_backward(x, x, bias, None, "identity", False)
    with expect(bp.errors.ShapeError, match=r"expected dbias of shape \(3,\), got \(2,\)"):
        ops.bias_activation_backward(x, x, bias, bias[:2], "relu", False)
    with expect(bp.errors.DtypeError, match="expected dbias of dtype float32, got float64"):
        ops.bias_activation_backward(x, x, bias, np.ones(3), "relu", False)


def test_named_arguments():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_array_equal(ops.gelu(x, approximate="tanh"), ops.gelu(x, "tanh"))
    np.testing.assert_array_equal(
        ops.softplus_backward(x, threshold=1.0, beta=2.0, x=x), ops.softplus_backward(x, x, 2.0, 1.0)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.LeakyReLU(-0.1), r"LeakyReLU expected negative_slope in \[0, 1\], got -0.1"),
        (lambda: bp.ELU(-1.0), "ELU expected a finite alpha >= 0, got -1.0"),
        (lambda: bp.GELU("fast"), "GELU expected approximate 'none' or 'tanh', got 'fast'"),
        (lambda: bp.Softplus(0.0), "Softplus expected a finite beta > 0, got 0.0"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        make()


def test_wrong_input_names_the_layer():
    model = bp.Sequential(bp.ReLU(), bp.Softmax())
    with pytest.raises(bp.errors.ShapeError, match=r"Softmax '1': expected input samples with an axis -1"):
        model.build(())
    model.build((3,))
    with pytest.raises(bp.errors.DtypeError, match=r"ReLU '0': relu expected x of a floating dtype, got int64"):
        model(np.zeros((2, 3), np.int64))
    ctx = bp.Context(training=True)
    model.forward(np.zeros((2, 3), np.float32), ctx)
    with pytest.raises(bp.errors.ShapeError, match=r"Softmax '1': softmax_backward expected dy of shape \(2, 3\)"):
        model.backward(np.zeros((3, 2), np.float32), ctx)
