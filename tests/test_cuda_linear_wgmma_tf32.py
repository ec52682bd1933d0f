"""Matrix products of floats on the rung of wgmma, y = x W^T in tf32: rounding, edges, epilogues, parts, faults."""

import numpy as np
import pytest
from emulated import sparse, to_device, to_host
from faulty import with_faults
from products import ADDED, beside, in_tf32, integers, launches, read_back, ternary
from table import KERNEL_DEVICE, assert_close
from test_cuda_linear_wgmma import FAULTS, SMALL, gemm, laid_out, product

import bp.ops.linear as ops
from bp.checking import tolerance
from bp.cuda import linear_wgmma, tensor_map, wgmma_tiles
from bp.cuda.emulator.engine import KernelFault
from bp.cuda.epilogue import ACTIVATIONS
from bp.cuda.product import Matrices
from bp.errors import ConfigurationError

inf, nan = np.inf, np.nan
pytestmark = pytest.mark.usefixtures("on_hopper")


def floats(a, b, held=None, **options):
    """C of A (.., m, k) and B (.., k, n) of floats, the way they lie for y = x W^T, on the tile that costs least."""
    return product("nt", a, b, held, dtype="float32", **options)


def drawn(*shape, seed=0):
    """N(0, 1) in float32, none of which lies in the middle between two values of tf32, and none of which is one."""
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return (x.view(np.uint32) | 1).view(np.float32)


@pytest.fixture
def in_floats(force, tf32):
    force("linear", f"wgmma:{SMALL}")


# Around the edges of a tile of 64 x 128, of a slice of 32, and of 8 stages; one, and odd.
TF32_SIZES = [
    (1, 1, 1),
    (63, 129, 33),
    (64, 128, 32),
    (65, 127, 31),
    (3, 5, 8 * 32 + 7),
    (16, 250, 9 * 32),
    (130, 260, 100),
]


def test_products_of_integers_in_tf32_are_exact(in_floats):
    for m, n, k in TF32_SIZES:
        a, b = integers(m, k), integers(k, n, seed=1)
        np.testing.assert_array_equal(floats(a, b, seed=k % 3), a @ b, err_msg=f"{m} x {n} x {k}")


@pytest.mark.parametrize("variant", wgmma_tiles.TILES)
def test_every_tile_in_tf32(variant, force, tf32):
    force("linear", f"wgmma:{variant}")
    tile = wgmma_tiles.TILES[variant]
    a, b = integers(tile.rows + 8, 40), integers(40, tile.columns + 8, seed=1)
    np.testing.assert_array_equal(floats(a, b, seed=1), a @ b)


def test_results_in_tf32_do_not_depend_on_the_number_of_blocks(in_floats, blocks):
    a, b, results = drawn(136, 200), drawn(200, 264, seed=1), []
    for count in (1, 2, 100):
        blocks(count)
        results.append(floats(a, b, seed=count % 3))
        np.testing.assert_array_equal(results[-1], results[0])
    for seed in range(3):
        np.testing.assert_array_equal(floats(a, b, seed=seed, detector=False), results[0])


def test_factors_are_rounded_to_tf32(in_floats):
    """To the nearest: the products are those of factors that were rounded before, and not of cut ones."""
    a, b = drawn(70, 100), drawn(100, 136, seed=1)
    rounded_a, rounded_b = in_tf32(a).astype(np.float32), in_tf32(b).astype(np.float32)
    got = floats(a, b)
    np.testing.assert_array_equal(got, floats(rounded_a, rounded_b))
    exact = rounded_a.astype(np.float64) @ rounded_b
    bound = 2.0**-23 * 101 * (np.abs(rounded_a).astype(np.float64) @ np.abs(rounded_b))
    assert (np.abs(got - exact) <= bound).all()
    cut_a, cut_b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    assert (np.abs(cut_a.astype(np.float64) @ cut_b - exact) > bound).any()


def test_one_hot_factors_pick_rounded_elements(in_floats):
    """Each of both factors in its place: those of A by columns of the identity as B, those of B by its rows as A."""
    x, chosen = drawn(72, 136), np.random.default_rng(0).integers(0, 136, 72)
    picks = np.eye(136)[chosen]
    np.testing.assert_array_equal(floats(x, picks.T), in_tf32(x)[:, chosen])
    np.testing.assert_array_equal(floats(picks, x.T), in_tf32(x).T[chosen])


@pytest.mark.skipif(KERNEL_DEVICE != "emulator", reason="how a GPU rounds these is not known")
def test_ties_are_rounded_to_even(in_floats):
    """As the emulator assumes of the copy engine, and other rungs do not."""
    one, tie = np.ones((1, 1), np.float32), 2.0**-11
    for x, even in ((1 + tie, 1), (1 + 3 * tie, 1 + 4 * tie), (-1 - tie, -1)):
        assert floats(x * one, one)[0, 0] == floats(one, x * one)[0, 0] == even


@pytest.mark.parametrize("gap", [0, 4, 16])
def test_batches_with_gaps_in_tf32(gap, in_floats):
    a, b = integers(3, 66, 36), integers(3, 36, 20, seed=1)
    np.testing.assert_array_equal(floats(a, b, gap=gap), a @ b)


def test_a_weight_that_all_products_in_tf32_have_in_common(in_floats):
    x, weight = integers(3, 9, 36), integers(24, 36, seed=1)
    common = Matrices(to_device(weight, "float32"), 24, 36, 36, batch=3, batch_stride=0)
    y = laid_out(np.zeros((3, 9, 24)), "float32")
    gemm("nt", laid_out(x, "float32"), common, y)
    np.testing.assert_array_equal(read_back(y), x @ weight.T)


@pytest.mark.parametrize("n", [136, 20, 13])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_alpha_and_beta_in_tf32(n, activation, in_floats):
    """n: rows of C at multiples of 16 bytes, with whole vectors, or not; the identity has no epilogue to go through."""
    a, b, before = integers(70, 36), integers(36, n, seed=1), integers(70, n, seed=2)
    f = {"identity": lambda z: z, "relu": lambda z: np.maximum(z, 0)}[activation]
    got = floats(a, b, before, alpha=2.0, beta=0.5, activation=activation)
    np.testing.assert_array_equal(got, f(2 * (a @ b)) + 0.5 * before)
    np.testing.assert_array_equal(floats(a, b, alpha=0.5, activation=activation), f(0.5 * (a @ b)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("given", ["bias before", "bias before mask residual", "kept mask residual"])
@pytest.mark.parametrize("n", [136, 13])
def test_epilogues_in_tf32(activation, given, n, force, tf32):
    """The same to the bit as on the rung below: n, rows at multiples of 16 bytes, or not, and an odd address."""
    m, k = 67, 36
    results = []
    for rung in (f"wgmma:{SMALL}", "tiled"):
        force("linear", rung)
        before = to_device(np.zeros((m, n)), "float32")
        more = beside(given, m, n) | ({"before": before} if "before" in given else {})
        a, b = integers(m, k) / 4, integers(k, n, seed=1) / 4
        results.append((floats(a, b, detector=rung != "tiled", seed=1, activation=activation, **more), to_host(before)))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 0 if KERNEL_DEVICE == "emulator" else tolerance("float32"))


@pytest.mark.parametrize("n", [24, 13])
def test_a_cut_depth_in_tf32(n, in_floats):
    """Parts are of whole slices of 32, here of three."""
    assert wgmma_tiles.part(SMALL, 66, n, 5000, 1, True, 4) == 96
    a, b, bias, before = ternary(66, 5000), ternary(5000, n, seed=1), integers(n, seed=2), integers(66, n, seed=3)
    results, given = [], {"bias": to_device(bias, "float32"), "activation": "relu", "beta": 1.0}
    names, _ = launches(lambda: results.append(floats(a, b, before, **given)))
    assert names[0] == "wgmma_tf32_nt" and names[1:] in ADDED
    np.testing.assert_array_equal(results[0], np.maximum(a @ b + bias, 0) + before)


def test_the_layer_computes_forward_in_tf32_here(in_floats):
    x, weight, bias = integers(5, 3, 36), integers(24, 36, seed=1), integers(24, seed=2)
    given, y = [to_device(array, "float32") for array in (x, weight, bias)], []
    names, _ = launches(lambda: y.append(ops.linear(*given)))
    assert names == ["wgmma_tf32_nt"]
    np.testing.assert_array_equal(to_host(y[0]), x @ weight.T + bias)
    with pytest.raises(ConfigurationError, match="reads floats with the depth along their rows alone: nt in tf32"):
        ops.linear_backward_input(y[0], given[1])


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_not_finite_in_tf32(bad, in_floats):
    """In the last row and column, beside the zeros that the copy engine adds, and at the end of the depth."""
    m, n, k = 66, 129, 33
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    a[m - 1, k - 1] = b[k - 1, n - 1] = bad
    expected = np.full((m, n), np.float32(k))
    expected[m - 1], expected[:, n - 1] = bad, bad
    expected[m - 1, n - 1] = bad * bad
    np.testing.assert_array_equal(floats(a, b), expected)


def test_empty_products_in_tf32(in_floats):
    for m, n in ((0, 8), (8, 0), (0, 0)):
        assert floats(integers(m, 8), integers(8, n)).shape == (m, n)
    bias, none = to_device(np.arange(8.0), "float32"), np.zeros((3, 0), np.float32)
    got = floats(none, np.zeros((0, 8), np.float32), np.full((3, 8), 9), bias=bias, beta=1.0)
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(8) + 9, (3, 8)))


@pytest.mark.parametrize(("rows", "inside", "out"), [(2**26 + 5, 36, 8), (2**25 + 5, 8, 68)])
def test_floats_beyond_2_to_the_31(rows, inside, out, in_floats, huge, blocks):
    blocks(2**30)
    x, last, weight = sparse((rows, inside), "float32"), integers(2, inside), integers(out, inside, seed=1)
    x[rows - 2 : rows] = last
    y = ops.linear(x, to_device(weight, "float32"), None)
    np.testing.assert_array_equal(to_host(y[rows - 2 : rows]), last @ weight.T)


# Planted faults ---------------------------------------------------------------------------------------------

# Of those of test_cuda_linear_wgmma.py what is not as with 16 bits.
OWN_FAULTS = {
    "copies count the depth as with 16 bits": (
        "wgmma_linear.cuh",
        "Multiply::DEPTH;",
        "(WRONG ? SLICE : Multiply::DEPTH);",
        None,
    ),
    "there are as few slices as with 16 bits": (
        "wgmma_block.cuh",
        "begin) + DEPTH - 1) / DEPTH",
        "begin) + DEPTH - 1) / (WRONG ? SLICE : DEPTH)",
        None,
    ),
    "a part begins where one of 16 bits would": (
        "wgmma_block.cuh",
        "begin / DEPTH",
        "begin / (WRONG ? SLICE : DEPTH)",
        None,
    ),
    "half of a slice is left out": ("wgmma_tile.cuh", "(SLICE_BYTES / 32)", "(SLICE_BYTES / (WRONG ? 64 : 32))", None),
    "floats of C are stored one place further": (
        "wgmma_block.cuh",
        "return epilogue.y;",
        "return epilogue.y + WRONG;",
        "which is no multiple of 16",
    ),
    "a full stage is not waited for": FAULTS["a full stage is not waited for"],
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The kernel of floats."""
    faults = [fault[:3] for fault in OWN_FAULTS.values()]
    folder = tmp_path_factory.mktemp("kernels")
    return with_faults(folder, "linear_wgmma_tf32", faults, ("wgmma_tf32_nt",), "float")["wgmma_tf32_nt"]


@pytest.mark.skipif(KERNEL_DEVICE != "emulator", reason="what finds them is the emulator's")
@pytest.mark.parametrize("fault", [None, *OWN_FAULTS])
def test_planted_faults_are_found_in_floats(fault, planted, in_floats, blocks, monkeypatch):
    blocks(1)
    number = 0 if fault is None else 1 + list(OWN_FAULTS).index(fault)

    def kernel(grid, *arguments, variant):
        planted(grid, *arguments, number)

    def is_right():
        """A product of several tiles in a block, and one in parts of three slices."""
        cases = [(integers(m, k), integers(k, n, seed=1)) for m, n, k in ((72, 264, 100), (66, 24, 5000))]
        return all(np.array_equal(floats(a, b, seed=1), a @ b) for a, b in cases)

    monkeypatch.setattr(linear_wgmma, "_tf32_nt", kernel)
    message = OWN_FAULTS[fault][3] if fault else None
    if message is None:
        assert is_right() == (fault is None)
        return
    with pytest.raises(KernelFault, match=message):
        is_right()


def test_a_map_that_does_not_round_is_found(in_floats, monkeypatch):
    """wgmma cuts off what the copy engine has left."""
    x = drawn(5, 36)
    monkeypatch.setattr(linear_wgmma, "tiled", lambda *arguments, tf32: tensor_map.tiled(*arguments))
    got = floats(x, np.eye(36))
    np.testing.assert_array_equal(got, (x.view(np.uint32) & 0xFFFFE000).view(np.float32))
    assert (got != in_tf32(x)).any()
