"""Activation kernels on the emulator: what the table of layers does not reach."""

import math

import numpy as np
import pytest
from emulated import DTYPES, Exact, Offset, Wide, compare, sparse, to_device, to_host
from table import assert_close, emulating
from test_dropout import control_block

import bp
import bp.cuda.activation
import bp.ops.activation as ops
from bp.checking import tolerance
from bp.cuda.emulator import engine
from bp.ops.array import known_dtype
from bp.ops.dropout import Mask, dropout
from bp.ops.linear import linear_activation_backward

# name: (operation, backward, settings, whether backward takes y)
ELEMENTWISE = {
    "relu": (ops.relu, ops.relu_backward, (), True),
    "leaky_relu": (ops.leaky_relu, ops.leaky_relu_backward, (0.01,), True),
    "leaky_relu-0": (ops.leaky_relu, ops.leaky_relu_backward, (0.0,), True),
    "elu": (ops.elu, ops.elu_backward, (1.5,), True),
    "gelu": (ops.gelu, ops.gelu_backward, ("none",), False),
    "gelu-tanh": (ops.gelu, ops.gelu_backward, ("tanh",), False),
    "silu": (ops.silu, ops.silu_backward, (), False),
    "sigmoid": (ops.sigmoid, ops.sigmoid_backward, (), True),
    "tanh": (ops.tanh, ops.tanh_backward, (), True),
    "softplus": (ops.softplus, ops.softplus_backward, (1.0, 20.0), False),
    "softplus-steep": (ops.softplus, ops.softplus_backward, (3.0, 1.0), False),
    "mish": (ops.mish, ops.mish_backward, (), False),
    "hardswish": (ops.hardswish, ops.hardswish_backward, (), False),
}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


# Elementwise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_any_size_and_alignment(name, dtype):
    operation, backward, settings, from_y = ELEMENTWISE[name]
    for size, offset in ((0, 0), (1, 0), (7, 3), (8, 1), (4099, 0), (261, 1), (9000, 0)):
        x, dy = 3 * normal(size), normal(size)
        compare(operation, Offset(x, offset), *settings, dtype=dtype)
        kept = operation(x, *settings) if from_y else x
        compare(backward, Offset(dy, offset), kept, *settings, dtype=dtype)
        compare(backward, dy, Offset(kept, offset), *settings, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add(dtype):
    for size, offset in ((0, 0), (1, 0), (9, 2), (4099, 0)):
        compare(ops.add, Offset(normal(size), offset), normal(size) + 1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_extreme_inputs_reach_the_limits(name, dtype):
    operation, backward, settings, from_y = ELEMENTWISE[name]
    largest = {"float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.38e38}[dtype]
    x = np.array([-np.inf, -largest, -1e4, -100, -1e-30, 0, 1e-30, 100, 1e4, largest, np.inf, np.nan])
    x = x.astype(known_dtype(dtype))
    y = operation(to_device(x), *settings)
    expected = operation(x.astype(np.float64), *settings)
    close(to_host(y), expected, dtype)
    kept = y if from_y else to_device(x)
    slope = backward(to_device(np.ones_like(x)), kept, *settings)
    expected = backward(np.ones(x.size), to_host(kept).astype(np.float64), *settings)
    close(to_host(slope), expected, dtype)


def close(actual, expected, dtype):
    """Element by element; what is too large for the dtype is infinite in it."""
    with np.errstate(over="ignore"):
        expected = expected.astype(known_dtype(dtype)).astype(np.float64)
    relative = tolerance(dtype)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=relative, atol=relative)


def unit(y, dtype):
    """The distance between neighbours of that dtype at y."""
    digits, least = {"float16": (10, -14), "bfloat16": (7, -126)}[dtype]
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(y))), least)
    return 2.0 ** (exponent - digits)


def every(dtype):
    """All finite numbers of a 16-bit type."""
    x = np.arange(1 << 16, dtype=np.uint16).view(known_dtype(dtype))
    return x[np.isfinite(x.astype(np.float32))]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_16_bits_are_right_to_the_last_place_everywhere(name, dtype):
    operation, backward, settings, from_y = ELEMENTWISE[name]
    x = every(dtype)
    exact = operation(x.astype(np.float64), *settings)
    y = to_host(operation(to_device(x), *settings)).astype(np.float64)
    # Half a unit is the rounding; a quarter is left to formulas and polynomials.
    finite = np.isfinite(y)
    assert (np.abs(exact[~finite]) > 0.99 * np.abs(x.astype(np.float64)).max()).all()
    assert (np.abs(y - exact)[finite] <= 0.75 * unit(exact[finite], dtype) + vanishing(x[finite])).all()
    kept = to_host(operation(to_device(x), *settings)) if from_y else x
    exact = backward(np.ones(x.size), kept.astype(np.float64), *settings)
    slope = to_host(backward(to_device(np.ones_like(x)), to_device(kept), *settings)).astype(np.float64)
    # A slope may cross zero as a difference of numbers of size 1, which are good to 2^-13.
    assert (np.abs(slope - exact) <= 0.75 * unit(exact, dtype) + 2.0**-13).all()


def vanishing(x):
    """What may be missing of x times a factor that is subnormal in float32, and may be zero instead."""
    return np.maximum(np.abs(x.astype(np.float64)), 1) * float(np.finfo(np.float32).tiny)


# By how much an activation enlarges the rounding of what it computes first: see tests/test_activation.py.
CONDITION = {
    "gelu": lambda x: 1 + x * x,
    "gelu-tanh": lambda x: 1 + x * x,
    "softplus-steep": lambda x: 1 + np.abs(3 * x),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_float32_keeps_its_relative_precision_over_the_whole_range(name):
    operation, backward, settings, from_y = ELEMENTWISE[name]
    x = np.concatenate([normal(2000) * scale for scale in (1e-30, 1e-5, 0.3, 1, 5, 50)]).astype(np.float32)
    exact = operation(x.astype(np.float64), *settings)
    y = to_host(operation(to_device(x), *settings))
    condition = CONDITION.get(name, np.ones_like)(x.astype(np.float64))
    allowed = tolerance("float32") * condition * np.abs(exact) + vanishing(x)
    np.testing.assert_array_less(np.abs(y - exact), allowed)
    kept = y if from_y else x
    exact = backward(np.ones(x.size), kept.astype(np.float64), *settings)
    slope = to_host(backward(to_device(np.ones_like(x)), to_device(kept), *settings))
    np.testing.assert_allclose(slope, exact, rtol=tolerance("float32"), atol=tolerance("float32"))


def test_the_slope_of_silu_does_not_multiply_the_rounding_of_sigma():
    # x (1 - sigma), with 1 - sigma as a difference, would be off by x 2^-25 here, and by x 2^-23 on a GPU, whose
    # reciprocal may be off by one unit in the last place.
    x = np.linspace(8, 17, 4001).astype(np.float32)
    slope = to_host(ops.silu_backward(to_device(np.ones_like(x)), to_device(x)))
    exact = ops.silu_backward(np.ones(x.size), x.astype(np.float64))
    np.testing.assert_allclose(slope, exact, rtol=2 * np.finfo(np.float32).eps)


def test_more_elements_than_32_bits_count(monkeypatch):
    n = (1 << 31) + 19
    x, y = sparse((n,), "bfloat16"), sparse((n,), "bfloat16")
    ends = [(0, 16), (1 << 31, n)]
    for begin, end in ends:
        x[begin:end] = normal(end - begin)
    monkeypatch.setattr(bp.cuda.activation, "empty_like", lambda _: y)
    launch = engine.launch
    # Block 0 of a grid of 2^13 blocks of 2^8 threads has the vectors from 2^28 on, and what is left after the last.
    monkeypatch.setattr(engine, "launch", lambda *args, **settings: launch(*args, first_block=0, block_count=1))
    ops.leaky_relu(x, 0.5)
    for begin, end in ends:
        given = to_host(x[begin:end]).astype(np.float32)
        np.testing.assert_array_equal(to_host(y[begin:end]), np.where(given > 0, given, given / 2))


# With a dropout behind ------------------------------------------------------------------------------------------------

MASKED = ("relu", "gelu", "gelu_tanh", "silu")


def masked_backward(activation, first_element, rate):
    """(dy, kept, control) -> dz, of one use of dropout."""

    def backward(dy, kept, control):
        mask = Mask(control, 5, first_element, rate, in_kept=activation == "relu")
        return linear_activation_backward(dy, kept, activation, mask)

    return backward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", MASKED)
def test_gradient_in_front_of_an_activation_and_its_dropout(activation, dtype):
    control = Exact(control_block(seed=2**40 + 3, step=9))
    for size, offset, first in ((0, 0, 0), (1, 0, 7), (7, 3, 8), (8, 1, 0), (4099, 0, 0), (261, 1, 2**35 - 3)):
        dy, kept = normal(size), 3 * normal(size + 1)[1:]
        with emulating(detector=size < 1000, seed=0):
            for arguments in ((Offset(dy, offset), kept), (dy, Offset(kept, offset))):
                compare(masked_backward(activation, first, 0.3), *arguments, control, dtype=dtype)


@pytest.mark.parametrize("activation", MASKED)
def test_dropped_elements_have_no_gradient(activation):
    """Not even an infinite one: (dy m) f'(z) is zero where m is."""
    dy = np.full(70, np.inf, np.float32)
    control = control_block(seed=1, step=2)
    y = dropout(np.ones_like(dy), control, 5, 0, 0.5)
    kept = y if activation == "relu" else np.ones_like(dy)
    dz = to_host(masked_backward(activation, 0, 0.5)(to_device(dy), to_device(kept), to_device(control)))
    np.testing.assert_array_equal(dz, np.where(y > 0, np.inf, 0))


def test_an_activation_of_more_elements_than_32_bits_count_and_its_dropout(monkeypatch):
    n = (1 << 31) + 19
    dy, z, dz = (sparse((n,), "bfloat16") for _ in range(3))
    begin, end, first = 1 << 31, n, 2**33
    dy[begin:end], z[begin:end] = np.ones(end - begin), np.full(end - begin, 30)  # where the slope is 1
    monkeypatch.setattr(bp.cuda.activation, "empty_like", lambda _: dz)
    launch = engine.launch
    # Block 0 of a grid of 2^13 blocks of 2^8 threads has the chunks from 2^28 on, and what is left after the last.
    monkeypatch.setattr(engine, "launch", lambda *args, **settings: launch(*args, first_block=0, block_count=1))
    control = control_block(seed=1, step=2)
    masked_backward("silu", first, 0.5)(dy, z, to_device(control))
    expected = dropout(np.ones(end - begin), control, 5, first + begin, 0.5)
    np.testing.assert_array_equal(to_host(dz[begin:end]).astype(np.float64), expected)


# Softmax --------------------------------------------------------------------------------------------------------------

SOFTMAX = {"softmax": (ops.softmax, ops.softmax_backward), "log_softmax": (ops.log_softmax, ops.log_softmax_backward)}
ROWS = [
    (5, 1),
    (3, 2),
    (70, 5),
    (2, 3, 8),
    (9, 31),
    (3, 256),
    (5, 1000),
    (2, 1024),
    (3, 1025),
    (2, 2048),
    (2, 8191),
    (1, 8192),
    (2, 8193),
    (1, 24576),
    (0, 4),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_of_any_row(name, shape, dtype):
    operation, backward = SOFTMAX[name]
    x, dy, columns = 3 * normal(*shape), normal(*shape), shape[-1]
    with emulating(detector=True, seed=0):
        y = compare(operation, x, dtype=dtype, length=columns)
        compare(backward, dy, to_host(y).astype(np.float64), dtype=dtype, length=columns)


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_of_rows_that_are_not_aligned(name):
    operation, backward = SOFTMAX[name]
    for shape in ((3, 8), (2, 128), (1, 2048), (1, 8200)):
        x, dy, columns = normal(*shape), normal(*shape), shape[-1]
        y = to_host(compare(operation, Offset(x), dtype="bfloat16", length=columns)).astype(np.float64)
        compare(backward, Offset(dy), y, dtype="bfloat16", length=columns)
        compare(backward, dy, Offset(y, 3), dtype="bfloat16", length=columns)


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_of_a_very_long_row(name):
    operation, backward = SOFTMAX[name]
    x = np.random.default_rng(0).standard_normal((1, 200_000))
    y = compare(operation, x, dtype="bfloat16", length=200_000)
    compare(backward, normal(1, 200_000), to_host(y).astype(np.float64), dtype="bfloat16", length=200_000)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [3, 40, 1030, 8300])
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_of_extreme_rows(name, columns, dtype):
    rows = np.zeros((7, columns))
    rows[0, 0], rows[0, -1] = 1e4, -1e4
    rows[1, : columns // 2] = -np.inf
    rows[2, :-1] = -np.inf
    rows[3, :] = -6e4
    rows[4, :] = -np.inf
    rows[5, -1] = np.inf
    rows[6, -1] = np.nan
    y = compare(SOFTMAX[name][0], rows, dtype=dtype, length=columns)
    assert np.isnan(to_host(y)[4:].astype(np.float32)).all()
    assert not np.isnan(to_host(y)[:4].astype(np.float32)).any()


def test_softmax_of_more_elements_than_32_bits_count(monkeypatch):
    rows = (1 << 29) + 3
    x, y = sparse((rows, 8), "bfloat16"), sparse((rows, 8), "bfloat16")
    x[rows - 1 : rows] = normal(1, 8)
    monkeypatch.setattr(bp.cuda.activation, "empty_like", lambda _: y)
    launch = engine.launch
    # Of a grid of 2^13 blocks of 2^7 rows, block 0 has those from 2^29 on.
    monkeypatch.setattr(engine, "launch", lambda *args, **settings: launch(*args, first_block=0, block_count=1))
    ops.softmax(x)
    given = to_host(x[rows - 1 : rows]).astype(np.float64)
    assert_close(to_host(y[rows - 1 : rows]), ops.softmax(given), tolerance("bfloat16", 8))


@pytest.mark.parametrize("columns", [40, 1030, 8300])
def test_softmax_does_not_depend_on_the_order_of_threads(columns):
    x, dy = to_device(normal(3, columns), "float32"), to_device(normal(3, columns) + 1, "float32")
    results = []
    for seed in (0, 1, 2):
        with emulating(detector=False, seed=seed):
            y = ops.softmax(x)
            results.append((to_host(y), to_host(ops.softmax_backward(dy, y))))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


# Bias and activation --------------------------------------------------------------------------------------------------

# Of one split and of many, of whole vectors and not, of one tile of columns and of several.
MATRICES = [(1, 1), (3, 5), (2, 3, 16), (130, 24), (70, 7), (2, 2056), (3, 2057), (2000, 3), (4500, 8), (0, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("activation", ops.BIAS_ACTIVATIONS)
def test_bias_activation(activation, shape, dtype):
    x, bias, dy = normal(*shape), normal(shape[-1]) + 1, normal(*shape)
    rows = math.prod(shape[:-1])
    with emulating(detector=rows < 1000, seed=0):
        _, kept = compare(ops.bias_activation, x, bias, activation, dtype=dtype)
        kept = None if kept is None else to_host(kept).astype(np.float64)
        for accumulate in (False, True):
            dbias = Wide(normal(shape[-1]))
            compare(
                ops.bias_activation_backward,
                *(dy, kept, bias, dbias, activation, accumulate),
                dtype=dtype,
                length=max(rows, 1),
            )
    compare(ops.bias_activation_backward, dy, kept, bias, None, activation, False, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_activation_of_arrays_that_are_not_aligned(dtype):
    x, bias, dy = normal(40, 2048), normal(2048), normal(40, 2048)
    compare(ops.bias_activation, Offset(x), Offset(bias, 3), "silu", dtype=dtype)
    for arguments in ((Offset(dy), x), (dy, Offset(x, 2))):
        compare(
            ops.bias_activation_backward,
            *(*arguments, Offset(bias, 3), Wide(np.zeros(2048)), "silu", False),
            dtype=dtype,
            length=40,
        )


def test_a_block_takes_several_tiles_of_a_row_where_the_grid_ends(monkeypatch):
    _, tiles = bp.cuda.activation._tiling(np.empty((0, (1 << 24) + 1), np.float32))
    assert tiles == 65535  # no GPU takes more along the second axis of a grid
    monkeypatch.setattr(bp.cuda.activation, "_MOST_TILES", 2)
    for columns in (1025, 3080):
        x, bias, dy = normal(9, columns), normal(columns), normal(9, columns)
        with emulating(detector=True, seed=3):
            compare(ops.bias_activation, x, bias, "silu")
            arguments = (dy, x, bias, Wide(normal(columns)), "silu", True)
            compare(ops.bias_activation_backward, *arguments, length=9)


def test_bias_gradient_does_not_depend_on_the_order_of_threads():
    x, bias, dy = (to_device(a, "float32") for a in (normal(3000, 12), normal(12), normal(3000, 12) + 1))
    results = []
    for seed in (0, 1, 2):
        dbias = to_device(np.zeros(12, np.float32))
        with emulating(detector=False, seed=seed):
            ops.bias_activation_backward(dy, x, bias, dbias, "gelu_tanh", True)
        results.append(to_host(dbias))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_bias_activation_keeps_an_array_and_no_copy():
    x, bias = to_device(normal(4, 8), "float32"), to_device(normal(8), "float32")
    for activation in ops.BIAS_ACTIVATIONS:
        y, kept = ops.bias_activation(x, bias, activation)
        assert kept is {"identity": None, "relu": y}.get(activation, x)


def test_identity_passes_the_gradient_on():
    dy, bias = to_device(normal(4, 8), "float32"), to_device(normal(8), "float32")
    assert ops.bias_activation_backward(dy, None, bias, None, "identity", False) is dy


def test_float64_is_refused():
    with pytest.raises(bp.errors.DtypeError, match="relu_forward is compiled for T of float, float16, bfloat16"):
        ops.relu(to_device(np.zeros(3)))


def test_a_long_sum_keeps_its_digits():
    rows = 1 << 17
    dy, y = np.full((rows, 1), 0.1, np.float32), np.ones((rows, 1), np.float32)
    dbias = to_device(np.zeros(1, np.float32))
    ops.bias_activation_backward(to_device(dy), to_device(y), to_device(y[0]), dbias, "relu", False)
    # 256 terms follow each other at most; what they sum to is added up as a tree and in float64.
    assert_close(to_host(dbias), [rows * np.float64(np.float32(0.1))], tolerance("float32", 256))
