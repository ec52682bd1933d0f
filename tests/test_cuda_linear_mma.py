"""Matrix products on the tensor cores of mma.sync: tile edges, gaps, epilogues, parts, sums, rounding; its choice."""

import contextlib

import numpy as np
import pytest
from emulated import to_device, to_host
from products import ADDED, beside, in_tf32, integers, laid_out, launches, read_back, ternary, turned
from table import KERNEL_DEVICE, emulating

import bp.cuda.linear as cuda
import bp.ops.linear as ops
from bp.checking import tolerance
from bp.cuda import choice, linear_mma, mma_tiles
from bp.cuda.choice import Problem
from bp.cuda.epilogue import ACTIVATIONS, Epilogue
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Source
from bp.cuda.product import WAYS, Matrices
from bp.errors import ConfigurationError
from bp.ops.device import find_device

inf, nan = np.inf, np.nan
DTYPES = ("tf32", "float16", "bfloat16")

# Every tile, and every dtype in those of one warp's smallest and largest part.
CASES = [(tile, dtype) for tile in ("128x128", "32x32", "32x32 of 4") for dtype in DTYPES] + [
    ("128x64", "bfloat16"),
    ("64x128", "float16"),
    ("64x64", "tf32"),
    ("16x128", "bfloat16"),
    ("32x128", "tf32"),
    ("128x64 of 4", "float16"),
]


def sizes(tile, dtype):
    """Around the edges of a tile, of a slice, and of the slices that are on their way at once."""
    t = mma_tiles.TILES[tile]
    depth = t.slice // (4 if dtype == "tf32" else 2)
    return [
        (1, 1, 1),
        (t.rows, t.columns, depth),
        (t.rows + 1, t.columns - 1, t.stages * depth - depth + 1),
        (t.rows - 1, t.columns + 9, t.stages * depth + depth - 1),
        (5, 2 * t.columns + 8, t.stages * depth),
    ]


def watched(tile, dtype):
    """Whether a tile runs under the detector, here always or never: each time is one to compile."""
    return tile not in ("128x128", "128x64 of 4") or dtype == "bfloat16"


def precision(dtype):
    return find_device(KERNEL_DEVICE).running("tf32") if dtype == "tf32" else contextlib.nullcontext()


def stored(dtype):
    return "float32" if dtype == "tf32" else dtype


def laid(array, dtype, alignment=16):
    """In rows that begin at multiples of so many bytes, and of no more."""
    vector, word = (4, 1) if dtype == "tf32" else (8, 2)
    columns = array.shape[-1]
    return laid_out(array, stored(dtype), (-columns if alignment == 16 else word - columns) % vector)


def product(way, a, b, dtype, held=None, *, alignment=16, c="float32", gap=0, seed=0, detector=True, **epilogue):
    """C of A (.., m, k) and B (.., k, n), which lie in memory as the way has it; held: what C holds before."""
    given = [laid(x, dtype, alignment) for x in turned(way, a, b)]
    shape = (*a.shape[:-1], b.shape[-1])
    result = laid_out(np.full(shape, nan) if held is None else held, c, gap)
    transpose_a, transpose_b = WAYS[way]
    with precision(dtype), emulating(detector=detector, seed=seed):
        cuda.gemm(*given, result, transpose_a=transpose_a, transpose_b=transpose_b, epilogue=Epilogue(**epilogue))
    return read_back(result).reshape(shape)


# Exact products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("tile", "dtype"), CASES)
def test_products_of_integers_are_exact(tile, dtype, way, force):
    force("linear", f"mma:{tile}")
    alignment = mma_tiles.TILES[tile].alignment
    for m, n, k in sizes(tile, dtype):
        a, b = integers(m, k), integers(k, n, seed=1)
        given = {"alignment": alignment, "gap": m % 2, "seed": k % 3, "detector": watched(tile, dtype)}
        np.testing.assert_array_equal(product(way, a, b, dtype, **given), a @ b, err_msg=f"{m} x {n} x {k}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tile", ["128x128", "64x64", "32x32 of 4"])
def test_without_asynchronous_copies(tile, way, force, monkeypatch):
    """As on compute capability 7.5, where slices pass through registers."""
    force("linear", f"mma:{tile}")
    variants = {tile: mma_tiles.VARIANTS[tile] | {"__CUDA_ARCH__": 750}}
    source = Source("linear_mma", folder=kernel_folder(), T=("float16",), variants=variants)
    kernels = {way: source.kernel(f"mma_{way}", flops="0", bytes="0", shared=mma_tiles.SHARED) for way in WAYS}
    monkeypatch.setattr(linear_mma, "_kernels", kernels)
    alignment = mma_tiles.TILES[tile].alignment
    for m, n, k in sizes(tile, "float16"):
        a, b = integers(m, k), integers(k, n, seed=1)
        given = {"alignment": alignment, "seed": k % 3, "detector": watched(tile, "float16")}
        np.testing.assert_array_equal(product(way, a, b, "float16", **given), a @ b, err_msg=f"{m} x {n} x {k}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("n", [40, 33])
def test_results_in_the_dtype_of_the_factors(n, accumulate, way, dtype, force):
    """n: rows of C at multiples of 16 bytes, or not."""
    force("linear", "mma:32x32")
    a, b, before = ternary(35, 50), ternary(50, n, seed=1), integers(35, n, seed=2)
    got = product(way, a, b, dtype, before, c=stored(dtype), beta=float(accumulate))
    np.testing.assert_array_equal(got, a @ b + accumulate * before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "gap"), [(40, 0), (40, 8), (40, 3), (35, 5)])
def test_batches_with_gaps(n, gap, way, dtype, force):
    """Matrices in a row, whose rows lie apart; gap: of C."""
    force("linear", "mma:32x32")
    a, b = integers(3, 33, 34), integers(3, 34, n, seed=1)
    np.testing.assert_array_equal(product(way, a, b, dtype, gap=gap, seed=1), a @ b)


def test_results_a_batch_of_which_begins_anywhere(force):
    """Rows of C are whole vectors, but the second matrix begins within one."""
    force("linear", "mma:32x32")
    a, b = integers(2, 8, 16), integers(2, 16, 8, seed=1)
    c = to_device(np.full(2 * 64 + 1, nan), "float32")
    given = [laid(x, "bfloat16") for x in (a, b)]
    cuda.gemm(*given, Matrices(c, 8, 8, 8, 2, 65))
    host = to_host(c)
    assert np.isnan(host[64])
    np.testing.assert_array_equal(np.stack([host[:64], host[65:]]).reshape(2, 8, 8), a @ b)


@pytest.mark.parametrize("way", WAYS)
def test_a_matrix_that_all_products_have_in_common(way, force):
    force("linear", "mma:32x32")
    a, b = integers(3, 8, 40), integers(40, 24, seed=1)
    left, right = turned(way, a, b)
    y = laid_out(np.zeros((3, 8, 24)))
    shared = Matrices(to_device(np.ascontiguousarray(right), "bfloat16"), *right.shape, right.shape[1], 3, 0)
    transpose_a, transpose_b = WAYS[way]
    cuda.gemm(laid(left, "bfloat16"), shared, y, transpose_a=transpose_a, transpose_b=transpose_b)
    np.testing.assert_array_equal(read_back(y), a @ b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("tile", "dtype"), CASES)
def test_one_hot_factors_pick_elements(tile, dtype, way, force):
    """Each element of B alone: nothing is read from another place."""
    force("linear", f"mma:{tile}")
    generator = np.random.default_rng(0)
    b = to_host(to_device(generator.standard_normal((66, 136)), stored(dtype))).astype(np.float32)
    b = in_tf32(b).astype(np.float32) if dtype == "tf32" else b
    chosen = generator.integers(0, 66, 131)
    a = np.eye(66, dtype=np.float32)[chosen]
    given = {"alignment": mma_tiles.TILES[tile].alignment, "detector": watched(tile, dtype)}
    got = product(way, a, b, dtype, **given)
    np.testing.assert_array_equal(got, b[chosen])


@pytest.mark.parametrize("way", WAYS)
def test_the_order_of_threads_does_not_matter(way, force):
    force("linear", "mma:32x32")
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((40, 300)), generator.standard_normal((300, 70))
    results = [product(way, a, b, "bfloat16", seed=seed) for seed in range(3)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# Rounding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_factors_are_rounded_to_tf32(way, force):
    """To the nearest, ties away from zero, on both sides; not cut off."""
    force("linear", "mma:32x32")
    generator = np.random.default_rng(0)
    b = generator.standard_normal((32, 32)).astype(np.float32)
    ties = (np.float32(1) + np.arange(32, dtype=np.float32) * np.float32(2.0**-10)) + np.float32(2.0**-11)
    b[:, 0], b[:, 1] = ties, -ties
    identity = np.eye(32, dtype=np.float32)
    np.testing.assert_array_equal(product(way, identity, b, "tf32"), in_tf32(b))
    np.testing.assert_array_equal(product(way, b, identity, "tf32"), in_tf32(b))


@pytest.mark.parametrize("way", WAYS)
def test_a_nan_of_any_bits_stays_one_in_tf32(way, force):
    """Added to the bits of such a one, half of a last place would give a zero."""
    force("linear", "mma:32x32")
    a = np.ones((4, 8), np.float32)
    a.view(np.uint32)[1, 3], a.view(np.uint32)[2, 5] = 0x7FFFFFFF, 0xFFFFFFFF
    got = product(way, a, np.ones((8, 4), np.float32), "tf32")
    np.testing.assert_array_equal(np.isnan(got), np.repeat([[False], [True], [True], [False]], 4, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_longest_run_of_equal_terms_keeps_its_digits(dtype, force, monkeypatch):
    """Where each addition rounds the same way, the error grows with the length of a run; the next longer one is cut."""
    force("linear", "mma:32x32")
    monkeypatch.setattr(mma_tiles, "_SHORTEST", 10**9)  # no cut but that of the longest run
    mma_tiles._cut.cache_clear()
    longest = mma_tiles._LONGEST[dtype]
    for depth, kernels in ((longest, ["mma_nt"]), (longest + 8, ["mma_nt", "add_parts"])):
        for value in (1.15, 2.2, 3.9):
            a, b = np.full((2, depth), value), np.ones((depth, 3))
            term = np.float64(to_host(to_device(np.array([value]), stored(dtype)))[0])
            term = in_tf32(np.array([term]))[0] if dtype == "tf32" else term
            results = []
            found, _ = launches(
                lambda a=a, b=b, results=results: results.append(product("nt", a, b, dtype, detector=False))
            )
            assert found == kernels
            np.testing.assert_allclose(results[0], depth * term, rtol=tolerance("float32", depth))
    mma_tiles._cut.cache_clear()


# Parts of the depth, and sums of columns --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [24, 21])
def test_a_cut_depth(n, way, dtype, force):
    force("linear", "mma:32x32")
    m, k = 35, 3001
    a, b, bias, before = ternary(m, k), ternary(k, n, seed=1), integers(n, seed=2), integers(m, n, seed=3)
    results = []
    given = {"bias": to_device(bias, stored(dtype)), "activation": "relu", "beta": 1.0, "gap": 1, "seed": 1}
    names, found = launches(lambda: results.append(product(way, a, b, dtype, before, **given)))
    assert names[:1] == [f"mma_{way}"] and names[1:] in ADDED and found[0].grid[1] > 1
    np.testing.assert_array_equal(results[0], np.maximum(a @ b + bias, 0) + before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", [5, 100, 1500])
@pytest.mark.parametrize(
    ("tile", "out", "inside"),
    [
        ("32x32", 72, 80),  # tiles beyond the first column of them
        ("128x128", 136, 8),
        ("16x128", 8, 136),
        ("32x32 of 4", 34, 24),  # 34 sums behind each part, of whose rows the next one begins within a vector
    ],
)
def test_the_bias_gradient_comes_with_the_weight_gradient(tile, out, inside, rows, accumulate, dtype, force):
    force("linear", f"mma:{tile}")
    dy, x = integers(rows, out), integers(rows, inside, seed=1)
    before = integers(out, inside, seed=2), integers(out, seed=3)
    dweight, dbias = (to_device(array, "float32") for array in before)
    given = to_device(dy, dtype), to_device(x, dtype)
    with emulating(detector=watched(tile, dtype), seed=rows % 3):
        names, _ = launches(lambda: ops.linear_backward_parameters(*given, dweight, dbias, accumulate))
    assert names[:1] == ["mma_tn"] and names[1:] in (ADDED if rows == 1500 else ([],))
    np.testing.assert_array_equal(to_host(dweight), dy.T @ x + accumulate * before[0])
    np.testing.assert_array_equal(to_host(dbias), dy.sum(0) + accumulate * before[1])


def test_an_infinity_reaches_the_sum_of_its_column_alone(force):
    """The sums are products with ones: no zero may meet it."""
    force("linear", "mma:32x32")
    dy, x = np.ones((40, 40)), np.ones((40, 8))
    dy[7, 3], dy[39, 39] = inf, nan
    dweight, dbias = to_device(np.zeros((40, 8)), "float32"), to_device(np.zeros(40), "float32")
    ops.linear_backward_parameters(to_device(dy, "bfloat16"), to_device(x, "bfloat16"), dweight, dbias, False)
    np.testing.assert_array_equal(to_host(dbias), dy.sum(0))


# Epilogues --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [136, 20])
def test_alpha_and_beta(n, c, force):
    """n: rows of C at multiples of 16 bytes, or not."""
    force("linear", "mma:32x32")
    a, b, before = ternary(36, 40), ternary(40, n, seed=1), integers(36, n, seed=2)
    given = {"c": c, "alpha": 2.0, "beta": 0.5}
    np.testing.assert_array_equal(product("nn", a, b, "bfloat16", before, **given), 2 * (a @ b) + 0.5 * before)
    np.testing.assert_array_equal(product("nn", a, b, "bfloat16", c=c, alpha=0.5), 0.5 * (a @ b))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "given", ["bias before", "bias mask", "bias residual", "bias before mask residual", "kept", "kept mask residual"]
)
@pytest.mark.parametrize(
    ("dtype", "n", "c"), [("bfloat16", 40, "bfloat16"), ("bfloat16", 40, "float32"), ("float16", 13, "float16")]
)
def test_epilogues(activation, given, dtype, n, c, force):
    """Sums of integers are exact, so what follows is the same to the bit as on the rung below.

    n: rows at multiples of 16 bytes, or not; then the bias begins at an odd address too.
    """
    m, k = 35, 24
    results = []
    for rung in ("mma:32x32", "tiled"):
        force("linear", rung)
        before = to_device(np.zeros((m, n)), dtype)
        more = beside(given, m, n, dtype) | ({"before": before} if "before" in given else {})
        a, b = integers(m, k) / 4, integers(k, n, seed=1) / 4
        found = product("nt", a, b, dtype, c=c, detector=rung != "tiled", seed=1, activation=activation, **more)
        results.append((found, to_host(before).astype(np.float32)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


# What is empty, large, or not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_reaches_its_row_and_column_and_nothing_else(bad, way, dtype, force):
    """In the last row and column, beside the zeros of the tile's padding, and at the end of the depth."""
    force("linear", "mma:32x32")
    for m, n, k in ((33, 35, 17), (3, 2, 600)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        a[m - 1, k - 1] = b[k - 1, n - 1] = bad
        expected = np.full((m, n), np.float32(k))
        expected[m - 1], expected[:, n - 1] = bad, bad
        expected[m - 1, n - 1] = bad * bad
        np.testing.assert_array_equal(product(way, a, b, dtype), expected)


@pytest.mark.parametrize("way", WAYS)
def test_empty_products(way, force):
    force("linear", "mma:32x32")
    for m, n in ((0, 8), (8, 0), (0, 0)):
        assert product(way, integers(m, 8), integers(8, n), "bfloat16").shape == (m, n)
    none = np.zeros((3, 0), np.float32), np.zeros((0, 8), np.float32)
    for bias in (None, to_device(np.arange(8.0), "bfloat16")):
        got = product(way, *none, "bfloat16", np.full((3, 8), 9), bias=bias, beta=1.0)
        np.testing.assert_array_equal(got, np.broadcast_to((np.arange(8) if bias is not None else 0) + 9, (3, 8)))


def test_nothing_to_add_up_for_the_bias_gradient(force):
    force("linear", "mma:32x32")
    dweight, dbias = to_device(np.ones((8, 16)), "float32"), to_device(np.ones(8), "float32")
    nothing = to_device(np.zeros((0, 8)), "bfloat16"), to_device(np.zeros((0, 16)), "bfloat16")
    ops.linear_backward_parameters(*nothing, dweight, dbias, False)
    assert not to_host(dweight).any() and not to_host(dbias).any()


@pytest.mark.parametrize("tile", ["128x128", "32x32"])
@pytest.mark.parametrize(("rows", "inside", "out"), [(2**26 + 5, 36, 4), (2**25 + 5, 4, 72)])
def test_elements_beyond_2_to_the_31(rows, inside, out, tile, force, huge, tf32):
    """The last rows of matrices of more than 2^31 elements, on the way in and on the way out."""
    force("linear", f"mma:{tile}")
    x, last, weight = huge(rows, inside), ternary(2, inside), ternary(out, inside, seed=1)
    x[rows - 2 : rows] = last
    y = ops.linear(x, to_device(weight), None)
    # The last block computes the last columns of the last rows.
    np.testing.assert_array_equal(to_host(y[rows - 2 : rows])[:, -4:], (last @ weight.T)[:, -4:])


# The choice -------------------------------------------------------------------------------------------------


def problem(m, n, k, dtype="bfloat16", alignment=16):
    return Problem("linear", "nt", m, n, k, 1, dtype, alignment)


def test_where_the_table_takes_it(force):
    force("linear", "")
    for sizes, tile in (
        ((4096, 4096, 4096), "128x128"),
        ((16384, 768, 768), "128x128"),
        ((100_000, 64, 576), "128x64"),
        ((64, 576, 100_000), "64x128"),
        ((1024, 1024, 1024), "64x64"),
        ((16, 4096, 4096), "16x128"),
        ((32, 4096, 4096), "32x128"),
        ((64, 64, 64), "32x32"),
    ):
        for dtype in DTYPES:
            assert choice.choose(problem(*sizes, dtype), 80) == choice.Choice("mma", tile), sizes
    assert choice.choose(problem(4096, 4096, 4096, alignment=4), 80).variant == "128x64 of 4"
    assert choice.choose(problem(5, 6, 7, alignment=4), 80).variant == "32x32 of 4"
    assert choice.choose(problem(4096, 4096, 4096, alignment=2), 80).rung == "tiled"
    assert choice.choose(problem(4096, 4096, 4, alignment=16), 80).rung == "naive"
    assert choice.choose(problem(4096, 4096, 4096, "float32"), 80).rung != "mma"
    assert choice.choose(problem(4096, 4096, 4096, "float16"), 75).rung == "mma"
    for dtype in ("bfloat16", "tf32"):
        assert choice.choose(problem(4096, 4096, 4096, dtype), 75).rung != "mma"


def test_what_it_refuses(force):
    force("linear", "mma")
    for dtype in ("bfloat16", "tf32"):
        with pytest.raises(ConfigurationError, match=r"on compute capability 7\.5: needs compute capability 8\.0"):
            choice.choose(problem(9, 9, 9, dtype), 75)
    with pytest.raises(ConfigurationError, match="needs rows at multiples of 4 bytes, here of 2"):
        choice.choose(problem(9, 9, 9, alignment=2), 80)
    force("linear", "mma:128x128")
    with pytest.raises(ConfigurationError, match=r"expected a tile of mma .*\(128x64 of 4, 32x32 of 4\)"):
        choice.choose(problem(9, 9, 9, alignment=4), 80)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", mma_tiles.TILES)
def test_parts_leave_nothing_out(tile, dtype):
    for m, n in ((1, 1), (16, 4096), (70, 66), (4096, 4096)):
        for k in (0, 1, 63, 64, 65, 1000, 4097, 10**5, 10**7):
            part = mma_tiles.part(tile, m, n, k, 1, dtype)
            assert part % 64 == 0 and 0 < part <= mma_tiles._LONGEST[dtype]


def test_few_rows_keep_the_whole_gpu_busy():
    """With M of 16 to 128 the bytes of W are the limit: blocks for all multiprocessors, W read once or twice."""
    for m in (16, 32, 64, 128):
        tile = mma_tiles.tile(m, 4096, 4096, 1, "bfloat16", 16)
        shape, part = mma_tiles.TILES[tile], mma_tiles.part(tile, m, 4096, 4096, 1, "bfloat16")
        across = -(-4096 // shape.columns)
        assert -(-m // shape.rows) == 1 and 200 <= across * -(-4096 // part) <= 264


def test_what_a_launch_costs(force):
    force("linear", "mma")
    dy, x = to_device(np.zeros((60, 8)), "bfloat16"), to_device(np.zeros((60, 24)), "bfloat16")
    dweight = to_device(np.zeros((8, 24)), "float32")
    _, found = launches(lambda: ops.linear_backward_parameters(dy, x, dweight, None, False))
    assert found[0].flops == 2 * 60 * 8 * 24 and found[0].nbytes == 2 * (60 * 8 + 60 * 24) + 4 * 8 * 24
