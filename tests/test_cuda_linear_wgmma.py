"""Matrix products on the rung of wgmma: edges, epilogues, parts and sums to the bit, and what its pipeline forbids."""

import re
import subprocess

import numpy as np
import products
import pytest
from emulated import sparse, to_device, to_host
from faulty import with_faults
from planted import needs_nvdisasm, needs_nvrtc
from products import ADDED, beside, integers, launches, read_back, ternary, turned
from table import KERNEL_DEVICE, assert_close, emulating

import bp.cuda.linear as cuda
import bp.ops.linear as ops
from bp.checking import tolerance
from bp.cuda import choice, disassembler, linear_wgmma, nvrtc, wgmma_tiles
from bp.cuda.choice import Problem
from bp.cuda.emulator.engine import KernelFault
from bp.cuda.epilogue import ACTIVATIONS, Epilogue
from bp.cuda.files import kernel_folder
from bp.cuda.product import WAYS, Matrices, Product
from bp.errors import ConfigurationError

inf, nan = np.inf, np.nan
SMALL = "64x128"  # the tile that costs the emulator least: 64 x 128, slices of 64 of the depth, 8 stages


pytestmark = pytest.mark.usefixtures("on_hopper")


def laid_out(array, dtype, gap=0):
    """As that of products.py, rows at multiples of 16 bytes."""
    return products.laid_out(array, dtype, gap + -array.shape[-1] % 8)


def gemm(way, a, b, c, **epilogue):
    transpose_a, transpose_b = WAYS[way]
    cuda.gemm(a, b, c, transpose_a=transpose_a, transpose_b=transpose_b, epilogue=Epilogue(**epilogue))


def product(way, a, b, held=None, *, dtype="bfloat16", c="float32", gap=0, seed=0, detector=True, **epilogue):
    """C of A (.., m, k) and B (.., k, n), which lie in memory as the way has it; held: what C holds before."""
    given = [laid_out(np.ascontiguousarray(x), dtype, gap) for x in turned(way, a, b)]
    result = laid_out(np.full((*a.shape[:-1], b.shape[-1]), nan) if held is None else held, c, gap)
    with emulating(detector=detector, seed=seed):
        gemm(way, *given, result, **epilogue)
    return read_back(result).reshape(*a.shape[:-1], b.shape[-1])


# Exact products ---------------------------------------------------------------------------------------------

# Around the edges of a tile of 64 x 128, of a slice of 64, and of 8 stages; one, and odd.
SIZES = [
    (1, 1, 1),
    (63, 129, 65),
    (64, 128, 64),
    (65, 127, 63),
    (3, 5, 8 * 64 + 7),
    (16, 250, 9 * 64),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("c", ["float32", "bfloat16"])
def test_products_of_integers_are_exact(way, c, force):
    force("linear", f"wgmma:{SMALL}")
    for m, n, k in SIZES:
        a, b = (ternary(m, k), ternary(k, n, seed=1)) if c == "bfloat16" else (integers(m, k), integers(k, n, seed=1))
        got = product(way, a, b, c=c, seed=k % 3)
        np.testing.assert_array_equal(got, a @ b, err_msg=f"{m} x {n} x {k}")


@pytest.mark.parametrize("variant", wgmma_tiles.TILES)
def test_every_tile(variant, force):
    """Both its edges crossed; each way in turn, with results of both sizes."""
    force("linear", f"wgmma:{variant}")
    tile = wgmma_tiles.TILES[variant]
    for way, c in zip(WAYS, ("bfloat16", "float32", "float32"), strict=True):
        m, n, k = tile.rows + 8, tile.columns + 8, 72
        a, b = ternary(m, k), ternary(k, n, seed=1)
        np.testing.assert_array_equal(product(way, a, b, c=c, seed=1), a @ b, err_msg=way)


@pytest.mark.parametrize("way", WAYS)
def test_float16(way, force):
    force("linear", f"wgmma:{SMALL}")
    a, b = ternary(70, 72), ternary(72, 136, seed=1)
    for c in ("float16", "float32"):
        np.testing.assert_array_equal(product(way, a, b, dtype="float16", c=c, seed=2), a @ b)


@pytest.mark.parametrize("way", WAYS)
def test_results_do_not_depend_on_the_number_of_blocks(way, force, blocks):
    """One block that has all tiles, some that share them, one each: the ring of stages goes on from tile to tile."""
    force("linear", f"wgmma:{SMALL}")
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((136, 200)), generator.standard_normal((200, 264))
    results = []
    for count in (1, 2, 100):
        blocks(count)
        results.append(product(way, a, b, c="bfloat16", seed=count % 3))
        np.testing.assert_array_equal(results[-1], results[0])
    for seed in range(3):
        np.testing.assert_array_equal(product(way, a, b, c="bfloat16", seed=seed, detector=False), results[0])


@pytest.mark.parametrize("way", WAYS)
def test_one_hot_factors_pick_elements(way, force):
    force("linear", f"wgmma:{SMALL}")
    generator = np.random.default_rng(0)
    b = np.asarray(to_host(to_device(generator.standard_normal((136, 144)), "bfloat16")), np.float32)
    chosen = generator.integers(0, 136, 72)
    np.testing.assert_array_equal(product(way, np.eye(136)[chosen], b), b[chosen])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("c", ["float32", "bfloat16"])
def test_batches_with_gaps(way, c, force):
    force("linear", f"wgmma:{SMALL}")
    a, b = ternary(3, 66, 40), ternary(3, 40, 20, seed=1)
    np.testing.assert_array_equal(product(way, a, b, c=c, gap=16), a @ b)


def test_a_matrix_that_all_products_have_in_common(force):
    force("linear", f"wgmma:{SMALL}")
    x, weight = ternary(3, 9, 40), ternary(24, 40, seed=1)
    common = Matrices(to_device(weight, "bfloat16"), 24, 40, 40, batch=3, batch_stride=0)
    y = laid_out(np.zeros((3, 9, 24)), "bfloat16")
    gemm("nt", laid_out(x, "bfloat16"), common, y)
    np.testing.assert_array_equal(read_back(y), x @ weight.T)


# Epilogues --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [136, 20])
def test_alpha_and_beta(n, c, force):
    """n: rows of C at multiples of 16 bytes, or not."""
    force("linear", f"wgmma:{SMALL}")
    a, b, before = ternary(70, 40), ternary(40, n, seed=1), integers(70, n, seed=2)
    np.testing.assert_array_equal(product("nn", a, b, before, c=c, alpha=2.0, beta=0.5), 2 * (a @ b) + 0.5 * before)
    np.testing.assert_array_equal(product("nn", a, b, c=c, alpha=0.5), 0.5 * (a @ b))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "given", ["bias before", "bias mask", "bias residual", "bias before mask residual", "kept", "kept mask residual"]
)
@pytest.mark.parametrize(("n", "c"), [(136, "bfloat16"), (136, "float32"), (13, "bfloat16")])
def test_epilogues(activation, given, n, c, force):
    """Sums of integers are exact, so what follows is the same to the bit as on the rung below.

    n: rows at multiples of 16 bytes, or not; then the bias begins at an odd address too.
    """
    m, k = 67, 24
    results = []
    for rung in (f"wgmma:{SMALL}", "tiled"):
        force("linear", rung)
        before = to_device(np.zeros((m, n)), "bfloat16")
        more = beside(given, m, n, "bfloat16") | ({"before": before} if "before" in given else {})
        a, b = integers(m, k) / 4, integers(k, n, seed=1) / 4
        c_of = product("nt", a, b, c=c, detector=rung != "tiled", seed=1, activation=activation, **more)
        results.append((c_of, to_host(before).astype(np.float32)))
    for (one, other), dtype in zip(zip(*results, strict=True), (c, "bfloat16"), strict=True):
        # A GPU's compiler may join a product and a sum in one kernel and not in the other.
        assert_close(one, other, 0 if KERNEL_DEVICE == "emulator" else tolerance(dtype))


def test_the_bias_of_results_that_leave_in_boxes(force):
    """At the edge of C, and at an odd address; relu keeps NaN."""
    force("linear", f"wgmma:{SMALL}")
    a, b, bias = ternary(66, 40), ternary(40, 141, seed=1), integers(142, seed=2)
    a[3, 0] = nan
    for activation in ("identity", "relu"):
        given = to_device(bias, "bfloat16")[1:]
        got = product("nt", a, b, c="bfloat16", gap=8, bias=given, activation=activation)
        z = a @ b + bias[1:]
        np.testing.assert_array_equal(got, z if activation == "identity" else np.where(z < 0, 0, z))


# Parts of the depth, and sums of columns -------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("c", ["float32", "bfloat16"])
def test_a_cut_depth(way, c, force):
    force("linear", f"wgmma:{SMALL}")
    a, b, bias, before = ternary(66, 3000), ternary(3000, 24, seed=1), integers(24, seed=2), integers(66, 24, seed=3)
    results = []
    given = {"bias": to_device(bias, "bfloat16"), "activation": "relu", "beta": 1.0}
    names, _ = launches(lambda: results.append(product(way, a, b, before, c=c, **given)))
    assert names[0] == f"wgmma_{way}" and names[1:] in ADDED
    expected = np.maximum(a @ b + bias, 0) + before
    np.testing.assert_array_equal(results[0], to_host(to_device(expected, c)).astype(np.float32))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("variant", "rows", "out", "inside"),
    [
        (SMALL, 40, 72, 24),  # one panel, one part
        (SMALL, 2500, 68, 20),  # parts; 68 sums behind each of them
        ("128x64", 200, 200, 72),  # two panels, a warp each; tiles beyond the first column
        ("256x128", 72, 264, 24),  # four panels, two each
    ],
)
def test_the_bias_gradient_comes_with_the_weight_gradient(variant, rows, out, inside, accumulate, force):
    force("linear", f"wgmma:{variant}")
    dy, x = integers(rows, out), integers(rows, inside, seed=1)
    before = integers(out, inside, seed=2), integers(out, seed=3)
    factors = [laid_out(array, "bfloat16") for array in (dy, x)]
    dweight, dbias = (to_device(array, "float32") for array in before)
    task = Product("tn", *factors, Matrices.of(dweight), Epilogue(beta=float(accumulate)), dbias)
    with emulating(detector=True, seed=rows % 3):
        names, _ = launches(lambda: cuda.multiply(task))
    assert names[0] == "wgmma_tn" and (names[1:] in ADDED if rows > 1000 else len(names) == 1)
    np.testing.assert_array_equal(to_host(dweight), dy.T @ x + accumulate * before[0])
    np.testing.assert_array_equal(to_host(dbias), dy.sum(0) + accumulate * before[1])


def test_the_layer_takes_its_bias_gradient_from_here(force):
    force("linear", f"wgmma:{SMALL}")
    dy, x = integers(40, 72), integers(40, 24, seed=1)
    dweight, dbias = to_device(np.zeros((72, 24)), "float32"), to_device(np.zeros(72), "float32")
    given = to_device(dy, "bfloat16"), to_device(x, "bfloat16")
    names, _ = launches(lambda: ops.linear_backward_parameters(*given, dweight, dbias, False))
    assert names == ["wgmma_tn"]
    np.testing.assert_array_equal(to_host(dbias), dy.sum(0))
    np.testing.assert_array_equal(to_host(dweight), dy.T @ x)


def test_the_sums_have_no_rounding_of_a_long_run(force):
    """0.1 in bfloat16, 16,384 times: slices are summed before they are added."""
    force("linear", f"wgmma:{SMALL}")
    dy = to_device(np.full((2**14, 8), 0.1), "bfloat16")
    x = to_device(np.zeros((2**14, 8)), "bfloat16")
    dweight, dbias = to_device(np.zeros((8, 8)), "float32"), to_device(np.zeros(8), "float32")
    ops.linear_backward_parameters(dy, x, dweight, dbias, False)
    exact = 2.0**14 * float(to_host(dy)[0, 0])
    assert np.abs(to_host(dbias) - exact).max() <= 2.0**-20 * exact


# What is empty, large, or not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_reaches_its_row_and_column_and_nothing_else(way, bad, force):
    """In the last row and column, beside the zeros that the copy engine adds, and at the end of the depth."""
    force("linear", f"wgmma:{SMALL}")
    m, n, k = 66, 129, 65
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    a[m - 1, k - 1] = b[k - 1, n - 1] = bad
    expected = np.full((m, n), np.float32(k))
    expected[m - 1], expected[:, n - 1] = bad, bad
    expected[m - 1, n - 1] = bad * bad
    for c in ("float32", "bfloat16"):
        got = product(way, a, b, c=c)
        np.testing.assert_array_equal(got, to_host(to_device(expected, c)).astype(np.float32))


@pytest.mark.parametrize("way", WAYS)
def test_empty_products(way, force):
    force("linear", "wgmma")
    for m, n in ((0, 8), (8, 0), (0, 0)):
        assert product(way, ternary(m, 8), ternary(8, n)).shape == (m, n)
    bias = to_device(np.arange(8.0), "bfloat16")
    got = product(
        way, np.zeros((3, 0), np.float32), np.zeros((0, 8), np.float32), np.full((3, 8), 9), bias=bias, beta=1.0
    )
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(8) + 9, (3, 8)))


@pytest.mark.parametrize(("rows", "inside", "out"), [(2**26 + 5, 40, 8), (2**25 + 5, 8, 72)])
def test_elements_beyond_2_to_the_31(rows, inside, out, force, huge, blocks):
    """The last rows of matrices of more than 2^31 elements, on the way in and on the way out."""
    force("linear", f"wgmma:{SMALL}")
    blocks(2**30)  # so that the last block has the last tile alone
    x, last, weight = sparse((rows, inside), "bfloat16"), ternary(2, inside), ternary(out, inside, seed=1)
    x[rows - 2 : rows] = last
    y = ops.linear(x, to_device(weight, "bfloat16"), None)
    np.testing.assert_array_equal(to_host(y[rows - 2 : rows]), last @ weight.T)


# The choice -------------------------------------------------------------------------------------------------


def problem(dtype="bfloat16", alignment=16, way="nt"):
    return Problem("linear", way, m=300, n=200, k=100, batch=1, dtype=dtype, alignment=alignment)


def test_it_is_taken_where_it_is_asked_for(force):
    """Its instructions have run on models alone, so no rule takes it."""
    force("linear", "")
    assert choice.choose(problem(), 90).rung != "wgmma"
    force("linear", "wgmma")
    chosen = choice.choose(problem(), 90)
    assert chosen.rung == "wgmma" and chosen.variant in wgmma_tiles.TILES
    for refused, capability in (
        (problem("float32"), 90),
        (problem("tf32", way="nn"), 90),
        (problem("tf32", way="tn"), 90),
        (problem("tf32", alignment=4), 90),
        (problem("tf32"), 80),
        (problem(alignment=4), 90),
        (problem(), 80),
        (problem(), 100),
    ):
        with pytest.raises(ConfigurationError, match="BP_LINEAR=wgmma cannot compute a product in "):
            choice.choose(refused, capability)


def test_of_tf32_it_is_taken_for_the_way_that_it_reads(force):
    force("linear", "wgmma")
    assert choice.choose(problem("tf32"), 90).rung == "wgmma"
    force("linear", "")
    rung = choice.find("linear", "wgmma")
    for way in WAYS:
        decision = choice.decide(problem("tf32", way=way), 90)
        why = dict(decision.passed)["wgmma"]
        assert decision.choice.rung == "mma" and rung.computes(problem("tf32", way=way), 90) == (way == "nt")
        assert ("not verified" in why, "the depth along their rows" in why) == (way == "nt", way != "nt")


def test_the_cut_leaves_nothing_out():
    for name in wgmma_tiles.TILES:
        for m, n, batch in ((1, 1, 1), (64, 4096, 1), (4096, 4096, 1), (70, 90, 50)):
            for k in (0, 1, 64, 65, 1000, 4096, 100_000, 10**8):
                for wide in (False, True):
                    part = wgmma_tiles.part(name, m, n, k, batch, wide)
                    assert part % 64 == 0 and (not wide or part <= 16 * 1024)
                    assert part >= min(k, 64)
                part = wgmma_tiles.part(name, m, n, k, batch, True, 4)
                assert part % 32 == 0 and min(k, 32) <= part <= 8 * 1024  # as many instructions


def test_large_products_have_large_tiles_and_small_ones_are_spread():
    assert wgmma_tiles.tile(8192, 8192, 8192, 1, False) == "128x256"
    assert wgmma_tiles.part("128x256", 8192, 8192, 8192, 1, False) == 8192
    for m, n, k in ((64, 8192, 512), (8192, 64, 512), (100, 4096, 4096), (16, 4096, 4096)):
        name = wgmma_tiles.tile(m, n, k, 1, False)
        tile, parts = wgmma_tiles.TILES[name], -(-k // wgmma_tiles.part(name, m, n, k, 1, False))
        assert 100 <= -(-m // tile.rows) * -(-n // tile.columns) * parts <= 132
    assert wgmma_tiles.part("128x256", 768, 768, 16384, 1, True) == 2368  # 18 tiles, 7 parts: 126 of 132


# Planted faults ---------------------------------------------------------------------------------------------

_TILE, _BLOCK, _LINEAR = "wgmma_tile.cuh", "wgmma_block.cuh", "wgmma_linear.cuh"
# What is wrong: the file, its text, what stands in its place, where WRONG says whether this fault is planted, and what
# the emulator says (None: the numbers are wrong).
FAULTS = {
    "a full stage is not waited for": (
        _TILE,
        "ring.wait();",
        "if (!WRONG) ring.wait();",
        "missing wait|this product is not ordered after the write by a load",
    ),
    "an empty stage is not waited for": (
        _TILE,
        "barrier_wait(pipeline.empty[at.stage], at.parity ^ 1);",
        "if (!WRONG) barrier_wait(pipeline.empty[at.stage], at.parity ^ 1);",
        "an arrival beyond its count of 1",
    ),
    "fewer bytes are announced than come": (
        _TILE,
        "barrier_arrive_expect(pipeline.full[at.stage], Shape::STAGE_BYTES);",
        "barrier_arrive_expect(pipeline.full[at.stage], Shape::STAGE_BYTES - (WRONG ? 1024 : 0));",
        "more bytes have landed than were announced: 1024",
    ),
    "more bytes are announced than come": (
        _TILE,
        "load(slice, tile, tile + Shape::A_BYTES, pipeline.full[at.stage]);",
        "if (!WRONG || slice != 1) load(slice, tile, tile + Shape::A_BYTES, pipeline.full[at.stage]);",
        "deadlock",
    ),
    "a stage is given back before its products are done": (
        _TILE,
        "        warpgroup_wait<1>();",
        "        if (!WRONG) warpgroup_wait<1>();",
        "this load is not ordered after the read by a product",
    ),
    "the last products are not waited for": (
        _TILE,
        "    warpgroup_wait<0>();",
        "    if (!WRONG) warpgroup_wait<0>();",
        "this load is not ordered after the read by a product",
    ),
    "no fence before the products": (
        _TILE,
        "warpgroup_fence();",
        "if (!WRONG) warpgroup_fence();",
        r"warpgroup_fence\(\) is missing",
    ),
    "the parity stays the same": (_TILE, "parity ^= 1;", "parity ^= !WRONG;", "an arrival beyond its count of 1"),
    "the steps of A and B are not the same": (_TILE, "step * STEP_A", "(WRONG ? 3 - step : step) * STEP_A", None),
    "all panels land in one place": (
        _TILE,
        "tile + panel * PANEL, map",
        "tile + (WRONG ? 0 : panel * PANEL), map",
        "missing wait|not ordered",
    ),
    "results lie where they would without a swizzle": (
        _TILE,
        "line * 128 + line * 16",
        "line * 128 + (WRONG ? 0 : line) * 16",
        None,
    ),
    "the copy engine does not see what was stored": (
        _TILE,
        "fence_async_proxy();",
        "if (!WRONG) fence_async_proxy();",
        r"missing fence_async_proxy\(\)",
    ),
    "a box leaves before all threads have filled it": (
        _TILE,
        "fence_async_proxy();\n        __syncwarp();",
        "fence_async_proxy();\n        if (!WRONG) __syncwarp();",
        "this store is not ordered after the write|uninitialised shared memory",
    ),
    "a box is filled again while it leaves": (
        _TILE,
        "if (lane == 0) wait_stores_read<1>();",
        "if (lane == 0 && !WRONG) wait_stores_read<1>();",
        "this write is not ordered after the read by a store",
    ),
    "the last boxes are not waited for": (
        _BLOCK,
        "if (threadIdx.x % WARP == 0) wait_stores_read<0>();",
        "if (threadIdx.x % WARP == 0 && !WRONG) wait_stores_read<0>();",
        "wait_stores_read<0>.. is missing",
    ),
    "floats are read before all threads have stored theirs": (
        _TILE,
        "stage_floats(staging, lane, sums); });\n            __syncwarp();",
        "stage_floats(staging, lane, sums); });\n            if (!WRONG) __syncwarp();",
        "uninitialised shared memory|race on shared memory",
    ),
    "a stage is given back before all threads know their tile": (
        _TILE,
        "__syncwarp();  // all have read it",
        "if (!WRONG) __syncwarp();  // all have read it",
        "this write is not ordered after the read by thread",
    ),
    "the tile is named after its slice has come": (
        _TILE,
        "if (slice == 0) pipeline.work[at.stage] = work;",
        "if (slice == WRONG) pipeline.work[at.stage] = work;",
        "uninitialised shared memory|race on shared memory",
    ),
    "the copy engine does not know the barriers": (
        _TILE,
        "barrier_init_fence();",
        "if (!WRONG) barrier_init_fence();",
        r"barrier_init_fence\(\) was not called",
    ),
    "who adds up columns does not count": (
        _BLOCK,
        "column_sums != nullptr ? SUMMERS<Shape> : 0",
        "column_sums != nullptr && !WRONG ? SUMMERS<Shape> : 0",
        "not ordered after",
    ),
    "a stage is given back while columns are read": (
        _BLOCK,
        "            __syncwarp();\n            if (lane == 0) barrier_arrive",
        "            if (!WRONG) __syncwarp();\n            if (lane == 0) barrier_arrive",
        "this load is not ordered after the read by thread",
    ),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The kernels of "nt" and "tn"."""
    faults = [fault[:3] for fault in FAULTS.values()]
    kernels = with_faults(
        tmp_path_factory.mktemp("kernels"), "linear_wgmma", faults, ("wgmma_nt", "wgmma_tn"), "bfloat16"
    )
    return {name.removeprefix("wgmma_"): kernel for name, kernel in kernels.items()}


def run_planted(planted, number, monkeypatch):
    """Whether all numbers are right: boxes, floats, and sums of columns, several tiles in a block."""
    for way, kernel in planted.items():
        monkeypatch.setitem(
            linear_wgmma._kernels,
            way,
            lambda grid, *arguments, kernel=kernel, variant, **axes: kernel(grid, *arguments, number, **axes),
        )
    a, b = ternary(72, 200), ternary(200, 264, seed=1)
    boxes = product("nt", a, b, c="bfloat16", seed=1)
    floats = product("nt", a, b, seed=1)
    dy, x = ternary(1000, 72), ternary(1000, 24, seed=1)
    dweight, dbias = to_device(np.zeros((72, 24)), "float32"), to_device(np.zeros(72), "float32")
    factors = (laid_out(array, "bfloat16") for array in (dy, x))
    with emulating(detector=True, seed=1):
        cuda.multiply(Product("tn", *factors, Matrices.of(dweight), sums=dbias))
    return (
        np.array_equal(boxes, a @ b)
        and np.array_equal(floats, a @ b)
        and np.array_equal(to_host(dweight), dy.T @ x)
        and np.array_equal(to_host(dbias), dy.sum(0))
    )


@pytest.mark.skipif(KERNEL_DEVICE != "emulator", reason="what finds them is the emulator's")
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_planted_faults_are_found(fault, planted, force, blocks, monkeypatch):
    force("linear", f"wgmma:{SMALL}")
    blocks(1)
    number = 0 if fault is None else 1 + list(FAULTS).index(fault)
    message = FAULTS[fault][3] if fault else None
    if message is None:
        assert run_planted(planted, number, monkeypatch) == (fault is None)
        return
    with pytest.raises(KernelFault, match=message):
        run_planted(planted, number, monkeypatch)


# The machine code -------------------------------------------------------------------------------------------


@needs_nvrtc
@needs_nvdisasm
@pytest.mark.parametrize(
    ("file", "type", "name", "loops"),
    [
        ("linear_wgmma", "bfloat16", "HGMMA.64x256x16.F32.BF16", 4),  # boxes, floats, vectors, elements
        ("linear_wgmma_tf32", "float", "HGMMA.64x256x8.F32.TF32", 3),
    ],
)
def test_the_machine_code_of_a_slice(file, type, name, loops, tmp_path):
    """Its products in a row, started by one fence, and one wait, for those of the slice before.

    loops: one for each way of storing, each with the wait for its last products.
    """
    head, *kernels = re.split(r'(?=extern "C")', (kernel_folder() / f"{file}.cu").read_text())
    macros = {"T": type} | {name: str(value) for name, value in wgmma_tiles.VARIANTS["128x256"].items()}
    source = nvrtc._macros(macros) + head + kernels[0]
    headers = {file.name: file.read_text() for file in (kernel_folder() / "include").glob("*.cuh")}
    compiled = nvrtc.compile(source, f"{file}.cu", [*nvrtc.OPTIONS, "-arch=sm_90a"], headers)
    assert "0 bytes stack frame, 0 bytes spill stores" in compiled.log and "C75" not in compiled.log
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.cubin)
    code = subprocess.run([disassembler.find(), "-c", cubin], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"\b(HGMMA[\w.]*|WARPGROUP\.ARRIVE|WARPGROUP\.DEPBAR|BRA)\b", code)
    starts = [i for i, one in enumerate(names) if one == "WARPGROUP.ARRIVE"]
    assert len(starts) == loops and names.count("WARPGROUP.DEPBAR") == 2 * loops
    assert [one for one in names if one.startswith("HGMMA")] == [name] * 4 * loops
    for first in starts:
        assert names[first : first + 7] == ["WARPGROUP.ARRIVE", *[name] * 4, "WARPGROUP.DEPBAR", "BRA"]
