"""Convolution by the CUDA kernels without tensor cores: every kind of window, exactly; cuts, alignment, NaN, tf32."""

import math

import numpy as np
import pytest
from emulated import DTYPES, Offset, Wide, compare, to_device, to_host
from products import in_tf32, integers, launches, ternary
from table import assert_close, emulating

import bp.ops.conv as ops
from bp.checking import tolerance
from bp.cuda import choice
from bp.cuda.epilogue import ADDING
from bp.errors import ShapeError
from bp.ops.array import known_dtype
from bp.ops.device import planning_device

ONE, NONE, AROUND = (1, 1), ((0, 0), (0, 0)), ((1, 1), (1, 1))
RUNGS = ["direct", "tiled", "simt"]
# Multiply-adds of float32 are the rung "simt".
TYPES = [(rung, dtype) for rung in RUNGS for dtype in DTYPES if rung != "simt" or dtype == "float32"]

# x, out channels, kernel, stride, padding, dilation, groups. Around the edges of a tile of 64 pixels and 64 channels,
# of a slice of the depth of 16 or 32, and of a vector of 4 or 8 channels, which has to lie in one pixel.
SHAPES = [
    ((1, 1, 1, 1), 1, (1, 1), ONE, NONE, ONE, 1),
    ((2, 5, 7, 3), 5, (3, 3), ONE, AROUND, ONE, 1),
    ((1, 8, 8, 8), 8, (2, 2), ONE, NONE, ONE, 1),
    ((1, 5, 13, 16), 65, (1, 1), ONE, NONE, ONE, 1),
    ((1, 4, 5, 66), 7, (1, 2), ONE, NONE, ONE, 1),
    ((2, 7, 6, 5), 6, (3, 2), (2, 1), ((1, 0), (0, 2)), ONE, 1),
    ((1, 9, 8, 4), 9, (2, 3), ONE, ((2, 2), (1, 1)), (3, 2), 1),
    ((2, 6, 7, 5), 5, (2, 2), (3, 4), NONE, ONE, 1),  # pixels that no window reaches
    ((1, 9, 7, 8), 5, (3, 2), (2, 3), ((2, 1), (1, 3)), (2, 3), 1),  # stride and dilation share a factor
    ((1, 10, 9, 5), 5, (3, 3), (4, 6), ((4, 4), (5, 5)), (6, 4), 1),  # and some have none of the taps
    ((2, 3, 3, 5), 6, (2, 2), ONE, ((9, 9), (7, 8)), (5, 4), 1),  # windows of nothing but padding
    ((2, 5, 6, 12), 18, (3, 3), (2, 2), AROUND, ONE, 2),
    ((2, 5, 6, 16), 24, (3, 3), ONE, AROUND, ONE, 2),
    ((2, 7, 8, 18), 18, (3, 3), ONE, AROUND, ONE, 18),
    ((1, 7, 8, 33), 66, (2, 3), (2, 1), ((1, 0), (0, 2)), (1, 2), 33),
]


def sizes(shape, out, kernel, stride, padding, dilation, groups):
    """The shapes of (y, the weight) and the settings that every operation takes."""
    size = ops.convolved_size("conv2d", shape[1:3], kernel, stride, padding, dilation)
    return (shape[0], *size, out), (out, *kernel, shape[3] // groups), (stride, padding, dilation, groups)


def results(arrays, shape, y_shape, weight_shape, settings, accumulate):
    """All that the operations give: y, dx, dweight, dbias, and of the transposed convolution y, dweight and dbias."""
    x, dy, weight, bias, bias_up, dweight, dbias, dweight_up, dbias_up = arrays
    stride, padding, dilation, _ = settings
    smallest = (
        ops.transposed_size(y_shape[1 + a], weight_shape[1 + a], stride[a], padding[a], dilation[a], 0) for a in (0, 1)
    )
    output_padding = tuple(size - least for size, least in zip(shape[1:3], smallest, strict=True))
    y = ops.conv2d(x, weight, bias, *settings)
    dx = ops.conv2d_backward_input(dy, weight, shape[1:3], *settings)
    ops.conv2d_backward_parameters(dy, x, dweight, dbias, accumulate, *settings)
    up = ops.conv_transpose2d(dy, weight, bias_up, output_padding, *settings)
    down = ops.conv_transpose2d_backward_input(x, weight, *settings)
    ops.conv_transpose2d_backward_parameters(x, dy, dweight_up, dbias_up, accumulate, *settings)
    return [y, dx, dweight, dbias, up, down, dweight_up, dbias_up]


def compare_all(case, dtype, accumulate):
    """Every operation on integers, on the emulator and in float64: equal, where the result has the digits for it."""
    shape = case[0]
    y_shape, weight_shape, settings = sizes(*case)
    out, channels = y_shape[3], shape[3]
    narrow = [shape, y_shape, weight_shape, (out,), (channels,)]
    wide = [weight_shape, (out,), weight_shape, (channels,)]
    arrays = [ternary(*s, seed=i) for i, s in enumerate((*narrow, *wide))]
    given = [to_device(a, dtype if i < len(narrow) else "float32") for i, a in enumerate(arrays)]
    expected = results([a.astype(np.float64) for a in arrays], shape, y_shape, weight_shape, settings, accumulate)
    actual = results(given, shape, y_shape, weight_shape, settings, accumulate)
    names = ["y", "dx", "dweight", "dbias", "transposed y", "transposed dx", "transposed dweight", "transposed dbias"]
    for name, result, expectation in zip(names, actual, expected, strict=True):
        # The CPU's result rounded once: the sum itself is exact in float32.
        rounded = expectation.astype(known_dtype(result.dtype.name)).astype(np.float64)
        np.testing.assert_array_equal(to_host(result).astype(np.float64), rounded, err_msg=name)


@pytest.mark.parametrize(("rung", "dtype"), TYPES)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_integers_are_exact(case, rung, dtype, force):
    force("conv", rung)
    with emulating(detector=(rung, dtype) in (("tiled", "float16"), ("simt", "float32")), seed=3):
        compare_all(case, dtype, accumulate=dtype == "float32")


def test_the_rungs_that_the_table_takes(force):
    for case, kernels in (
        (((1, 5, 5, 8), 8, (3, 3), ONE, AROUND, ONE, 8), {"depthwise_forward", "depthwise_backward_input"}),
        (((1, 5, 5, 8), 8, (3, 3), ONE, AROUND, ONE, 1), {"conv_forward", "conv_backward_input"}),
    ):
        _, weight_shape, settings = sizes(*case)
        x, weight = to_device(ternary(*case[0])), to_device(ternary(*weight_shape))
        names, _ = launches(
            lambda x=x, weight=weight, settings=settings: ops.conv2d_backward_input(
                ops.conv2d(x, weight, None, *settings), weight, x.shape[1:3], *settings
            )
        )
        assert set(names) == kernels
    assert choice.choose(choice.Problem("conv", "forward", 1000, 64, 576, 1, "float32", 16), 80).rung == "tiled"


# Cuts of the depth ------------------------------------------------------------------------------------------


CUT = [
    ((1, 3, 3, 40), 6, (3, 3), ONE, AROUND, ONE, 1),  # y
    ((1, 3, 4, 8), 132, (2, 2), (1, 2), NONE, ONE, 1),  # dx, in two classes of one tap and a half
    ((2, 16, 17, 12), 6, (1, 2), ONE, NONE, ONE, 2),  # dW and db
    ((2, 16, 17, 4), 6, (1, 2), ONE, NONE, ONE, 1),  # and 6 sums between one part and the next
]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("rung", "dtype", "case"),
    # The direct rung cuts the depth of dW and db alone.
    [(rung, dtype, case) for rung, dtype in TYPES for case in (CUT if rung != "direct" else CUT[2:])],
    ids=str,
)
def test_cut_depths(rung, dtype, case, accumulate, force):
    force("conv", rung)
    with emulating(detector=dtype == "float32", seed=0):
        names, found = launches(lambda: compare_all(case, dtype, accumulate))
    assert set(ADDING) & set(names) and any(launch.grid[1] > 1 for launch in found)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_long_sum_of_equal_terms_keeps_its_digits(rung, force):
    force("conv", rung)
    x, dy = np.full((2, 150, 150, 1), 1.7), np.full((2, 150, 150, 2), 0.1)
    dweight, dbias = Wide(np.zeros((2, 1, 1, 1))), Wide(np.zeros(2))
    compare(ops.conv2d_backward_parameters, dy, x, dweight, dbias, False, ONE, NONE, ONE, 1, length=45000)


# Random numbers, alignment, order ---------------------------------------------------------------------------


@pytest.mark.parametrize(("rung", "dtype"), [given for given in TYPES if given[0] != "direct"])
@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_any_alignment(groups, shift, rung, dtype, force):
    """Channels of whole vectors, in arrays that begin anywhere."""
    force("conv", rung)
    generator = np.random.default_rng(0)
    case = ((2, 5, 6, 16), 16, (3, 3), (2, 1), AROUND, ONE, groups)
    y_shape, weight_shape, settings = sizes(*case)
    x, dy, weight = (Offset(generator.standard_normal(s), shift) for s in (case[0], y_shape, weight_shape))
    length = 9 * 16
    compare(ops.conv2d, x, weight, Offset(np.ones(16), shift), *settings, dtype=dtype, length=length)
    compare(ops.conv2d_backward_input, dy, weight, case[0][1:3], *settings, dtype=dtype, length=length)
    dweight, dbias = Wide(np.zeros(weight_shape)), Wide(np.zeros(16))
    compare(ops.conv2d_backward_parameters, dy, x, dweight, dbias, False, *settings, dtype=dtype, length=60)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize(("channels", "out"), [(5, 6), (8, 12)])
def test_the_order_of_threads_does_not_matter(channels, out, rung, force):
    force("conv", rung)
    generator = np.random.default_rng(0)
    case = ((2, 13, 12, channels), out, (2, 3), (2, 1), AROUND, ONE, 1)
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


# What is not finite, and what is empty ----------------------------------------------------------------------


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "case",
    [
        ((2, 8, 9, 3), 5, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 8, 9, 4), 8, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 6, 8, 20), 3, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 8, 9, 3), 33, (2, 3), (2, 1), ((1, 0), (0, 1)), (1, 2), 1),
        ((2, 8, 9, 6), 6, (3, 3), ONE, AROUND, ONE, 6),
        ((2, 8, 9, 6), 4, (3, 2), (2, 2), NONE, ONE, 2),
        ((2, 8, 9, 8), 8, (3, 2), (2, 2), NONE, ONE, 2),
    ],
    ids=str,
)
def test_what_is_not_finite_reaches_its_windows_and_nothing_else(case, bad, rung, force):
    force("conv", rung)
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


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rung", RUNGS)
def test_a_batch_of_no_images(rung, accumulate, force):
    force("conv", rung)
    compare_all(((0, 5, 6, 3), 5, (3, 3), ONE, AROUND, ONE, 1), "float32", accumulate)


@pytest.mark.parametrize("rung", RUNGS)
def test_no_channels(rung, force):
    force("conv", rung)
    settings = (ONE, NONE, ONE, 1)
    bias = np.arange(3, dtype="float32")
    empty = to_device(np.zeros((2, 4, 4, 0)), "float32")
    y = ops.conv2d(empty, to_device(np.zeros((3, 2, 2, 0)), "float32"), to_device(bias), *settings)
    np.testing.assert_array_equal(to_host(y), np.broadcast_to(bias, (2, 3, 3, 3)))
    up = ops.conv_transpose2d(empty, to_device(np.zeros((0, 2, 2, 3)), "float32"), to_device(bias), (0, 0), *settings)
    np.testing.assert_array_equal(to_host(up), np.broadcast_to(bias, (2, 5, 5, 3)))
    dbias = to_device(np.ones(3), "float32")
    ops.conv2d_backward_parameters(y, empty, to_device(np.zeros((3, 2, 2, 0)), "float32"), dbias, True, *settings)
    np.testing.assert_array_equal(to_host(dbias), 1 + 18 * bias)


def test_gradients_that_are_not_wanted():
    x, dy = ternary(2, 5, 5, 6), ternary(2, 3, 3, 8)
    dweight, dbias = Wide(np.ones((8, 3, 3, 6))), Wide(np.ones(8))
    for wanted in ((dweight, None), (None, dbias), (None, None)):
        compare(ops.conv2d_backward_parameters, dy, x, *wanted, True, ONE, NONE, ONE, 1, length=18)


# tf32, costs, errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["direct", "tiled"])
def test_tf32_rounds_the_factors(rung, force, tf32):
    force("conv", rung)
    generator = np.random.default_rng(0)
    case = ((2, 5, 6, 5), 6, (3, 2), (2, 1), AROUND, ONE, 1)
    y_shape, weight_shape, settings = sizes(*case)
    x, dy, weight = (generator.standard_normal(s).astype("float32") for s in (case[0], y_shape, weight_shape))
    relative = tolerance("float32", 60)
    y = ops.conv2d(to_device(x), to_device(weight), None, *settings)
    assert_close(to_host(y), ops.conv2d(in_tf32(x), in_tf32(weight), None, *settings), relative)
    dx = ops.conv2d_backward_input(to_device(dy), to_device(weight), (5, 6), *settings)
    assert_close(to_host(dx), ops.conv2d_backward_input(in_tf32(dy), in_tf32(weight), (5, 6), *settings), relative)
    dweight, dbias = (to_device(np.zeros(s), "float32") for s in (weight_shape, y_shape[3:]))
    ops.conv2d_backward_parameters(to_device(dy), to_device(x), dweight, dbias, False, *settings)
    expected = np.zeros(weight_shape)
    ops.conv2d_backward_parameters(in_tf32(dy), in_tf32(x), expected, None, False, *settings)
    assert_close(to_host(dweight), expected, relative)
    # A sum of dy is no product: its terms are not rounded.
    assert_close(to_host(dbias), dy.astype(np.float64).sum((0, 1, 2)), relative)


def test_what_a_launch_costs():
    x, weight = to_device(np.zeros((2, 6, 7, 8)), "bfloat16"), to_device(np.zeros((10, 3, 3, 8)), "bfloat16")
    _, found = launches(lambda: ops.conv2d(x, weight, None, ONE, AROUND, ONE, 1))
    assert found[0].flops == 2 * (2 * 6 * 7 * 10) * (3 * 3 * 8)
    assert found[0].nbytes == 2 * (2 * 6 * 7 * 8 + 2 * 6 * 7 * 10 + 10 * 3 * 3 * 8)


@pytest.mark.parametrize("stride", [ONE, (2, 2)])
@pytest.mark.parametrize("rung", ["direct", "tiled", "mma", "simt", "wgmma"])
def test_what_the_epilogue_of_a_launch_moves(rung, stride, force):
    """The bias, the argument of an activation that is kept, and the one that a gradient is taken at."""
    force("conv", rung)
    dtype, each = ("float32", 4) if rung == "simt" else ("bfloat16", 2)
    case = ((2, 6, 8, 16), 8, (2, 2), stride, NONE, ONE, 1)
    y_shape, weight_shape, settings = sizes(*case)
    x, weight, bias, dy = (to_device(np.zeros(s), dtype) for s in (case[0], weight_shape, (8,), y_shape))

    def moved(work):
        return sum(launch.nbytes for launch in launches(work)[1])

    plain = moved(lambda: ops.conv2d(x, weight, None, *settings))
    assert moved(lambda: ops.conv2d(x, weight, bias, *settings)) == plain + each * 8
    assert moved(lambda: ops.conv2d_activation(x, weight, None, "silu", False, *settings)) == plain
    assert moved(lambda: ops.conv2d_activation(x, weight, None, "silu", True, *settings)) == plain + each * dy.size
    plain = moved(lambda: ops.conv2d_backward_input(dy, weight, x.shape[1:3], *settings))
    behind = moved(lambda: ops.conv2d_backward_input_activation(dy, weight, x, "silu", x.shape[1:3], *settings))
    assert behind == plain + each * x.size
    dweight = to_device(np.zeros(weight_shape), "float32")
    written, added = (
        moved(lambda add=add: ops.conv2d_backward_parameters(dy, x, dweight, None, add, *settings))
        for add in (False, True)
    )
    assert added == written + 4 * dweight.size


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize(("images", "channels", "out"), [(2**21 + 1, 36, 4), (2**26 + 1, 1, 5)])
def test_elements_and_pixels_beyond_2_to_the_31(images, channels, out, rung, force, huge):
    """The last image of a large batch, on the way there and back."""
    force("conv", rung)
    case = ((images, 4, 8, channels), out, (3, 3), ONE, AROUND, ONE, 1)
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


@pytest.mark.parametrize("rung", RUNGS)
def test_an_image_of_more_than_2_to_the_32_pixels(rung, force, huge):
    force("conv", rung)
    rows, columns, weight = 2**16 + 1, 2**16, ternary(5, 1, 1, 1)
    x, last = huge(1, rows, columns, 1), integers(1, columns)
    x.reshape(rows, columns)[rows - 1 :] = last
    y = ops.conv2d(x, to_device(weight), None, (64, 64), NONE, ONE, 1)
    expected = last[0, ::64, None] * weight.reshape(5)
    np.testing.assert_array_equal(to_host(y)[0, -1, -3:], expected[-3:])


def test_images_larger_than_the_kernels_count():
    x, weight = to_device(np.zeros((0, 2**31, 1, 1)), "float32"), to_device(np.zeros((1, 1, 1, 1)), "float32")
    with pytest.raises(ShapeError, match=r"less than 2\^31 rows and columns"):
        ops.conv2d(x, weight, None, ONE, NONE, ONE, 1)


@pytest.mark.parametrize(
    "case",
    [
        ((2049, 512, 512, 2), 2, (3, 3), ONE, AROUND, ONE, 1),  # more parts of the depth
        ((1, 256, 256, 3), 2, (256, 256), ONE, NONE, ONE, 1),  # and more taps than blocks along an axis of a grid
    ],
    ids=str,
)
def test_grids_of_the_direct_rung(case, force):
    force("conv", "direct")
    y_shape, weight_shape, settings = sizes(*case)
    device = planning_device()
    x, dy, dweight = (device.empty(shape, "float32") for shape in (case[0], y_shape, weight_shape))
    with device.recording() as ledger:
        ops.conv2d_backward_parameters(dy, x, dweight, None, False, *settings)
    launch = ledger.launches[0]
    assert launch.variant.kernel.name == "direct_backward_parameters" and max(launch.grid[1:]) <= 65_535
    assert math.prod(launch.grid) > 65_000
