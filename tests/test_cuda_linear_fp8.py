"""Matrix products of 8-bit factors: what is quantised, to the bit; the products of what was quantised, exactly."""

import ml_dtypes
import numpy as np
import pytest
from emulated import to_device, to_host
from products import launches
from table import KERNEL_DEVICE, emulating

import bp.ops.linear as ops
from bp.cuda import linear_fp8
from bp.cuda.choice import Problem, candidates, choose
from bp.cuda.epilogue import Epilogue
from bp.cuda.linear import gemm
from bp.cuda.product import WAYS, Matrices
from bp.ops.array import known_dtype
from bp.ops.device import find_device

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
nan, inf = np.nan, np.inf


def scale_of(x, most):
    """The largest power of two that keeps all of x within the format."""
    size = float(np.abs(x).max(initial=0))
    return 2.0 ** np.floor(np.log2(most / size)) if 0 < size < inf else 1.0


def in_8_bits(x, gradient):
    """x as the product sees it, in float64."""
    x = x.astype(np.float64)
    scale = scale_of(x, 57344 if gradient else 448)
    return (x * scale).astype(np.float32).astype(E5M2 if gradient else E4M3).astype(np.float64) / scale


def drawn(*shape, seed=0, dtype="bfloat16"):
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(known_dtype(dtype))


# Quantising -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 128), (65, 130), (70, 33), (3, 300), (130, 16)])
def test_bytes_and_scale(rows, columns, gradient, dtype):
    """As they lie and transposed; as ml_dtypes rounds them, to the last bit."""
    x = drawn(rows, columns, dtype=dtype)
    kind = E5M2 if gradient else E4M3
    scale = scale_of(x.astype(np.float64), 57344 if gradient else 448)
    expected = (x.astype(np.float32) * np.float32(scale)).astype(kind).view(np.uint8)
    for transposed in (False, True):
        with emulating(detector=True, seed=1):
            found, inverse = linear_fp8.quantize(Matrices.of(to_device(x)), transposed=transposed, gradient=gradient)
        lines, length = (columns, rows) if transposed else (rows, columns)
        assert found.shape == (lines, -(-length // 16) * 16)
        np.testing.assert_array_equal(to_host(found)[:, :length], expected.T if transposed else expected)
        np.testing.assert_array_equal(to_host(inverse), [1 / scale])


@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_not_finite_becomes_nan_and_does_not_set_the_scale_of_the_others(gradient):
    x = np.array([[1.0, nan, -2.0], [inf, 0.0, -inf]], np.float16)
    found, inverse = linear_fp8.quantize(Matrices.of(to_device(x)), transposed=False, gradient=gradient)
    values = to_host(found)[:, :3].view(E5M2 if gradient else E4M3).astype(np.float64)
    np.testing.assert_array_equal(values, [[1, nan, -2], [nan, 0, nan]])
    assert to_host(inverse) == 1


def test_zeros_and_the_smallest_numbers():
    for x in (np.zeros((2, 3), np.float16), np.full((2, 3), 2.0**-24, np.float16)):
        found, inverse = linear_fp8.quantize(Matrices.of(to_device(x)), transposed=False, gradient=False)
        values = to_host(found)[:, :3].view(E4M3).astype(np.float64) * to_host(inverse)
        np.testing.assert_array_equal(values, x)


def test_rows_that_lie_apart_and_begin_anywhere():
    whole = drawn(6, 40)
    view = to_device(whole).reshape(whole.size)[3 : 3 + 5 * 40 + 20]
    found, _ = linear_fp8.quantize(Matrices(view, 5, 20, 40), transposed=False, gradient=False)
    part = np.ascontiguousarray(whole[:5, 3:23])
    expected, _ = linear_fp8.quantize(Matrices.of(to_device(part)), transposed=False, gradient=False)
    np.testing.assert_array_equal(to_host(found)[:, :20], to_host(expected)[:, :20])


# Products ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "m", "n", "k"),
    [("nt", 129, 66, 130), ("nn", 70, 131, 40), ("tn", 5, 130, 300), ("nt", 1, 1, 1), ("tn", 64, 65, 1000)],
)
def test_products_of_what_was_quantised_are_exact(way, m, n, k, force):
    """Small integers have 8 bits, and their sums 24: so the result is that of the definition, to the last bit."""
    force("linear", "fp8")
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-2, 3, shape).astype(np.float16) for shape in ((m, k), (k, n)))
    transpose_a, transpose_b = WAYS[way]
    given = (
        to_device(np.ascontiguousarray(a.T) if transpose_a else a),
        to_device(np.ascontiguousarray(b.T) if transpose_b else b),
    )
    before = generator.integers(-3, 4, (m, n)).astype(np.float32)
    c = to_device(before)
    with emulating(detector=True, seed=2):
        names, _ = launches(
            lambda: gemm(
                *given, c, transpose_a=transpose_a, transpose_b=transpose_b, epilogue=Epilogue(alpha=0.5, beta=2.0)
            )
        )
    assert f"fp8_{'forward' if way == 'nt' else 'backward'}" in names
    expected = 0.5 * (a.astype(np.float64) @ b.astype(np.float64)) + 2 * before
    np.testing.assert_array_equal(to_host(c), expected)


def test_a_layer_in_both_directions(force):
    """Against float64 products of the factors as 8 bits hold them: what is left is the rounding of sums and result."""
    force("linear", "fp8")
    x, weight, bias, dy = drawn(20, 72), drawn(40, 72, seed=1), drawn(40, seed=2), drawn(20, 40, seed=3)
    on_device = [to_device(array) for array in (x, weight, bias, dy)]
    y = to_host(ops.linear(*on_device[:3])).astype(np.float64)
    dx = to_host(ops.linear_backward_input(on_device[3], on_device[1])).astype(np.float64)
    dweight, dbias = to_device(np.zeros((40, 72), np.float32)), to_device(np.zeros(40, np.float32))
    ops.linear_backward_parameters(on_device[3], on_device[0], dweight, dbias, False)
    forward, gradient = in_8_bits, lambda array: in_8_bits(array, True)
    x8, weight8, dy8 = forward(x, False), forward(weight, False), gradient(dy)
    for found, expected, digits in (
        (y, x8 @ weight8.T + bias.astype(np.float64), 8),
        (dx, dy8 @ weight8, 8),
        (to_host(dweight), dy8.T @ x8, 20),
    ):
        assert np.linalg.norm(found - expected) <= 2.0**-digits * np.linalg.norm(expected)
    np.testing.assert_allclose(to_host(dbias), dy.astype(np.float64).sum(0), rtol=1e-5)  # of dy as it was


def test_only_who_forces_it_gets_it(force):
    problem = Problem("linear", "nt", 4096, 4096, 4096, 1, "bfloat16", 16)
    assert choose(problem, 90).rung != "fp8"
    assert all(choice.rung != "fp8" for choice in candidates(problem, 90))
    force("linear", "fp8")
    assert choose(problem, 90).rung == "fp8"


def test_results_do_not_depend_on_the_number_of_blocks(force, monkeypatch):
    """One block that has all tiles, or parts, or some that share them: the ring of stages goes on from tile to tile."""
    force("linear", "fp8")
    for m, n, k in ((300, 400, 200), (66, 20, 2000)):
        a, b = to_device(drawn(m, k)), to_device(drawn(n, k, seed=1))
        results = []
        for blocks in (1, 2, 100):
            monkeypatch.setattr(type(find_device(KERNEL_DEVICE)), "multiprocessors", blocks)
            c = to_device(np.zeros((m, n), np.float32))
            with emulating(detector=True, seed=blocks % 3):
                gemm(a, b, c, transpose_b=True)
            results.append(to_host(c))
            np.testing.assert_array_equal(results[-1], results[0])


def test_sizes_beyond_2_to_the_31_go_to_another_rung(force, monkeypatch):
    """The kernel counts in int; here the limit is lower, so that a small matrix is beyond it."""
    force("linear", "fp8")
    monkeypatch.setattr(linear_fp8, "MOST", 8)
    for m, n, k in ((9, 2, 3), (2, 9, 3), (2, 3, 9)):
        a, b, c = (to_device(np.ones(shape, np.float16)) for shape in ((m, k), (k, n), (m, n)))
        names, _ = launches(lambda a=a, b=b, c=c: gemm(a, b, c))
        assert names == ["gemm_nn"]
        np.testing.assert_array_equal(to_host(c), np.full((m, n), k))


def test_an_empty_depth_and_a_batch_go_to_another_rung(force):
    force("linear", "fp8")
    for shapes in (((3, 0), (0, 2), (3, 2)), ((2, 3, 4), (2, 4, 5), (2, 3, 5))):
        a, b, c = (to_device(np.ones(shape, np.float16)) for shape in shapes)
        names, _ = launches(lambda a=a, b=b, c=c: gemm(a, b, c))
        assert names == ["gemm_nn"]
        np.testing.assert_array_equal(to_host(c), np.full(shapes[2], shapes[0][-1]))
