"""Matrix products of the CUDA kernels: every tile edge, exactly; cuts, NaN, tf32, the choice of a rung."""

import math
import re

import numpy as np
import pytest
from emulated import DTYPES, KERNEL_DEVICE, Offset, Wide, compare, on_device, to_device, to_host
from products import ADDED, in_tf32, integers, launches, ternary
from table import assert_close, emulating

import bp.cuda.linear as cuda
import bp.ops.linear as ops
from bp.checking import tolerance
from bp.cuda import choice
from bp.cuda.choice import Problem
from bp.cuda.epilogue import ACTIVATIONS, Epilogue
from bp.cuda.product import WAYS, Matrices
from bp.errors import ConfigurationError, DtypeError, ShapeError
from bp.ops.array import known_dtype
from bp.ops.device import find_device, new_control, planning_device
from bp.ops.dropout import Mask, dropout

inf, nan = np.inf, np.nan

# Around the edges of a tile of 64 x 64, of a slice of 16 or 32, of a vector of 4 or 8, and one.
SIZES = [
    (1, 1, 1),
    (1, 5, 7),
    (3, 1, 16),
    (63, 65, 15),
    (64, 64, 16),
    (65, 8, 17),
    (8, 129, 33),
    (130, 4, 40),
]


def factors(way, m, n, k, make=integers):
    """(a, b, the two as they are multiplied)."""
    transpose_a, transpose_b = WAYS[way]
    a, b = make(m, k), make(k, n, seed=1)
    return np.ascontiguousarray(a.T) if transpose_a else a, np.ascontiguousarray(b.T) if transpose_b else b, a, b


def gemm(way, a, b, c, accumulate=False, **epilogue):
    transpose_a, transpose_b = WAYS[way]
    epilogue = Epilogue(beta=float(accumulate), **epilogue)
    cuda.gemm(a, b, c, transpose_a=transpose_a, transpose_b=transpose_b, epilogue=epilogue)


# Exact products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rung", ["naive", "tiled"])
def test_products_of_integers_are_exact(rung, way, dtype, force):
    force("linear", rung)
    for m, n, k in SIZES:
        a, b, left, right = factors(way, m, n, k)
        c = to_device(np.full((m, n), nan), "float32")
        with emulating(detector=rung == "tiled", seed=k):
            gemm(way, to_device(a, dtype), to_device(b, dtype), c)
        np.testing.assert_array_equal(to_host(c), left @ right, err_msg=f"{m} x {n} x {k}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_results_in_the_dtype_of_the_factors(way, dtype, accumulate):
    m, n, k = 65, 33, 40
    a, b, left, right = factors(way, m, n, k, ternary)
    before = integers(m, n, seed=2)
    c = to_device(before, dtype)
    gemm(way, to_device(a, dtype), to_device(b, dtype), c, accumulate=accumulate)
    assert c.dtype.name == dtype
    np.testing.assert_array_equal(to_host(c).astype(np.float32), left @ right + accumulate * before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_any_alignment(way, dtype):
    """Rows of whole vectors that begin anywhere; the elements around C stay as they are."""
    m, n, k = 72, 40, 48
    a, b, left, right = factors(way, m, n, k)
    for shift in (1, 4):
        around = to_device(np.full(m * n + 2 * shift, 7.0), "float32")
        c = around[shift : shift + m * n].reshape(m, n)
        gemm(way, on_device(Offset(a, shift), dtype), on_device(Offset(b, shift), dtype), c)
        np.testing.assert_array_equal(to_host(c), left @ right)
        host = to_host(around)
        assert (host[:shift] == 7).all() and (host[-shift:] == 7).all()


@pytest.mark.parametrize("way", WAYS)
def test_one_hot_factors_pick_elements(way):
    """Each element of B alone: nothing is read from another place, and nothing is rounded."""
    m, n, k = 70, 66, 34
    b = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    chosen = np.random.default_rng(1).integers(0, k, m)
    a = np.eye(k, dtype=np.float32)[chosen]
    transpose_a, transpose_b = WAYS[way]
    c = to_device(np.zeros((m, n)), "float32")
    gemm(way, to_device(a.T if transpose_a else a), to_device(b.T if transpose_b else b), c)
    np.testing.assert_array_equal(to_host(c), b[chosen])


# Cuts of the depth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 3, 256), (3, 2, 301), (66, 5, 700), (2, 70, 1290)])
def test_a_cut_depth(m, n, k, way, dtype, accumulate, force):
    force("linear", "tiled")
    a, b, left, right = factors(way, m, n, k, ternary)
    bias, before = integers(n, seed=2), integers(m, n, seed=3)
    c = to_device(before, "float32")
    given = to_device(a, dtype), to_device(b, dtype)
    with emulating(detector=True, seed=0):
        names, found = launches(
            lambda: gemm(way, *given, c, accumulate=accumulate, bias=to_device(bias, dtype), activation="relu")
        )
    assert names[:1] == [f"gemm_{way}"] and names[1:] in ADDED and found[0].grid[1] > 1
    np.testing.assert_array_equal(to_host(c), np.maximum(left @ right + bias, 0) + accumulate * before)
    narrow = to_device(np.zeros((m, n)), dtype)
    gemm(way, *given, narrow)
    np.testing.assert_array_equal(to_host(narrow), (left @ right).astype(known_dtype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", [5, 100, 256, 1000])
@pytest.mark.parametrize(("out", "inside"), [(3, 2), (65, 70)])
def test_the_bias_gradient_comes_with_the_weight_gradient(out, inside, rows, accumulate, dtype):
    dy, x = integers(rows, out), integers(rows, inside, seed=1)
    arguments = [to_device(dy, dtype), to_device(x, dtype)]
    before = integers(out, inside, seed=2), integers(out, seed=3)
    dweight, dbias = (to_device(b, "float32") for b in before)
    with emulating(detector=True, seed=0):
        names, _ = launches(lambda: ops.linear_backward_parameters(*arguments, dweight, dbias, accumulate))
    assert names[:1] == ["gemm_tn"] and names[1:] in (([],) if rows < 256 else ADDED)
    np.testing.assert_array_equal(to_host(dweight), dy.T @ x + accumulate * before[0])
    np.testing.assert_array_equal(to_host(dbias), dy.sum(0) + accumulate * before[1])


def test_cuts_depend_on_the_shape_alone_and_leave_nothing_out():
    for blocks in (1, 2, 7, 131, 132, 264, 1000):
        for depth in (0, 1, 127, 128, 255, 256, 257, 1000, 4097, 10**6, 10**9):
            for longest in (None, 8192):
                parts, part = choice.cut(blocks, depth, longest)
                assert parts * part >= depth and (parts - 1) * part < max(depth, 1)
                assert parts == 1 or part % 64 == 0
                # A grid has 65535 parts at most.
                assert longest is None or part <= max(longest, -(-depth // 65535)) + 64


@pytest.mark.parametrize(("rows", "features"), [(70_000, 2), (9_000, 65)])
def test_a_long_sum_of_equal_terms_keeps_its_digits(rows, features):
    """Where each addition rounds the same way, the error grows with the length of a run and not with its root."""
    dy, x = np.full((rows, features), 0.1), np.full((rows, 2), 1.7)
    compare(
        ops.linear_backward_parameters,
        *(dy, x, Wide(np.zeros((features, 2))), Wide(np.zeros(features)), False),
        length=rows,
    )


def test_a_long_depth_that_is_not_cut_keeps_its_digits(monkeypatch):
    monkeypatch.setattr(choice, "_ENOUGH_BLOCKS", 1)
    depth = 20_000
    names, _ = launches(lambda: compare(ops.linear, np.full((2, depth), 1.15), np.ones((3, depth)), None, length=depth))
    assert names == ["gemm_nt"]


# Bias, activation, accumulation -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "inside", "out"), [(7, 3, 5), (9, 40, 70), (2, 300, 3)])
def test_linear_with_an_activation(rows, inside, out, activation, dtype):
    """In each rung, and where add_parts has the epilogue."""
    generator = np.random.default_rng(0)
    x, weight, bias = (generator.standard_normal(s) for s in ((rows, 1, inside), (out, inside), (out,)))
    given = [to_device(array, dtype) for array in (x, weight, bias)]
    y, kept = ops.linear_activation(*given, activation, True, None, None)
    x, weight, bias = (to_host(array).astype(np.float64) for array in given)
    linear = x @ weight.T + bias
    curve = {
        "identity": lambda z: z,
        "relu": lambda z: np.maximum(z, 0),
        "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / 2**0.5)) / 2,
        "gelu_tanh": lambda z: z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2,
        "silu": lambda z: z / (1 + np.exp(-z)),
    }[activation]
    relative = tolerance("float32", inside) + (tolerance(dtype) if dtype != "float32" else 0)
    assert_close(to_host(y), curve(linear), relative, activation)
    if activation == "identity":
        assert kept is None
    else:
        assert_close(to_host(kept), to_host(y) if activation == "relu" else linear, relative, "kept")


@pytest.mark.parametrize("rung", ["naive", "tiled"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_bias_activation_and_accumulation_together(rung, accumulate, force):
    """C += f(A B + bias): the bias of the column, then f, then what was there."""
    force("linear", rung)
    a, b, bias, before = integers(67, 9), integers(9, 66, seed=1), integers(66, seed=2), integers(67, 66, seed=3)
    c = to_device(before)
    before_relu = to_device(np.zeros((67, 66)), "float32")
    gemm("nn", to_device(a), to_device(b), c, accumulate, bias=to_device(bias), activation="relu", before=before_relu)
    np.testing.assert_array_equal(to_host(before_relu), a @ b + bias)
    np.testing.assert_array_equal(to_host(c), np.maximum(a @ b + bias, 0) + accumulate * before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rung", ["naive", "tiled"])
@pytest.mark.parametrize("k", [9, 300])
def test_alpha_beta_and_a_residual(k, rung, dtype, force):
    """C = alpha A B + residual + beta C, also where the depth is cut."""
    force("linear", rung)
    a, b, residual, before = ternary(7, k), ternary(k, 10, seed=1), integers(7, 10, seed=2), integers(7, 10, seed=3)
    c = to_device(before, "float32")
    epilogue = Epilogue(residual=to_device(residual, dtype), alpha=0.5, beta=-2.0)
    cuda.gemm(to_device(a, dtype), to_device(b, dtype), c, epilogue=epilogue)
    np.testing.assert_array_equal(to_host(c), 0.5 * (a @ b) + residual - 2 * before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("k", [9, 300])
def test_the_mask_is_that_of_dropout(k, shift, dtype):
    """Forward and backward; a first element within a chunk of eight."""
    device = find_device(KERNEL_DEVICE)
    drawn = new_control(device, 5, 1), 3, 16 + shift, 0.4
    mask = Mask(*drawn)
    x, weight, bias, kept = ternary(6, k), ternary(11, k, seed=1), integers(11, seed=2), integers(6, k, seed=3)
    given = [to_device(array, dtype) for array in (x, weight, bias)]
    y, _ = ops.linear_activation(*given, "relu", True, mask, None)
    expected = dropout(to_device(np.maximum(x @ weight.T + bias, 0), dtype), *drawn)
    np.testing.assert_array_equal(to_host(y), to_host(expected))
    dy = ternary(6, 11, seed=4)
    below = dropout(to_device(np.maximum(kept, 0), dtype), *drawn)  # y of the layer below
    expected = dropout(to_device(np.where(kept > 0, dy @ weight, 0), dtype), *drawn)
    for told in (mask, Mask(*drawn, in_kept=True)):
        dz = ops.linear_backward_input_activation(to_device(dy, dtype), given[1], below, "relu", told)
        np.testing.assert_array_equal(to_host(dz), to_host(expected))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_in_front_of_the_activation_below(activation, dtype):
    generator = np.random.default_rng(0)
    dy, weight, kept = (generator.standard_normal(shape) for shape in ((9, 20), (20, 70), (9, 70)))
    given = [to_device(array, dtype) for array in (dy, weight, kept)]
    dz = ops.linear_backward_input_activation(*given, activation, None)
    dy, weight, kept = (to_host(array).astype(np.float64) for array in given)
    expected = ops.linear_backward_input_activation(dy, weight, kept, activation, None)
    relative = tolerance("float32", 20) + (tolerance(dtype) if dtype != "float32" else 0)
    assert_close(to_host(dz), expected, relative)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rung", ["naive", "tiled"])
@pytest.mark.parametrize("k", [5, 260])
def test_a_batch_of_matrices_with_gaps_between_rows_and_between_each_other(k, rung, way, force):
    force("linear", rung)
    m, n, batch = 3, 66, 2
    rows_a, columns_a = (k, m) if WAYS[way][0] else (m, k)
    rows_b, columns_b = (n, k) if WAYS[way][1] else (k, n)

    def within(rows, columns, seed):
        whole = ternary(batch, rows + 1, columns + 3, seed=seed)
        matrices = Matrices(to_device(whole), rows, columns, columns + 3, batch, (rows + 1) * (columns + 3))
        return whole, matrices, whole[:, :rows, :columns]

    (_, a, left), (_, b, right), (whole, c, _) = (
        within(*shape) for shape in ((rows_a, columns_a, 0), (rows_b, columns_b, 1), (m, n, 2))
    )
    gemm(way, a, b, c)
    left = left.swapaxes(1, 2) if WAYS[way][0] else left
    right = right.swapaxes(1, 2) if WAYS[way][1] else right
    whole[:, :m, :n] = left @ right
    np.testing.assert_array_equal(to_host(c.array), whole)


@pytest.mark.parametrize(
    ("rung", "dtype"), [("tiled", "float32"), ("simt", "float32"), ("mma", "float16"), ("wgmma", "bfloat16")]
)
def test_results_of_a_batch_that_begin_at_no_multiple_of_16_bytes(rung, dtype, force):
    """Rows of whole vectors, but matrices that are not."""
    force("linear", rung)
    a, b = ternary(2, 40, 32), ternary(2, 32, 64, seed=1)
    whole = to_device(np.zeros(2 * 40 * 64 + 3), dtype)
    with emulating(detector=True, seed=0):
        gemm("nn", to_device(a, dtype), to_device(b, dtype), Matrices(whole, 40, 64, 64, 2, 40 * 64 + 3))
    first, between, second = np.split(to_host(whole).astype(np.float32), [40 * 64, 40 * 64 + 3])
    np.testing.assert_array_equal([first, second], (a @ b).reshape(2, 40 * 64))
    np.testing.assert_array_equal(between, np.zeros(3))


@pytest.mark.parametrize("rung", ["naive", "tiled", "simt", "mma", "wgmma"])
def test_more_matrices_than_one_launch_takes(rung, force, monkeypatch):
    force("linear", rung)
    m, n, k, batch = 3, 16, 24, 5
    dtype = "float32" if rung == "simt" else "bfloat16"
    a, b, kept, residual = (
        to_device(ternary(batch, *shape, seed=seed), dtype)
        for seed, shape in enumerate(((m, k), (n, k), (m, n), (m, n)))
    )
    mask = Mask(new_control(find_device(KERNEL_DEVICE), 5, 1), 3, 7, 0.4)
    results = []
    for most in (batch, 2):
        monkeypatch.setattr(cuda, "_MOST_MATRICES", most)
        c = to_device(np.full((batch, m, n), 9.0), dtype)
        beside = {"kept": kept, "residual": residual, "mask": mask, "activation": "silu"}
        names, _ = launches(lambda c=c, beside=beside: gemm("nt", a, b, c, True, **beside))
        results.append(to_host(c))
        assert len(names) == -(-batch // most)
    np.testing.assert_array_equal(*results)


# What is empty, and what is not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rung", ["naive", "tiled"])
def test_empty_products(rung, way, accumulate, force):
    force("linear", rung)
    for m, n in ((0, 3), (3, 0), (0, 0)):
        a, b, _, _ = factors(way, m, n, 5)
        gemm(way, to_device(a), to_device(b), to_device(np.ones((m, n)), "float32"))
    a, b, _, _ = factors(way, 3, 2, 0)
    for bias in (None, np.array([5.0, 6.0], np.float32)):
        c = to_device(np.full((3, 2), 9), "float32")
        gemm(way, to_device(a), to_device(b), c, bias=None if bias is None else to_device(bias), accumulate=accumulate)
        np.testing.assert_array_equal(
            to_host(c), np.broadcast_to((0 if bias is None else bias) + 9 * accumulate, (3, 2))
        )


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("rows", "inside", "out"), [(0, 3, 2), (4, 0, 2), (4, 3, 0)])
def test_empty_layers(rows, inside, out, accumulate):
    x, weight, dy = np.ones((rows, inside)), np.ones((out, inside)), np.ones((rows, out))
    compare(ops.linear, x, weight, np.arange(1.0, out + 1))
    compare(ops.linear_backward_input, dy, weight)
    compare(ops.linear_backward_parameters, dy, x, Wide(weight), Wide(np.ones(out)), accumulate)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_reaches_its_row_and_column_and_nothing_else(way, bad):
    """In the last row and column, beside the zeros of the tile's padding, and at the end of the depth."""
    for m, n, k in ((65, 66, 17), (3, 2, 300)):
        a, b, _, _ = factors(way, m, n, k, lambda *shape, seed=0: np.ones(shape, np.float32))
        (a.T if WAYS[way][0] else a)[m - 1, k - 1] = bad
        (b.T if WAYS[way][1] else b)[k - 1, n - 1] = bad
        expected = np.full((m, n), np.float32(k))
        expected[m - 1], expected[:, n - 1] = bad, bad
        expected[m - 1, n - 1] = bad * bad
        c = to_device(np.zeros((m, n)), "float32")
        gemm(way, to_device(a), to_device(b), c)
        np.testing.assert_array_equal(to_host(c), expected)


def test_zero_times_infinity_is_nan():
    c = to_device(np.zeros((1, 1)), "float32")
    gemm("nt", to_device(np.array([[0.0, 1]], "float32")), to_device(np.array([[inf, 1]], "float32")), c)
    assert np.isnan(to_host(c)).all()


# tf32 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["naive", "tiled"])
@pytest.mark.parametrize("way", WAYS)
def test_tf32_rounds_the_factors_and_not_the_sums(rung, way, force, tf32):
    force("linear", rung)
    generator = np.random.default_rng(0)
    a, b, left, right = factors(
        way, 9, 7, 40, lambda *shape, seed=0: generator.standard_normal(shape).astype("float32")
    )
    c = to_device(np.zeros((9, 7)), "float32")
    gemm(way, to_device(a), to_device(b), c)
    assert_close(to_host(c), in_tf32(left) @ in_tf32(right), tolerance("float32", 40))
    exact = left.astype(np.float64) @ right.astype(np.float64)
    assert np.linalg.norm(to_host(c) - exact) > 1e-5 * np.linalg.norm(exact)


def test_tf32_leaves_what_it_can_hold_and_what_is_not_finite(tf32):
    a = np.array([[1 + 2.0**-10, 1 + 2.0**-11, -1 - 2.0**-11, 1 + 2.0**-12, inf, -inf, nan, 0]], np.float32).T
    c = to_device(np.zeros((8, 1)), "float32")
    gemm("nn", to_device(a), to_device(np.ones((1, 1), "float32")), c)
    expected = [1 + 2.0**-10, 1 + 2.0**-10, -1 - 2.0**-10, 1, inf, -inf, nan, 0]
    np.testing.assert_array_equal(to_host(c)[:, 0], np.array(expected, np.float32))


def test_tf32_is_of_float32_products_only(tf32):
    """Neither 16-bit factors, which it holds, nor the bias gradient, which is no product."""
    value = np.float32(1 + 2.0**-11)
    dy, x = np.full((8, 5), value), np.ones((8, 6), np.float32)
    dweight, dbias = to_device(np.zeros((5, 6)), "float32"), to_device(np.zeros(5), "float32")
    names, _ = launches(lambda: ops.linear_backward_parameters(to_device(dy), to_device(x), dweight, dbias, False))
    assert names[0] == "mma_tn" and "sum_columns" in names
    np.testing.assert_array_equal(to_host(dbias), np.full(5, 8 * value))
    np.testing.assert_array_equal(to_host(dweight), np.full((5, 6), 8 * (1 + np.float32(2.0**-10))))
    compare(ops.linear, np.full((2, 3), 1 + 2.0**-10), np.full((4, 3), 1.0), None, dtype="float16")


# The choice of a rung, costs, errors ------------------------------------------------------------------------


def test_the_choice_follows_the_table_and_the_environment(monkeypatch):
    def chosen(k, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        choice.forget()
        return choice.choose(Problem("linear", "nt", 100, 100, k, 1, "float32", 16), 80).rung

    assert chosen(1) == "naive" and chosen(100) == "tiled"
    assert chosen(100, BP_LINEAR="naive") == "naive" and chosen(1, BP_LINEAR="tiled") == "tiled"
    with pytest.raises(ConfigurationError, match=r"BP_LINEAR expected one of .*naive.*, got 'other'"):
        chosen(1, BP_LINEAR="other")
    monkeypatch.undo()
    choice.forget()


def test_a_forced_rung_that_cannot_run_here(force, monkeypatch):
    def chosen(dtype, capability, alignment=16):
        return choice.choose(Problem("linear", "nt", 9, 9, 9, 1, dtype, alignment), capability).rung

    later = choice.Rung("later", lambda problem: True, dtypes=("float16",), only=90, alignment=16)
    monkeypatch.setitem(choice.RUNGS, "linear", (later, *choice.RUNGS["linear"]))
    choice.forget()
    assert chosen("float16", 90) == "later"
    assert chosen("float32", 90) != "later" and chosen("float16", 80) != "later" and chosen("float16", 90, 4) != "later"
    force("linear", "later")
    with pytest.raises(
        ConfigurationError, match=r"BP_LINEAR=later cannot compute .* in fp16 on .* 8\.0: exists for .* 9\.0 alone"
    ):
        chosen("float16", 80)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rungs_agree_to_the_bit_where_sums_are_exact(dtype, force):
    x, weight, bias = integers(70, 40), integers(66, 40, seed=1), integers(66, seed=2)
    results = []
    for rung in ("naive", "tiled"):
        force("linear", rung)
        results.append(to_host(ops.linear(*(to_device(a, dtype) for a in (x, weight, bias)))))
    np.testing.assert_array_equal(*results)


def test_what_a_launch_costs():
    x, weight = to_device(np.zeros((5, 60)), "float16"), to_device(np.zeros((7, 60)), "float16")
    _, found = launches(lambda: ops.linear(x, weight, None))
    assert found[0].flops == 2 * 5 * 7 * 60 and found[0].nbytes == 2 * (5 * 60 + 7 * 60 + 5 * 7)
    dy, dweight = to_device(np.zeros((5, 7)), "float16"), to_device(np.zeros((7, 60)), "float32")
    _, found = launches(lambda: ops.linear_backward_parameters(dy, x, dweight, None, False))
    assert found[0].flops == 2 * 5 * 7 * 60 and found[0].nbytes == 2 * (5 * 60 + 5 * 7) + 4 * 7 * 60


@pytest.mark.parametrize("rung", ["naive", "tiled", "mma"])
def test_what_the_epilogue_of_a_launch_moves(rung, force):
    """Each array beside C is read or written once, and C is read where it is added to."""
    force("linear", rung)
    a, b, c, kept = (to_device(np.zeros(shape), "float16") for shape in ((16, 8), (8, 24), (16, 24), (16, 24)))
    bias, control = to_device(np.zeros(24), "float16"), new_control(find_device(KERNEL_DEVICE), 5, 1)

    def moved(**epilogue):
        _, found = launches(lambda: cuda.gemm(a, b, c, epilogue=Epilogue(**epilogue)))
        assert len(found) == 1
        return found[0].nbytes

    plain, each = moved(), 2 * 16 * 24
    assert plain == 2 * (16 * 8 + 8 * 24 + 16 * 24)
    assert moved(bias=bias) == plain + 2 * 24
    assert moved(residual=kept) == moved(beta=1.0) == plain + each
    assert moved(activation="silu", before=kept) == moved(activation="silu", kept=kept) == plain + each
    assert moved(activation="relu", mask=Mask(control, 0, 0, 0.5)) == plain
    assert moved(bias=bias, residual=kept, beta=1.0) == plain + 2 * each + 2 * 24


def test_what_adding_the_parts_of_a_product_moves(force):
    force("linear", "tiled")
    x, weight, beside = (to_device(np.zeros(s), "float16") for s in ((4, 4096), (8, 4096), (4, 8)))
    costs = []
    for residual in (None, beside):
        names, found = launches(lambda residual=residual: gemm("nt", x, weight, beside, residual=residual))
        assert names[:1] == ["gemm_nt"] and names[1:] in ADDED
        costs.append([launch.nbytes for launch in found])
    assert costs[1] == [costs[0][0], costs[0][1] + 2 * 4 * 8]
    dy, x = to_device(np.zeros((4096, 4)), "float16"), to_device(np.zeros((4096, 8)), "float16")
    dweight = to_device(np.zeros((4, 8)), "float32")
    costs = []
    for accumulate in (False, True):
        _, found = launches(lambda add=accumulate: ops.linear_backward_parameters(dy, x, dweight, None, add))
        costs.append([launch.nbytes for launch in found])
    assert costs[1] == [costs[0][0], costs[0][1] + 4 * 4 * 8]


def test_a_plan_moves_as_much():
    plan = planning_device()
    costs = []
    for device in (find_device(KERNEL_DEVICE), plan):
        x, weight, bias = (device.zeros(shape, "float32") for shape in ((40, 24), (70, 24), (70,)))
        with device.recording() as ledger:
            y, _ = ops.linear_activation(x, weight, bias, "gelu", True, None, None)
            ops.linear_backward_input_activation(y, weight, x, "silu", None)
        costs.append([launch.nbytes for launch in ledger.launches])
    assert costs[0] == costs[1]


@pytest.mark.parametrize("rung", ["naive", "tiled"])
@pytest.mark.parametrize(("rows", "inside", "out"), [(2**26 + 5, 36, 3), (2**25 + 5, 3, 70)])
def test_elements_beyond_2_to_the_31(rows, inside, out, rung, force, huge):
    """The last rows of matrices of more than 2^31 elements, on the way in and on the way out."""
    force("linear", rung)
    x, last, weight = huge(rows, inside), ternary(2, inside), ternary(out, inside, seed=1)
    x[rows - 2 : rows] = last
    y = ops.linear(x, to_device(weight), None)
    # The last block computes the last columns of the last rows.
    np.testing.assert_array_equal(to_host(y[rows - 2 : rows])[:, -3:], (last @ weight.T)[:, -3:])


@pytest.mark.parametrize(
    "layout",
    [(4, 4, 4, 2, -4), (4, 4, -4), (-1, -4, 4), (0, 4, 4, 2, -1), (4, 4, 4, -2, 16), (4, 4, 4, 2, 17), (4, 4, 3)],
)
def test_matrices_that_are_not_within_their_array(layout):
    with pytest.raises(ShapeError, match=r"expected .* within an array of 32 elements"):
        Matrices(to_device(np.zeros((2, 4, 4))), *layout)


@pytest.mark.parametrize(
    "layout", [(3, 4, 4, 2, 0), (3, 4, 4, 2, 11), (3, 4, 8, 2, 3), (3, 4, 7, 2, 4), (1, 4, 4, 2, 3)]
)
def test_results_that_would_overlap(layout):
    a, b, c = (to_device(np.zeros(shape)) for shape in ((2, layout[0], 5), (2, 5, 4), (64,)))
    with pytest.raises(ShapeError, match=r"expected matrices of c that lie behind each other, .* got 2 of shape"):
        cuda.gemm(a, b, Matrices(c, *layout))


@pytest.mark.parametrize(
    "layout", [(3, 4, 8, 2, 4), (3, 4, 11, 2, 6), (3, 4, 4, 2, 12), (1, 4, 4, 2, 4), (3, 4, 4, 1, 0)]
)
def test_results_that_lie_side_by_side(layout):
    """As heads of attention do: a row of one matrix behind that of another."""
    rows, columns, stride, batch, step = layout
    a, b = ternary(batch, rows, 5), ternary(batch, 5, columns, seed=1)
    flat = to_device(np.full(64, 9.0, np.float32))
    cuda.gemm(to_device(a), to_device(b), Matrices(flat, *layout))
    expected = np.full(64, 9.0, np.float32)
    for i, matrix in enumerate(a @ b):
        for r, row in enumerate(matrix):
            expected[i * step + r * stride :][:columns] = row
    np.testing.assert_array_equal(to_host(flat), expected)


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (2, 3, 4)])
def test_what_lies_beside_c_has_its_shape(shape):
    """Also where that is a batch of one."""
    batch = shape[:-2]
    a, b, beside = ternary(*batch, 3, 5), ternary(*batch, 5, 4, seed=1), integers(*shape, seed=2)
    c = to_device(np.zeros(shape), "float32")
    cuda.gemm(to_device(a), to_device(b), c, epilogue=Epilogue(residual=to_device(beside)))
    np.testing.assert_array_equal(to_host(c), a @ b + beside)
    other = to_device(beside.reshape(-1, 4) if batch else beside[None])
    with pytest.raises(ShapeError, match=re.escape(f"residual of shape {shape}, got {other.shape}")):
        cuda.gemm(to_device(a), to_device(b), c, epilogue=Epilogue(residual=other))


def test_wrong_arguments_of_gemm():
    def zeros(*shape, dtype="float32"):
        return to_device(np.zeros(shape), dtype)

    for arguments, settings, error, message in (
        ((zeros(2, 3), zeros(4, 5), zeros(2, 5)), {}, ShapeError, "one depth, as many of each, got 1 of shape"),
        ((zeros(2, 3), zeros(3, 5), zeros(5, 2)), {}, ShapeError, r"c of shape \(2, 5\), got \(5, 2\)"),
        (
            (zeros(2, 3), zeros(3, 5), zeros(2, 5)),
            {"epilogue": Epilogue(bias=zeros(2))},
            ShapeError,
            r"bias of shape \(5,\)",
        ),
        ((zeros(6), zeros(3, 5), zeros(2, 5)), {}, ShapeError, "expected a matrix or a batch"),
        (
            (zeros(3, 2), zeros(5, 3), zeros(2, 5)),
            {"transpose_a": True, "transpose_b": True},
            ConfigurationError,
            "one",
        ),
        (
            (zeros(2, 3), zeros(3, 5), zeros(2, 5, dtype="float16")),
            {},
            DtypeError,
            "c of that or float32, got float32, float32 and float16",
        ),
        ((zeros(2, 3), zeros(3, 5, dtype="float16"), zeros(2, 5)), {}, DtypeError, "a and b of one dtype"),
    ):
        with pytest.raises(error, match=message):
            cuda.gemm(*arguments, **settings)
