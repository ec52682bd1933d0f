"""Matrix products on the rung of wgmma: edges, epilogues, parts and sums to the bit, and what its pipeline forbids."""

import re
import subprocess

import numpy as np
import pytest
from emulated import sparse, to_device, to_host
from planted import needs_nvdisasm, needs_nvrtc
from products import integers, launches, ternary
from table import KERNEL_DEVICE, assert_close, emulating

import bp.cuda.linear as cuda
import bp.ops.linear as ops
from bp.checking import tolerance
from bp.cuda import choice, disassembler, linear_wgmma, nvrtc, wgmma_tiles
from bp.cuda.choice import Problem
from bp.cuda.emulator.engine import KernelFault
from bp.cuda.epilogue import ACTIVATIONS, Epilogue
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Source
from bp.cuda.product import WAYS, Matrices, Product
from bp.errors import ConfigurationError
from bp.ops.device import find_device, new_control
from bp.ops.dropout import Mask

inf, nan = np.inf, np.nan
SMALL = "64x128"  # the tile that costs the emulator least: 64 x 128, slices of 64 of the depth, 8 stages


@pytest.fixture(autouse=True)
def on_hopper():
    """These instructions are those of one architecture; the emulator has models of them."""
    if find_device(KERNEL_DEVICE).capability != 90:
        pytest.skip("wgmma exists on compute capability 9.0 alone")


@pytest.fixture
def blocks(monkeypatch):
    """blocks(3): as many multiprocessors, and so blocks that stay, has the device."""
    return lambda count: monkeypatch.setattr(type(find_device(KERNEL_DEVICE)), "multiprocessors", count)


def laid_out(array, dtype, gap=0):
    """Matrices (m, n) or (batch, m, n) on the device, rows at multiples of 16 bytes, with NaN in between."""
    array = array if array.ndim == 3 else array[None]
    batch, rows, columns = array.shape
    stride = -(-columns // 8) * 8 + gap
    padded = np.full((batch, rows, stride), nan, np.float32)
    padded[:, :, :columns] = array
    flat = to_device(padded, dtype).reshape(padded.size)
    return Matrices(flat, rows, columns, stride, batch, rows * stride)


def read(matrices):
    """What `laid_out` made, on the host; nobody has touched what lies between the rows."""
    padded = to_host(matrices.array).astype(np.float32).reshape(matrices.batch, matrices.rows, matrices.stride)
    assert np.isnan(padded[:, :, matrices.columns :]).all()
    return padded[:, :, : matrices.columns]


def turned(way, a, b):
    """The factors as they lie in memory."""
    transpose_a, transpose_b = WAYS[way]
    return a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b


def gemm(way, a, b, c, **epilogue):
    transpose_a, transpose_b = WAYS[way]
    cuda.gemm(a, b, c, transpose_a=transpose_a, transpose_b=transpose_b, epilogue=Epilogue(**epilogue))


def product(way, a, b, held=None, *, dtype="bfloat16", c="float32", gap=0, seed=0, detector=True, **epilogue):
    """C of A (.., m, k) and B (.., k, n), which lie in memory as the way has it; held: what C holds before."""
    given = [laid_out(np.ascontiguousarray(x), dtype, gap) for x in turned(way, a, b)]
    result = laid_out(np.full((*a.shape[:-1], b.shape[-1]), nan) if held is None else held, c, gap)
    with emulating(detector=detector, seed=seed):
        gemm(way, *given, result, **epilogue)
    return read(result).reshape(*a.shape[:-1], b.shape[-1])


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
    np.testing.assert_array_equal(read(y), x @ weight.T)


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
    m, k, device = 67, 24, find_device(KERNEL_DEVICE)
    beside = {name: to_device(integers(m, n, seed=3) / 4, "bfloat16") for name in ("residual", "kept") if name in given}
    if "bias" in given:
        beside["bias"] = to_device(integers(n + n % 2, seed=2) / 4, "bfloat16")[n % 2 :]
    if "mask" in given:
        beside["mask"] = Mask(new_control(device, 5, 1), 3, 16 + 5 * (n % 2), 0.4)
    results = []
    for rung in (f"wgmma:{SMALL}", "tiled"):
        force("linear", rung)
        before = to_device(np.zeros((m, n)), "bfloat16")
        more = beside | ({"before": before} if "before" in given else {})
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
    assert names == [f"wgmma_{way}", "add_parts"]
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
    assert names == (["wgmma_tn"] if rows < 1000 else ["wgmma_tn", "add_parts"])
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


def problem(dtype="bfloat16", alignment=16, **sizes):
    return Problem(
        "linear", "nt", **{"m": 300, "n": 200, "k": 100, "batch": 1, **sizes}, dtype=dtype, alignment=alignment
    )


def test_it_is_taken_where_it_is_asked_for(force):
    """Its instructions have run on models alone, so no rule takes it."""
    force("linear", "")
    assert choice.choose(problem(), 90).rung != "wgmma"
    force("linear", "wgmma")
    chosen = choice.choose(problem(), 90)
    assert chosen.rung == "wgmma" and chosen.variant in wgmma_tiles.TILES
    for refused, capability in (
        (problem("float32"), 90),
        (problem("tf32"), 90),
        (problem(alignment=4), 90),
        (problem(), 80),
        (problem(), 100),
    ):
        with pytest.raises(ConfigurationError, match="BP_LINEAR=wgmma computes float16, bfloat16"):
            choice.choose(refused, capability)


def test_the_cut_leaves_nothing_out():
    for name in wgmma_tiles.TILES:
        for m, n, batch in ((1, 1, 1), (64, 4096, 1), (4096, 4096, 1), (70, 90, 50)):
            for k in (0, 1, 64, 65, 1000, 4096, 100_000, 10**8):
                for wide in (False, True):
                    part = wgmma_tiles.part(name, m, n, k, batch, wide)
                    assert part % 64 == 0 and (not wide or part <= 16 * 1024)
                    assert part >= min(k, 64)


def test_large_products_have_large_tiles_and_small_ones_are_spread():
    assert wgmma_tiles.tile(8192, 8192, 8192, 1, False) == "128x256"
    assert wgmma_tiles.part("128x256", 8192, 8192, 8192, 1, False) == 8192
    for m, n, k in ((64, 8192, 512), (8192, 64, 512), (100, 4096, 4096), (16, 4096, 4096)):
        name = wgmma_tiles.tile(m, n, k, 1, False)
        tile, parts = wgmma_tiles.TILES[name], -(-k // wgmma_tiles.part(name, m, n, k, 1, False))
        assert 100 <= -(-m // tile.rows) * -(-n // tile.columns) * parts <= 132
    assert wgmma_tiles.part("128x256", 768, 768, 16384, 1, True) == 2368  # 18 tiles, 7 parts: 126 of 132


# Planted faults ---------------------------------------------------------------------------------------------

_TILE, _BLOCK, _FILE = "wgmma_tile.cuh", "wgmma_block.cuh", "linear_wgmma.cu"
# What is wrong: the file, its text, what stands in its place, where WRONG says whether this fault is planted, and what
# the emulator says (None: the numbers are wrong).
FAULTS = {
    "a full stage is not waited for": (
        _TILE,
        "barrier_wait(pipeline.full[at.stage], at.parity);",
        "if (!WRONG) barrier_wait(pipeline.full[at.stage], at.parity);",
        "missing wait: these bytes of shared memory are the target of the load",
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
        "(j ^ line) * 16",
        "(WRONG ? j : j ^ line) * 16",
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
        "this store is not ordered after the write",
    ),
    "a box is filled again while it leaves": (
        _TILE,
        "if (lane == 0) wait_stores_read<1>();",
        "if (lane == 0 && !WRONG) wait_stores_read<1>();",
        "this write is not ordered after the read by a store",
    ),
    "the last boxes are not waited for": (
        _BLOCK,
        "if (task.boxes && threadIdx.x % WARP == 0) wait_stores_read<0>();",
        "if (task.boxes && threadIdx.x % WARP == 0 && !WRONG) wait_stores_read<0>();",
        "wait_stores_read<0>.. is missing",
    ),
    "floats are read before all threads have stored theirs": (
        _TILE,
        "stage_floats(staging, lane, sums); });\n        __syncwarp();\n        const int column",
        "stage_floats(staging, lane, sums); });\n        if (!WRONG) __syncwarp();\n        const int column",
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
_PLANT = """
static int bp_planted;
__attribute__((no_sanitize("thread"))) static void bp_plant(int fault) { bp_planted = fault; }
"""


@pytest.fixture(scope="module")
def with_faults(tmp_path_factory):
    """The kernels of "nt" and "tn" with all faults in them, of which their last argument chooses one; two stages."""
    folder = tmp_path_factory.mktemp("kernels")
    texts = {
        _FILE: (kernel_folder() / _FILE).read_text(),
        **{name: (kernel_folder() / "include" / name).read_text() for name in (_TILE, _BLOCK)},
    }
    for number, (file, right, wrong, _) in enumerate(FAULTS.values(), 1):
        assert texts[file].count(right) == 1, right
        texts[file] = texts[file].replace(right, wrong.replace("WRONG", f"(bp_planted == {number})"))
    texts[_TILE] = texts[_TILE].replace("#pragma once", "#pragma once\n" + _PLANT, 1)
    head, nt, _, tn = re.split(r'(?=extern "C")', texts[_FILE])
    body = "DYNAMIC_SHARED_TILES"
    texts[_FILE] = head + "".join(
        kernel.replace("bool boxes)", "bool boxes, int fault)").replace(body, f"bp_plant(fault);\n    {body}", 1)
        for kernel in (nt, tn)
    )
    for name, text in texts.items():
        (folder / name).write_text(text)
    tile = {"": {"ROWS": 64, "COLUMNS": 128, "STAGES": 2}}
    source = Source("linear_wgmma", folder=folder, only=90, T=("bfloat16",), variants=tile)
    shared = wgmma_tiles.SHARED
    return {way: source.kernel(f"wgmma_{way}", flops="0", bytes="0", shared=shared) for way in ("nt", "tn")}


def run_planted(with_faults, number, monkeypatch):
    """Whether all numbers are right: boxes, floats, and sums of columns, several tiles in a block."""
    for way, kernel in with_faults.items():
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
def test_planted_faults_are_found(fault, with_faults, force, blocks, monkeypatch):
    force("linear", f"wgmma:{SMALL}")
    blocks(1)
    number = 0 if fault is None else 1 + list(FAULTS).index(fault)
    message = FAULTS[fault][3] if fault else None
    if message is None:
        assert run_planted(with_faults, number, monkeypatch) == (fault is None)
        return
    with pytest.raises(KernelFault, match=message):
        run_planted(with_faults, number, monkeypatch)


# The machine code -------------------------------------------------------------------------------------------


@needs_nvrtc
@needs_nvdisasm
def test_the_machine_code_of_a_slice(tmp_path):
    """Its products in a row, started by one fence, and one wait, for those of the slice before."""
    head, *kernels = re.split(r'(?=extern "C")', linear_wgmma._source.path.read_text())
    macros = {"T": "bfloat16"} | {name: str(value) for name, value in wgmma_tiles.VARIANTS["128x256"].items()}
    source = nvrtc._macros(macros) + head + kernels[0]
    headers = {file.name: file.read_text() for file in (kernel_folder() / "include").glob("*.cuh")}
    compiled = nvrtc.compile(source, "linear_wgmma.cu", [*nvrtc.OPTIONS, "-arch=sm_90a"], headers)
    assert "0 bytes stack frame, 0 bytes spill stores" in compiled.log and "C75" not in compiled.log
    file = tmp_path / "linear_wgmma.cubin"
    file.write_bytes(compiled.cubin)
    code = subprocess.run([disassembler.find(), "-c", file], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"\b(HGMMA|WARPGROUP\.ARRIVE|WARPGROUP\.DEPBAR|BRA)\b", code)
    first = names.index("WARPGROUP.ARRIVE")
    assert names.count("HGMMA") == 4
    assert names[first : first + 7] == ["WARPGROUP.ARRIVE", *["HGMMA"] * 4, "WARPGROUP.DEPBAR", "BRA"]
