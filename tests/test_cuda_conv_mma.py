"""Convolution on tensor cores by mma.sync: every tile, every kind of window, exactly; sums, cuts, epilogues, tf32."""

import dataclasses

import numpy as np
import pytest
from emulated import Wide, compare, to_device, to_host
from products import in_tf32, integers, launches, ternary
from table import assert_close, emulating
from test_cuda_conv import AROUND, NONE, ONE, SHAPES, compare_all, sizes

import bp.ops.conv as ops
from bp.checking import tolerance
from bp.cuda import choice, conv_mma, mma_tiles
from bp.cuda.convolution import BYTES_OF, Sizes
from bp.cuda.epilogue import ADDING
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Source

inf, nan = np.inf, np.nan
TYPES = ("float16", "bfloat16")


def whole(case, bytes, itemsize=2):
    """Whether channels, outputs and those of a group are whole pieces of so many bytes."""
    (*_, channels), out, groups = case[0], case[1], case[6]
    return all(count * itemsize % bytes == 0 for count in (channels, out, channels // groups, out // groups))


# Channels of pieces of 4 bytes and of 16, fewer and more than a slice of 32 or 64; rows that wrap within a tile.
MORE = [
    ((2, 5, 7, 8), 16, (3, 3), ONE, AROUND, ONE, 1),
    ((1, 6, 5, 72), 24, (3, 2), (2, 1), ((1, 0), (0, 2)), ONE, 1),
    ((3, 4, 5, 40), 136, (1, 1), ONE, NONE, ONE, 1),
    ((2, 7, 6, 64), 32, (2, 3), (2, 3), ((2, 1), (1, 3)), (2, 3), 2),
    ((1, 9, 8, 10), 6, (3, 3), (2, 2), AROUND, (1, 2), 1),
]
CASES = [case for case in (*SHAPES, *MORE) if whole(case, 4)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_are_exact(case, dtype, force):
    force("conv", "mma")
    with emulating(detector=dtype == "float16", seed=3):
        compare_all(case, dtype, accumulate=dtype == "bfloat16")


@pytest.mark.parametrize("tile", mma_tiles.TILES)
def test_every_tile(tile, force):
    force("conv", f"mma:{tile}")
    channels, out = (6, 10) if tile.endswith("of 4") else (24, 40)
    case = ((2, 9, 8, channels), out, (3, 3), (2, 1), AROUND, ONE, 1)
    with emulating(detector=True, seed=1):
        names, _ = launches(lambda: compare_all(case, "float16", accumulate=True))
    assert {"mma_forward", "mma_backward_input", "mma_backward_parameters"} <= set(names)


def test_the_table_takes_it_for_what_tensor_cores_can_have():
    def rung(dtype, alignment, capability=80):
        problem = choice.Problem("conv", "forward", 12544, 256, 2304, 1, dtype, alignment)
        return choice.choose(problem, capability).rung

    assert rung("bfloat16", 16) == rung("float16", 4) == rung("tf32", 16) == rung("float16", 16, 75) == "mma"
    assert rung("bfloat16", 2) == "tiled" and rung("bfloat16", 16, 75) == "tiled" and rung("float32", 16) == "simt"


@pytest.mark.parametrize("case", [MORE[0], MORE[1], MORE[3], MORE[4]], ids=str)
def test_without_asynchronous_copies(case, force, monkeypatch):
    """As on compute capability 7.5, where slices pass through registers."""
    force("conv", "mma")
    older = {"__CUDA_ARCH__": 750, "BLOCKS_WITH_SUMS": 1}
    variants = {name: macros | older for name, macros in mma_tiles.VARIANTS.items()}
    source = Source("conv_mma", folder=kernel_folder(), T=("float16",), variants=variants)
    kernels = {way: source.kernel(f"mma_{way}", flops="0", bytes="0", shared=mma_tiles.SHARED) for way in BYTES_OF}
    monkeypatch.setattr(conv_mma, "_kernels", kernels)
    with emulating(detector=True, seed=1):
        compare_all(case, "float16", accumulate=True)


@pytest.mark.parametrize("channels", [16, 6])
def test_the_order_of_threads_does_not_matter(channels, force):
    force("conv", "mma")
    generator = np.random.default_rng(0)
    case = ((2, 13, 12, channels), 12, (2, 3), (2, 1), AROUND, ONE, 1)
    y_shape, weight_shape, settings = sizes(*case)
    x, dy, weight = (generator.standard_normal(s).astype(np.float32) for s in (case[0], y_shape, weight_shape))
    runs = []
    for seed in (0, 1, 2):
        given = [to_device(a, "bfloat16") for a in (x, dy, weight)]
        sums = [to_device(np.ones(s), "float32") for s in (weight_shape, y_shape[3:])]
        with emulating(detector=False, seed=seed):
            y, mean, _, variance = ops.conv2d_statistics(given[0], given[2], None, *settings)
            dx = ops.conv2d_backward_input(given[1], given[2], case[0][1:3], *settings)
            ops.conv2d_backward_parameters(given[1], given[0], *sums, True, *settings)
        runs.append([to_host(a) for a in (y, mean, variance, dx, *sums)])
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("tile", ["64x64", "32x32"])
def test_as_many_taps_as_it_counts(tile, force):
    force("conv", f"mma:{tile}")
    with emulating(detector=True, seed=2):
        compare_all(((1, 17, 16, 8), 8, (16, 16), ONE, NONE, ONE, 1), "float16", accumulate=False)


@pytest.mark.parametrize(
    "case",
    [
        ((1, 20, 3, 8), 8, (17, 1), ONE, NONE, ONE, 1),
        ((1, 18, 18, 8), 8, (17, 17), ONE, NONE, ONE, 1),
        ((2, 1, 200, 8), 16, (1, 80), (1, 4), NONE, ONE, 1),
    ],
    ids=str,
)
def test_more_taps_go_to_another_rung(case, force):
    force("conv", "")
    with emulating(detector=True, seed=2):
        names, _ = launches(lambda: compare_all(case, "bfloat16", accumulate=False))
    assert not any(name.startswith("mma") for name in names)


@pytest.mark.parametrize(
    ("wide", "narrow", "weight"),
    [
        ((2**15 + 1, 256, 256, 8), (2**15 + 1, 1, 1, 8), (8, 1, 1, 8)),  # pixels of the input
        ((1, 2**15, 2**15, 8), (1, 2**15, 2**15, 8), (8, 1, 1, 8)),
        ((1, 3, 3, 2**15), (1, 1, 1, 2**14), (2**14, 3, 3, 2**15)),  # weights
    ],
    ids=str,
)
def test_what_32_bits_cannot_count_goes_to_another_rung(wide, narrow, weight, force):
    force("conv", "")
    sizes = Sizes(wide, narrow, weight, ONE, NONE, ONE, 1)
    assert not sizes.counted
    assert dataclasses.replace(sizes, wide=(1, 8, 8, 8), narrow=(1, 8, 8, 8), weight=(8, 1, 1, 8)).counted
    problem = choice.Problem("conv", "forward", 2**20, 64, 64, 1, "float16", 16, counted=False)
    assert choice.choose(problem, 80).rung != "mma"


@pytest.mark.parametrize("channels", [16, 6])
def test_the_bias_gradient_comes_with_the_weight_gradient(channels, force):
    force("conv", "mma")
    dy, x = integers(2, 6, 7, 12), integers(2, 6, 7, channels, seed=1)
    before = integers(12, 3, 3, channels, seed=2), integers(12, seed=3)
    dweight, dbias = (to_device(b, "float32") for b in before)
    given = to_device(dy, "float16"), to_device(x, "float16")
    with emulating(detector=True, seed=0):
        names, _ = launches(lambda: ops.conv2d_backward_parameters(*given, dweight, dbias, True, ONE, AROUND, ONE, 1))
    assert "sum_columns" not in names
    np.testing.assert_array_equal(to_host(dbias), dy.sum((0, 1, 2)) + before[1])
    expected = [b.astype(np.float64) for b in before]
    ops.conv2d_backward_parameters(dy.astype(np.float64), x.astype(np.float64), *expected, True, ONE, AROUND, ONE, 1)
    np.testing.assert_array_equal(to_host(dweight), expected[0])


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "silu"])
@pytest.mark.parametrize("channels", [8, 16, 6])
def test_epilogues(channels, activation, force):
    """Of forward and of the data gradient, against float64 of the same arrays."""
    force("conv", "mma")
    generator = np.random.default_rng(0)
    x, weight, bias, dy = (
        generator.standard_normal(shape) for shape in ((2, 5, 6, channels), (24, 3, 3, channels), (24,), (2, 5, 6, 24))
    )
    given = [to_device(array, "bfloat16") for array in (x, weight, bias, dy)]
    x, weight, bias, dy = (to_host(array).astype(np.float64) for array in given)
    settings = (ONE, AROUND, ONE, 1)
    y, kept = ops.conv2d_activation(*given[:3], activation, True, *settings)
    expected, _ = ops.conv2d_activation(x, weight, bias, activation, False, *settings)
    relative = tolerance("bfloat16") + tolerance("float32", 9 * 24)
    assert_close(to_host(y), expected, relative, "y")
    below = None if activation == "identity" else given[0]
    dz = ops.conv2d_backward_input_activation(given[3], given[1], below, activation, (5, 6), *settings)
    kept = None if activation == "identity" else x
    expected = ops.conv2d_backward_input_activation(dy, weight, kept, activation, (5, 6), *settings)
    assert_close(to_host(dz), expected, relative, "dz")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("channels", [8, 6])
@pytest.mark.parametrize("out", [24, 10])
def test_statistics_with_the_convolution(out, channels, dtype, force):
    force("conv", "mma")
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((3, 7, 6, channels)) + 5, generator.standard_normal((out, 3, 3, channels))
    given = [to_device(array, dtype) for array in (x, weight)]
    with emulating(detector=True, seed=2):
        y, mean, _, variance = ops.conv2d_statistics(*given, None, ONE, AROUND, ONE, 1)
    stored = to_host(y).astype(np.float64)
    relative = tolerance("float32", 126)
    assert_close(to_host(mean), stored.mean((0, 1, 2)), relative)
    assert_close(to_host(variance), stored.var((0, 1, 2)), relative)


@pytest.mark.parametrize("bad", [nan, inf])
def test_what_is_not_finite_reaches_the_windows_that_see_it(bad, force):
    force("conv", "mma")
    x, weight = np.ones((2, 6, 5, 8), np.float32), np.ones((10, 3, 3, 8), np.float32)
    x[1, 5, 4, 7] = bad
    y = to_host(ops.conv2d(to_device(x, "float16"), to_device(weight, "float16"), None, ONE, AROUND, ONE, 1))
    expected = ops.conv2d(x.astype(np.float64), weight.astype(np.float64), None, ONE, AROUND, ONE, 1)
    np.testing.assert_array_equal(y.astype(np.float64), expected)


@pytest.mark.parametrize(("channels", "tile"), [(8, ""), (5, ""), (5, ":128x64 of 4"), (8, ":128x128")])
def test_tf32_rounds_the_factors_and_not_the_sums(channels, tile, force, tf32):
    force("conv", f"mma{tile}")
    generator = np.random.default_rng(0)
    shapes = (2, 5, 6, channels), (12, 3, 3, channels), (2, 5, 6, 12)
    x, weight, dy = (generator.standard_normal(shape).astype(np.float32) for shape in shapes)
    settings = (ONE, AROUND, ONE, 1)
    given = [to_device(array) for array in (x, weight, dy)]
    x, weight, dy = (in_tf32(array) for array in (x, weight, dy))
    relative = tolerance("float32", 108)
    assert_close(to_host(ops.conv2d(*given[:2], None, *settings)), ops.conv2d(x, weight, None, *settings), relative)
    dx = ops.conv2d_backward_input(given[2], given[1], (5, 6), *settings)
    assert_close(to_host(dx), ops.conv2d_backward_input(dy, weight, (5, 6), *settings), relative)
    dweight, expected = to_device(np.zeros(shapes[1], np.float32)), np.zeros(shapes[1])
    ops.conv2d_backward_parameters(given[2], given[0], dweight, None, False, *settings)
    ops.conv2d_backward_parameters(dy, x, expected, None, False, *settings)
    assert_close(to_host(dweight), expected, relative)


def test_cut_depths(force):
    force("conv", "mma")
    with emulating(detector=True, seed=0):
        names, _ = launches(
            lambda: compare_all(((1, 3, 3, 256), 16, (3, 3), ONE, AROUND, ONE, 1), "float16", accumulate=True)
        )
    assert set(ADDING) & set(names)


def test_a_long_sum_of_equal_terms_keeps_its_digits(force):
    force("conv", "mma")
    x, dy = np.full((2, 150, 150, 2), 1.75), np.full((2, 150, 150, 2), 0.125)
    dweight, dbias = Wide(np.zeros((2, 1, 1, 2))), Wide(np.zeros(2))
    compare(
        ops.conv2d_backward_parameters, dy, x, dweight, dbias, False, ONE, NONE, ONE, 1, dtype="float16", length=45000
    )


def test_ternary_factors_through_the_transposed_convolution(force):
    force("conv", "mma")
    x, weight = ternary(2, 4, 5, 8), ternary(8, 3, 3, 16, seed=1)
    y = ops.conv_transpose2d(
        to_device(x, "float16"), to_device(weight, "float16"), None, (1, 1), (2, 2), AROUND, ONE, 1
    )
    expected = ops.conv_transpose2d(
        x.astype(np.float64), weight.astype(np.float64), None, (1, 1), (2, 2), AROUND, ONE, 1
    )
    np.testing.assert_array_equal(to_host(y).astype(np.float64), expected)
