"""Convolution on the rung of plain multiply-adds: each window, tile edges, parts, what is not finite; its choice."""

import numpy as np
import pytest
from emulated import Offset, Wide, compare, to_device, to_host
from products import launches, ternary
from table import assert_close, emulating
from test_cuda_conv import AROUND, NONE, ONE, compare_all, sizes
from test_cuda_conv import SHAPES as WINDOWS

import bp.ops.conv as ops
from bp.checking import tolerance
from bp.cuda import choice, conv_simt, simt_tiles
from bp.cuda.choice import Problem
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Source

ANY = "128x128 of 4"

# Channels in whole vectors: around the edges of a tile of 64 or 128 pixels and channels, and of a slice of 16 steps,
# which ends within a tap, at its end, or has several. x, out channels, kernel, stride, padding, dilation, groups.
VECTORS = [
    ((1, 1, 1, 4), 4, (1, 1), ONE, NONE, ONE, 1),
    ((1, 8, 16, 16), 128, (1, 1), ONE, NONE, ONE, 1),  # one tile of 128 x 128, one slice
    ((1, 3, 43, 4), 132, (3, 3), ONE, AROUND, ONE, 1),  # four taps a slice
    ((1, 4, 16, 20), 68, (3, 3), ONE, AROUND, ONE, 1),  # a tap and a quarter
    ((2, 7, 9, 40), 60, (2, 3), (2, 1), ((1, 0), (0, 2)), ONE, 1),
    ((1, 9, 8, 4), 8, (2, 3), ONE, ((2, 2), (1, 1)), (3, 2), 1),
    ((2, 6, 7, 4), 4, (2, 2), (3, 4), NONE, ONE, 1),  # pixels that no window reaches
    ((1, 9, 7, 8), 4, (3, 2), (2, 3), ((2, 1), (1, 3)), (2, 3), 1),  # stride and dilation share a factor
    ((1, 10, 9, 4), 8, (3, 3), (4, 6), ((4, 4), (5, 5)), (6, 4), 1),  # and some have none of the taps
    ((2, 3, 3, 8), 4, (2, 2), ONE, ((9, 9), (7, 8)), (5, 4), 1),  # windows of nothing but padding
    ((3, 1, 1, 8), 8, (1, 1), (2, 3), NONE, ONE, 1),  # classes without a pixel; a row of the depth for each image
    ((2, 5, 6, 24), 48, (3, 3), (2, 2), AROUND, ONE, 3),
    ((1, 5, 6, 32), 32, (3, 3), ONE, AROUND, ONE, 8),
]


@pytest.mark.parametrize("tile", ["128x128", "128x64", "64x128"])
@pytest.mark.parametrize("case", VECTORS, ids=str)
def test_whole_vectors_are_exact(case, tile, force):
    force("conv", f"simt:{tile}")
    with emulating(detector=tile == "128x128", seed=len(tile)):
        compare_all(case, "float32", accumulate=tile == "128x64")


@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_any_channels_are_exact(case, force):
    """Where channels are no whole vectors, an element comes at a time."""
    force("conv", "simt")
    with emulating(detector=True, seed=3):
        compare_all(case, "float32", accumulate=True)


@pytest.mark.parametrize("case", [VECTORS[3], VECTORS[4], VECTORS[7], VECTORS[11], WINDOWS[4], WINDOWS[11]], ids=str)
def test_without_asynchronous_copies(case, force, monkeypatch):
    """As on compute capability 7.5, where elements pass through registers."""
    force("conv", "simt")
    variants = {name: tile | {"__CUDA_ARCH__": 750} for name, tile in simt_tiles.TILES.items()}
    source = Source("conv_simt", folder=kernel_folder(), T=("float",), variants=variants)
    for name in ("forward", "backward_input", "backward_parameters"):
        monkeypatch.setattr(conv_simt, f"_{name}", source.kernel(f"simt_{name}", flops="0", bytes="0"))
    with emulating(detector=True, seed=1):
        compare_all(case, "float32", accumulate=False)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        ((1, 3, 3, 40), 8, (3, 3), ONE, AROUND, ONE, 1),  # y
        ((1, 3, 4, 8), 132, (2, 2), (1, 2), NONE, ONE, 1),  # dx, in two classes of one tap and a half
        ((2, 16, 17, 12), 8, (1, 2), ONE, NONE, ONE, 2),  # dW and db
        ((2, 16, 17, 4), 6, (1, 2), ONE, NONE, ONE, 1),  # and 6 sums between one part and the next
    ],
    ids=str,
)
def test_cut_depths(case, accumulate, force):
    force("conv", "simt")
    with emulating(detector=True, seed=0):
        names, found = launches(lambda: compare_all(case, "float32", accumulate))
    assert "add_parts" in names and any(launch.grid[1] > 1 for launch in found)


def test_a_long_sum_of_equal_terms_keeps_its_digits(force):
    force("conv", "simt")
    x, dy = np.full((2, 150, 150, 1), 1.7), np.full((2, 150, 150, 2), 0.1)
    dweight, dbias = Wide(np.zeros((2, 1, 1, 1))), Wide(np.zeros(2))
    compare(ops.conv2d_backward_parameters, dy, x, dweight, dbias, False, ONE, NONE, ONE, 1, length=45000)


# Alignment, order, epilogues --------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_any_alignment(groups, shift, force):
    """Channels of whole vectors, in arrays that begin anywhere."""
    force("conv", "simt")
    generator = np.random.default_rng(0)
    case = ((2, 5, 6, 16), 16, (3, 3), (2, 1), AROUND, ONE, groups)
    y_shape, weight_shape, settings = sizes(*case)
    x, dy, weight = (Offset(generator.standard_normal(s), shift) for s in (case[0], y_shape, weight_shape))
    with emulating(detector=True, seed=shift):
        compare(ops.conv2d, x, weight, Offset(np.ones(16), shift), *settings, length=144)
        compare(ops.conv2d_backward_input, dy, weight, case[0][1:3], *settings, length=144)
        dweight, dbias = Wide(np.zeros(weight_shape)), Wide(np.zeros(16))
        compare(ops.conv2d_backward_parameters, dy, x, dweight, dbias, False, *settings, length=60)


def test_the_order_of_threads_does_not_matter(force):
    force("conv", "simt")
    generator = np.random.default_rng(0)
    case = ((2, 13, 12, 8), 12, (2, 3), (2, 1), AROUND, ONE, 1)
    y_shape, weight_shape, settings = sizes(*case)
    x, dy, weight = (generator.standard_normal(s).astype("float32") for s in (case[0], y_shape, weight_shape))
    runs = []
    for seed in (0, 1, 2):
        given = [to_device(a) for a in (x, dy, weight)]
        sums = [to_device(np.ones(s), "float32") for s in (weight_shape, y_shape[3:])]
        with emulating(detector=False, seed=seed):
            y = ops.conv2d(given[0], given[2], None, *settings)
            dx = ops.conv2d_backward_input(given[1], given[2], case[0][1:3], *settings)
            ops.conv2d_backward_parameters(given[1], given[0], *sums, True, *settings)
        runs.append([to_host(a) for a in (y, dx, *sums)])
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize(("channels", "out", "groups"), [(8, 68, 1), (6, 10, 2)])
def test_activations(channels, out, groups, activation, force):
    """Sums of integers are exact, so what follows is the same to the bit as on the rung below."""
    case = ((2, 6, 7, channels), out, (3, 3), (1, 2), AROUND, ONE, groups)
    y_shape, weight_shape, settings = sizes(*case)
    x, weight, bias, dy = (ternary(*s, seed=i) / 4 for i, s in enumerate((case[0], weight_shape, (out,), y_shape)))
    results = []
    for rung in ("simt", "tiled"):
        force("conv", rung)
        given = [to_device(a) for a in (x, weight, bias, dy)]
        y, kept = ops.conv2d_activation(*given[:3], activation, *settings)
        below = given[0] if activation == "relu" else to_device(x * 2)
        dz = ops.conv2d_backward_input_activation(given[3], given[1], below, activation, x.shape[1:3], *settings)
        results.append([to_host(a) for a in (y, kept, dz)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


# One tile of 128 pixels and a rest, less than half a tile, groups; channels that are no whole vectors.
@pytest.mark.parametrize(
    ("tile", "case"),
    [
        ("128x128", VECTORS[2]),
        ("128x64", VECTORS[3]),
        ("64x128", VECTORS[2]),
        ("64x128", VECTORS[11]),
        (ANY, WINDOWS[4]),
        (ANY, WINDOWS[14]),
    ],
    ids=str,
)
def test_moments_come_with_the_convolution(tile, case, force):
    """Those of y's columns, for a batch normalisation behind it: far from zero, where squares would cancel."""
    force("conv", f"simt:{tile}")
    y_shape, weight_shape, settings = sizes(*case)
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal(case[0]), generator.standard_normal(weight_shape)
    given = [to_device(a.astype("float32")) for a in (x, weight, np.full(y_shape[3], 100.0))]
    results = []
    with emulating(detector=True, seed=1):
        names, _ = launches(lambda: results.extend(ops.conv2d_statistics(*given, *settings)))
    assert names == ["simt_forward", "merge_moments"]
    y, mean, variance = (to_host(a).astype(np.float64) for a in results)
    count = y.size // y.shape[3]
    np.testing.assert_array_equal(y, to_host(ops.conv2d(*given, *settings)))
    assert_close(mean, y.mean((0, 1, 2)), tolerance("float32", count))
    assert_close(variance, y.var((0, 1, 2)), tolerance("float32", count))


# What is not finite, empty, or large ------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "case",
    [
        ((2, 8, 9, 4), 8, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 6, 8, 20), 4, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 8, 9, 3), 33, (2, 3), (2, 1), ((1, 0), (0, 1)), (1, 2), 1),
        ((2, 8, 9, 8), 8, (3, 2), (2, 2), NONE, ONE, 2),
    ],
    ids=str,
)
def test_what_is_not_finite_reaches_its_windows_and_nothing_else(case, bad, force):
    force("conv", "simt")
    shape = case[0]
    y_shape, weight_shape, settings = sizes(*case)
    # A weight or a gradient of zero would hide what is not finite, or make NaN of it.
    weight, ones = np.full(weight_shape, 0.5, "float32"), np.ones(weight_shape)
    x, dy = np.ones(shape, "float32"), np.ones(y_shape, "float32")
    x[0, 0, 0, 0] = x[0, -1, -1, -1] = x[1, 3, 4, 1] = bad
    y = ops.conv2d(to_device(x), to_device(weight), None, *settings)
    reached = ops.conv2d((~np.isfinite(x)).astype("float64"), ones, None, *settings) > 0
    np.testing.assert_array_equal(~np.isfinite(to_host(y)), reached)

    dweight, dbias = to_device(np.zeros(weight_shape), "float32"), to_device(np.zeros(y_shape[3]), "float32")
    ops.conv2d_backward_parameters(to_device(dy), to_device(x), dweight, dbias, False, *settings)
    marked = np.zeros(weight_shape)
    ops.conv2d_backward_parameters(np.ones(y_shape), (~np.isfinite(x)) * 1.0, marked, None, False, *settings)
    np.testing.assert_array_equal(~np.isfinite(to_host(dweight)), marked > 0)
    assert np.isfinite(to_host(dbias)).all()

    dy[0, 0, 0, 0] = dy[1, -1, -1, -1] = dy[0, 1, 2, 1] = bad
    dx = ops.conv2d_backward_input(to_device(dy), to_device(weight), shape[1:3], *settings)
    reached = ops.conv2d_backward_input((~np.isfinite(dy)) * 1.0, ones, shape[1:3], *settings) > 0
    np.testing.assert_array_equal(~np.isfinite(to_host(dx)), reached)


def test_a_batch_of_no_images(force):
    force("conv", "simt")
    compare_all(((0, 5, 6, 4), 8, (3, 3), ONE, AROUND, ONE, 1), "float32", True)


@pytest.mark.parametrize(("images", "channels"), [(2**21 + 1, 36), (2**26 + 1, 1)])
def test_elements_and_pixels_beyond_2_to_the_31(images, channels, force, huge):
    """The last image of a large batch, on the way there and back."""
    force("conv", "simt")
    case = ((images, 4, 8, channels), 4, (3, 3), ONE, AROUND, ONE, 1)
    y_shape, weight_shape, settings = sizes(*case)
    weight = ternary(*weight_shape)
    x, dy = huge(*case[0]), huge(*y_shape)
    last, gradient = ternary(1, *case[0][1:]), ternary(1, *y_shape[1:], seed=1)
    x[images - 1 : images], dy[images - 1 : images] = last, gradient
    y = ops.conv2d(x, to_device(weight), None, *settings)
    dx = ops.conv2d_backward_input(dy, to_device(weight), (4, 8), *settings)
    # The last block computes the last pixels, or the last elements.
    expected = ops.conv2d(last, weight, None, *settings)
    np.testing.assert_array_equal(to_host(y[images - 1 :])[0, -1, -3:], expected[0, -1, -3:])
    expected = ops.conv2d_backward_input(gradient, weight, (4, 8), *settings)
    np.testing.assert_array_equal(to_host(dx[images - 1 :])[0, -1, -3:], expected[0, -1, -3:])


def test_an_image_of_more_than_2_to_the_32_pixels(force, huge):
    force("conv", "simt")
    rows, columns, weight = 2**16 + 1, 2**16, ternary(8, 1, 1, 1)
    x, last = huge(1, rows, columns, 1), ternary(1, columns)
    x.reshape(rows, columns)[rows - 1 :] = last
    y = ops.conv2d(x, to_device(weight), None, (64, 64), NONE, ONE, 1)
    expected = last[0, ::64, None] * weight.reshape(8)
    np.testing.assert_array_equal(to_host(y)[0, -1, -3:], expected[-3:])


# The choice -------------------------------------------------------------------------------------------------


def test_where_the_table_takes_it(force):
    """Where its tiles are no emptier than those of 64 x 64 by more than they are faster, and enough."""
    force("conv", "")
    for way, m, n, k, groups, alignment, tile in (
        ("forward", 100_000, 256, 576, 1, 16, "128x128"),
        ("forward", 100_000, 64, 576, 1, 16, "128x64"),
        ("forward", 100_000, 16, 144, 1, 16, "128x64"),  # as empty as one of 64 x 64
        ("forward", 1_000, 128, 1_152, 1, 16, None),
        ("forward", 1_000, 128, 1_152, 32, 16, "128x128"),
        ("forward", 100_000, 130, 27, 1, 4, None),
        ("forward", 100_000, 128, 27, 1, 4, ANY),
        ("backward_parameters", 64, 576, 100_000, 1, 16, "64x128"),
        ("backward_parameters", 256, 2_304, 100_000, 1, 16, "128x128"),
    ):
        chosen = choice.choose(Problem("conv", way, m, n, k, 1, "float32", alignment, groups), 80)
        assert (chosen.variant if chosen.rung == "simt" else None) == tile, (way, m, n, k)
    assert choice.choose(Problem("conv", "forward", 10**5, 256, 576, 1, "tf32", 16), 75).rung != "simt"


def test_what_a_launch_costs(force):
    force("conv", "simt")
    x, weight = to_device(np.zeros((2, 6, 7, 8)), "float32"), to_device(np.zeros((12, 3, 3, 8)), "float32")
    names, found = launches(lambda: ops.conv2d(x, weight, None, ONE, AROUND, ONE, 1))
    assert names == ["simt_forward"]
    assert found[0].flops == 2 * (2 * 6 * 7 * 12) * (3 * 3 * 8)
    assert found[0].nbytes == 4 * (2 * 6 * 7 * 8 + 2 * 6 * 7 * 12 + 12 * 3 * 3 * 8)
