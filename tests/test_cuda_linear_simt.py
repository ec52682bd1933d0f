"""Matrix products on the rung of plain multiply-adds: edges, gaps, epilogues, parts and sums to the bit; its choice."""

import numpy as np
import pytest
from emulated import Wide, compare, to_device, to_host
from products import ADDED, beside, integers, launches, ternary
from table import emulating

import bp.cuda.linear as cuda
import bp.ops.linear as ops
from bp.cuda import choice, linear_simt, simt_tiles
from bp.cuda.choice import Problem
from bp.cuda.epilogue import ACTIVATIONS, Epilogue
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Source
from bp.cuda.product import WAYS, Matrices, Product
from bp.errors import ConfigurationError

inf, nan = np.inf, np.nan
ANY = "128x128 of 4"

# Around the edges of a tile of 64 or 128, of a slice of 16 and of the two stages; one.
SIZES = {
    name: [
        (4, 4, 4),
        (tile["ROWS"], tile["COLUMNS"], 16),
        (tile["ROWS"] - 4, tile["COLUMNS"] + 4, 12),
        (tile["ROWS"] + 4, tile["COLUMNS"] - 4, 36),
        (2 * tile["ROWS"] + 4, 8, 48),
    ]
    for name, tile in simt_tiles.TILES.items()
} | {ANY: [(1, 1, 1), (127, 129, 15), (129, 127, 17), (3, 130, 33), (128, 128, 16), (258, 5, 50)]}


def laid_out(array, stride=None):
    """Matrices (m, n) or (batch, m, n) on the device, `stride` from row to row, with NaN in between."""
    array = array if array.ndim == 3 else array[None]
    batch, rows, columns = array.shape
    stride = columns if stride is None else stride
    padded = np.full((batch, rows, stride), nan, np.float32)
    padded[:, :, :columns] = array
    return Matrices(to_device(padded.reshape(padded.size)), rows, columns, stride, batch, rows * stride)


def read(matrices):
    """What `laid_out` made, on the host; nobody has touched what lies between the rows."""
    padded = to_host(matrices.array).reshape(matrices.batch, matrices.rows, matrices.stride)
    assert np.isnan(padded[:, :, matrices.columns :]).all()
    return padded[:, :, : matrices.columns]


def turned(way, a, b):
    """The factors as they lie in memory."""
    transpose_a, transpose_b = WAYS[way]
    return a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b


def product(way, a, b, held=None, *, gap=0, seed=0, detector=True, **epilogue):
    """C of A (.., m, k) and B (.., k, n), which lie in memory as the way has it; held: what C holds before."""
    given = [laid_out(np.ascontiguousarray(x), x.shape[-1] + gap) for x in turned(way, a, b)]
    shape = (*a.shape[:-1], b.shape[-1])
    c = laid_out(np.full(shape, nan) if held is None else held, shape[-1] + gap)
    transpose_a, transpose_b = WAYS[way]
    with emulating(detector=detector, seed=seed):
        cuda.gemm(*given, c, transpose_a=transpose_a, transpose_b=transpose_b, epilogue=Epilogue(**epilogue))
    return read(c).reshape(shape)


# Exact products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tile", simt_tiles.TILES)
def test_products_of_integers_are_exact(tile, way, force):
    force("linear", f"simt:{tile}")
    for m, n, k in SIZES[tile]:
        a, b = integers(m, k), integers(k, n, seed=1)
        np.testing.assert_array_equal(product(way, a, b, seed=k % 3), a @ b, err_msg=f"{m} x {n} x {k}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tile", ["128x128", "128x64", ANY])
def test_without_asynchronous_copies(tile, way, force, monkeypatch):
    """As on compute capability 7.5, where elements wait in registers."""
    force("linear", f"simt:{tile}")
    variants = {name: tile | {"__CUDA_ARCH__": 750} for name, tile in simt_tiles.TILES.items()}
    source = Source("linear_simt", folder=kernel_folder(), T=("float",), variants=variants)
    kernels = {way: source.kernel(f"simt_{way}", flops="0", bytes="0") for way in WAYS}
    monkeypatch.setattr(linear_simt, "_kernels", kernels)
    for m, n, k in SIZES[tile]:
        a, b = integers(m, k), integers(k, n, seed=1)
        np.testing.assert_array_equal(product(way, a, b, seed=k % 3), a @ b, err_msg=f"{m} x {n} x {k}")


@pytest.mark.parametrize("way", WAYS)
def test_any_alignment(way, force):
    """Rows of whole vectors that begin anywhere; the elements around C stay as they are."""
    force("linear", "simt")
    m, n, k = 132, 72, 40
    a, b = integers(m, k), integers(k, n, seed=1)
    for shift in (1, 4):
        given = []
        for x in turned(way, a, b):
            flat = to_device(np.concatenate([np.full(shift, nan), x.ravel()]), "float32")
            given.append(flat[shift:].reshape(x.shape))
        around = to_device(np.full(m * n + 2 * shift, 7.0), "float32")
        transpose_a, transpose_b = WAYS[way]
        with emulating(detector=True, seed=shift):
            cuda.gemm(*given, around[shift:-shift].reshape(m, n), transpose_a=transpose_a, transpose_b=transpose_b)
        host = to_host(around)
        np.testing.assert_array_equal(host[shift:-shift].reshape(m, n), a @ b)
        assert (host[:shift] == 7).all() and (host[-shift:] == 7).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("sizes", "gap"), [((132, 68, 20), 0), ((132, 68, 20), 4), ((67, 130, 21), 3)])
def test_batches_with_gaps(sizes, gap, way, force):
    force("linear", "simt")
    m, n, k = sizes
    a, b = integers(3, m, k), integers(3, k, n, seed=1)
    np.testing.assert_array_equal(product(way, a, b, gap=gap), a @ b)


def test_products_that_begin_within_a_vector(force):
    """Rows lie at multiples of 16 bytes within a result, but only the first result of the two does."""
    force("linear", "simt")
    a, b = integers(2, 5, 12), integers(2, 12, 8, seed=1)
    flat = to_device(np.full(41 + 40, nan), "float32")
    cuda.gemm(laid_out(a), laid_out(b), Matrices(flat, 5, 8, 8, 2, 41))
    host = to_host(flat)
    np.testing.assert_array_equal(host[:40].reshape(5, 8), a[0] @ b[0])
    np.testing.assert_array_equal(host[41:].reshape(5, 8), a[1] @ b[1])
    assert np.isnan(host[40])


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_end_within_a_vector(way, force):
    """They begin at multiples of 16 bytes, but what lies behind them is not theirs to read."""
    force("linear", "simt")
    a, b = integers(5, 6), integers(6, 7, seed=1)
    given = [laid_out(np.ascontiguousarray(x), 8) for x in turned(way, a, b)]
    c = laid_out(np.zeros((5, 7)), 8)
    task = Product(way, *given, c)
    assert task.problem.alignment == 16 and choice.choose(task.problem, 80) == choice.Choice("simt", ANY)
    cuda.multiply(task)
    np.testing.assert_array_equal(read(c)[0], a @ b)


def test_a_matrix_that_all_products_have_in_common(force):
    force("linear", "simt")
    x, weight = integers(3, 9, 40), integers(24, 40, seed=1)
    y = laid_out(np.zeros((3, 9, 24)))
    cuda.gemm(laid_out(x), Matrices(to_device(weight), 24, 40, 40, 3, 0), y, transpose_b=True)
    np.testing.assert_array_equal(read(y), x @ weight.T)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tile", simt_tiles.TILES)
def test_one_hot_factors_pick_elements(tile, way, force):
    """Each element of B alone: nothing is read from another place, and nothing is rounded."""
    force("linear", f"simt:{tile}")
    generator = np.random.default_rng(0)
    b = generator.standard_normal((68, 136)).astype(np.float32)
    chosen = generator.integers(0, 68, 140)
    np.testing.assert_array_equal(product(way, np.eye(68, dtype=np.float32)[chosen], b), b[chosen])


@pytest.mark.parametrize("way", WAYS)
def test_the_order_of_threads_does_not_matter(way, force):
    force("linear", "simt")
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((132, 300)), generator.standard_normal((300, 260))
    results = [product(way, a, b, seed=seed, detector=False) for seed in range(3)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# Parts of the depth, sums of columns, digits -----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("m", "n", "k"), [(68, 132, 700), (5, 66, 1290)])
def test_a_cut_depth(m, n, k, way, force):
    force("linear", "simt")
    a, b, bias, before = ternary(m, k), ternary(k, n, seed=1), integers(n, seed=2), integers(m, n, seed=3)
    results = []
    given = {"bias": to_device(bias), "activation": "relu", "beta": 1.0}
    names, found = launches(lambda: results.append(product(way, a, b, before, **given)))
    assert names[:1] == [f"simt_{way}"] and names[1:] in ADDED and found[0].grid[1] > 1
    np.testing.assert_array_equal(results[0], np.maximum(a @ b + bias, 0) + before)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", [5, 100, 300])
@pytest.mark.parametrize(
    ("tile", "out", "inside"),
    [
        ("128x128", 132, 260),  # tiles beyond the first column of them
        ("64x128", 68, 20),
        ("128x64", 140, 12),
        (ANY, 65, 72),  # 65 sums behind each part, of whose rows the next one begins within a vector
    ],
)
def test_the_bias_gradient_comes_with_the_weight_gradient(tile, out, inside, rows, accumulate, force):
    force("linear", f"simt:{tile}")
    dy, x = integers(rows, out), integers(rows, inside, seed=1)
    before = integers(out, inside, seed=2), integers(out, seed=3)
    dweight, dbias = (to_device(array) for array in before)
    given = to_device(dy), to_device(x)
    with emulating(detector=True, seed=rows % 3):
        names, _ = launches(lambda: ops.linear_backward_parameters(*given, dweight, dbias, accumulate))
    assert names[:1] == ["simt_tn"] and names[1:] in (([],) if rows < 256 else ADDED)
    np.testing.assert_array_equal(to_host(dweight), dy.T @ x + accumulate * before[0])
    np.testing.assert_array_equal(to_host(dbias), dy.sum(0) + accumulate * before[1])


def test_the_longest_run_of_equal_terms_keeps_its_digits(force, monkeypatch):
    """Of a term whose sums are nearly all rounded to the same side: twice as many of it are beyond the tolerance."""
    force("linear", "simt")
    monkeypatch.setattr(choice, "_ENOUGH_BLOCKS", 1)
    for depth, expected in (
        (simt_tiles.LONGEST, ["simt_nt"]),
        (simt_tiles.LONGEST + 4, ["simt_nt", "add_parts"]),
        (20_000, ["simt_nt", "add_parts"]),
    ):
        x, weight = np.full((2, depth), np.float32(1.0216064)), np.ones((3, depth))
        names, _ = launches(lambda x=x, weight=weight: compare(ops.linear, x, weight, None, length=x.shape[1]))
        assert names == expected


@pytest.mark.parametrize(("rows", "features"), [(70_000, 2), (9_000, 65)])
def test_a_long_sum_of_equal_terms_keeps_its_digits(rows, features, force):
    force("linear", "simt")
    dy, x = np.full((rows, features), 0.1), np.full((rows, 2), 1.7)
    dweight, dbias = Wide(np.zeros((features, 2))), Wide(np.zeros(features))
    compare(ops.linear_backward_parameters, dy, x, dweight, dbias, False, length=rows)


# Epilogues --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [136, 13])
def test_alpha_and_beta(n, force):
    """n: rows of C at multiples of 16 bytes, or not."""
    force("linear", "simt")
    a, b, before = integers(70, 40), integers(40, n, seed=1), integers(70, n, seed=2)
    np.testing.assert_array_equal(product("nn", a, b, before, alpha=2.0, beta=0.5), 2 * (a @ b) + 0.5 * before)
    np.testing.assert_array_equal(product("nn", a, b, alpha=0.5), 0.5 * (a @ b))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "given", ["bias before", "bias mask", "bias residual", "bias before mask residual", "kept", "kept mask residual"]
)
@pytest.mark.parametrize(("way", "n"), [("nt", 136), ("nn", 13)])
def test_epilogues(activation, given, way, n, force):
    """Sums of integers are exact, so what follows is the same to the bit as on the rung below.

    n: rows at multiples of 16 bytes, or not; then the bias begins at no such multiple either.
    """
    m, k = 68, 24
    results = []
    for rung in ("simt", "tiled"):
        force("linear", rung)
        before = to_device(np.zeros((m, n)), "float32")
        more = beside(given, m, n) | ({"before": before} if "before" in given else {})
        a, b = integers(m, k) / 4, integers(k, n, seed=1) / 4
        c = product(way, a, b, detector=rung == "simt", seed=1, activation=activation, **more)
        results.append((c, to_host(before)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


# What is empty, large, or not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize(("m", "n", "k"), [(132, 68, 20), (65, 66, 17), (4, 8, 300)])
def test_what_is_not_finite_reaches_its_row_and_column_and_nothing_else(m, n, k, bad, way, force):
    """In the last row and column, beside what stands for lines beyond them, and at the end of the depth."""
    force("linear", "simt")
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    a[m - 1, k - 1] = b[k - 1, n - 1] = bad
    expected = np.full((m, n), np.float32(k))
    expected[m - 1], expected[:, n - 1] = bad, bad
    expected[m - 1, n - 1] = bad * bad
    np.testing.assert_array_equal(product(way, a, b), expected)


@pytest.mark.parametrize("way", WAYS)
def test_empty_products(way, force):
    force("linear", "simt")
    for m, n in ((0, 8), (8, 0), (0, 0)):
        assert product(way, integers(m, 8), integers(8, n)).shape == (m, n)
    none = np.zeros((3, 0), np.float32), np.zeros((0, 8), np.float32)
    for bias in (None, to_device(np.arange(8.0), "float32")):
        got = product(way, *none, np.full((3, 8), 9), bias=bias, beta=1.0)
        np.testing.assert_array_equal(got, np.broadcast_to((np.arange(8) if bias is not None else 0) + 9, (3, 8)))


@pytest.mark.parametrize("tile", ["128x128", "128x64", ANY])
@pytest.mark.parametrize(("rows", "inside", "out"), [(2**26 + 5, 36, 4), (2**25 + 5, 4, 72)])
def test_elements_beyond_2_to_the_31(rows, inside, out, tile, force, huge):
    """The last rows of matrices of more than 2^31 elements, on the way in and on the way out."""
    force("linear", f"simt:{tile}")
    x, last, weight = huge(rows, inside), ternary(2, inside), ternary(out, inside, seed=1)
    x[rows - 2 : rows] = last
    y = ops.linear(x, to_device(weight), None)
    # The last block computes the last columns of the last rows.
    np.testing.assert_array_equal(to_host(y[rows - 2 : rows])[:, -4:], (last @ weight.T)[:, -4:])


# The choice -------------------------------------------------------------------------------------------------


def problem(m, n, k, way="nt", batch=1, dtype="float32", alignment=16):
    return Problem("linear", way, m, n, k, batch, dtype, alignment)


def test_where_the_table_takes_it(force):
    """Where its tiles are full and enough; small products stay on the tiles of 64 x 64."""
    force("linear", "")
    for sizes, tile in (
        ((4096, 4096, 4096), "128x128"),
        ((2048, 64, 512), None),  # 16 tiles in 4 parts are not enough
        ((50_000, 64, 512), "128x64"),
        ((64, 50_000, 512), "64x128"),
        ((4096, 4096, 4095), ANY),
        ((64, 64, 10**6), None),  # half of each tile would be empty
        ((128, 128, 10**5), "128x128"),  # in parts
        ((130, 130, 10**5), None),
        ((512, 128, 64), None),
    ):
        chosen = choice.choose(problem(*sizes), 80)
        assert (chosen.variant if chosen.rung == "simt" else None) == tile, sizes
    for empty in ((0, 8, 8), (8, 0, 8)):
        assert choice.choose(problem(*empty), 80).rung == "tiled"
    assert choice.choose(problem(4096, 4096, 64), 75).rung == "simt"
    assert choice.choose(problem(128, 128, 64, batch=200), 80).rung == "simt"
    assert choice.choose(problem(4096, 4096, 4), 80).rung == "naive"
    for dtype in ("tf32", "float16", "bfloat16"):
        assert choice.choose(problem(4096, 4096, 4096, dtype=dtype), 75).rung != "simt"


@pytest.mark.parametrize("way", WAYS)
def test_the_tile_that_computes_the_most(way):
    for m, n, tile in ((256, 256, "128x128"), (256, 64, "128x64"), (64, 256, "64x128"), (256, 192, "128x64")):
        assert simt_tiles.best(m, n, True) == tile
    assert simt_tiles.best(256, 64, False) == ANY
    assert simt_tiles.possible(True) == tuple(simt_tiles.TILES) and simt_tiles.possible(False) == (ANY,)
    odd = {"nt": (1, 1, 4), "nn": (1, 4, 4), "tn": (4, 4, 1)}[way]
    assert simt_tiles.whole_vectors(way, *odd) and not simt_tiles.whole_vectors(way, *(size + 1 for size in odd))


def test_a_tile_that_cannot_compute_this(force):
    force("linear", "simt:128x128")
    assert choice.choose(problem(4, 4, 4), 80).variant == "128x128"
    for refused in (problem(4, 4, 5), problem(4, 4, 4, alignment=4)):
        with pytest.raises(ConfigurationError, match="expected a tile of simt for this product"):
            choice.choose(refused, 80)
    with pytest.raises(ConfigurationError, match=r"a product in fp16 on .*: fp32 only"):
        choice.choose(problem(4, 4, 4, dtype="float16"), 80)


def test_what_a_launch_costs(force):
    force("linear", "simt")
    dy, x = to_device(np.zeros((60, 8)), "float32"), to_device(np.zeros((60, 20)), "float32")
    dweight = to_device(np.zeros((8, 20)), "float32")
    _, found = launches(lambda: ops.linear_backward_parameters(dy, x, dweight, None, False))
    assert found[0].flops == 2 * 60 * 8 * 20 and found[0].nbytes == 4 * (60 * 8 + 60 * 20 + 8 * 20)
