"""Convolution of one input channel for each output by the CUDA kernels: every variant, exactly; edges, cuts, NaN."""

import numpy as np
import pytest
from emulated import DTYPES, Offset, Wide, compare, on_device, to_device, to_host
from products import launches, ternary
from table import assert_close, emulating
from test_cuda_conv import AROUND, NONE, ONE, compare_all, sizes

import bp.ops.conv as ops
from bp.checking import tolerance
from bp.cuda import choice
from bp.cuda.epilogue import ADDING
from bp.ops.device import planning_device

ANY = (0, 1)  # TAPS and STEP of the variant for every other window
TWO = (2, 2)


@pytest.fixture(autouse=True)
def depthwise(force):
    force("conv", "depthwise")


def square(taps, step, shape, padding):
    return shape, shape[3], (taps, taps), (step, step), padding, ONE, shape[3]


# x, out channels, kernel, stride, padding, dilation, groups, for each variant. Channels around those of a block (32 of
# float32, 64 of 16 bits), rows and columns around those of a thread (2 and 4), images of more than a block; padding on
# one side, windows of nothing else, pixels that no window reaches.
SQUARES = {
    (3, 1): [
        square(3, 1, (1, 1, 1, 8), AROUND),
        square(3, 1, (2, 7, 9, 40), ((2, 0), (0, 1))),
        square(3, 1, (3, 4, 5, 72), AROUND),
        square(3, 1, (1, 13, 42, 8), AROUND),
        square(3, 1, (2, 1, 2, 16), ((4, 5), (3, 4))),
    ],
    (3, 2): [
        square(3, 2, (2, 6, 9, 16), ((1, 0), (0, 1))),
        square(3, 2, (1, 8, 10, 72), NONE),
        square(3, 2, (1, 15, 40, 8), AROUND),
        square(3, 2, (2, 2, 1, 8), ((5, 4), (4, 6))),
    ],
    (5, 1): [
        square(5, 1, (2, 6, 9, 16), ((2, 2), (2, 2))),
        square(5, 1, (1, 6, 13, 40), ((0, 3), (1, 0))),
        square(5, 1, (1, 1, 2, 8), ((4, 6), (5, 7))),
    ],
    (5, 2): [
        square(5, 2, (2, 7, 10, 16), ((2, 2), (2, 2))),
        square(5, 2, (1, 6, 12, 40), ((1, 0), (3, 0))),
        square(5, 2, (1, 1, 2, 8), ((4, 6), (5, 7))),
    ],
    (7, 1): [
        square(7, 1, (2, 7, 9, 16), ((3, 3), (3, 3))),
        square(7, 1, (1, 8, 10, 40), ((0, 4), (2, 0))),
        square(7, 1, (1, 1, 2, 8), ((6, 7), (6, 8))),
    ],
}
# In vectors of channels: those of x beside each other, or one for all.
VECTORS = [
    ((2, 9, 8, 16), 16, (3, 3), ONE, AROUND, (2, 3), 16),
    ((1, 8, 11, 40), 40, (3, 3), (3, 3), ((1, 0), (0, 2)), ONE, 40),
    ((2, 5, 9, 8), 8, (3, 3), (2, 1), AROUND, ONE, 8),
    ((2, 3, 3, 8), 8, (2, 2), ONE, ((9, 9), (7, 8)), (5, 4), 8),
    ((1, 10, 9, 8), 8, (2, 2), (3, 4), ((4, 4), (5, 5)), (6, 4), 8),
    ((2, 5, 6, 3), 24, (3, 3), ONE, AROUND, ONE, 3),
    ((1, 6, 7, 8), 64, (3, 3), TWO, AROUND, ONE, 8),
    ((2, 4, 5, 1), 8, (5, 5), ONE, ((2, 2), (2, 2)), ONE, 1),
]
# One channel at a time, 32 threads beside each other.
SINGLE = [
    ((1, 1, 1, 1), 1, (1, 1), ONE, NONE, ONE, 1),
    ((2, 7, 9, 18), 18, (3, 3), ONE, AROUND, ONE, 18),
    ((1, 8, 7, 33), 66, (2, 3), (2, 1), ((1, 0), (0, 2)), (1, 2), 33),
    ((2, 5, 6, 8), 16, (3, 3), ONE, AROUND, ONE, 8),  # of 16 bits; of float32 in vectors of dW alone
    ((2, 6, 7, 5), 5, (2, 2), (3, 4), NONE, ONE, 5),
]
# The first one of each variant in all types, the others in one or the other.
CASES = [
    (variant, case, dtype)
    for variant, cases in (*SQUARES.items(), (ANY, VECTORS), (ANY, SINGLE))
    for i, case in enumerate(cases)
    for dtype in (DTYPES if i == 0 else [DTYPES[i % 3]])
]


def variants(found):
    """(TAPS, STEP) of the launches of this rung."""
    defines = [dict(launch.variant.unit.defines) for launch in found if "depthwise" in launch.variant.kernel.name]
    return {(int(define["TAPS"]), int(define["STEP"])) for define in defines}


@pytest.mark.parametrize(("variant", "case", "dtype"), CASES, ids=str)
def test_integers_are_exact(variant, case, dtype):
    with emulating(detector=case[0][1] < 7, seed=3):
        _, found = launches(lambda: compare_all(case, dtype, accumulate=dtype == "float32"))
    assert variants(found) == {variant}


def test_the_choice():
    for each in (1, 2):
        problem = choice.Problem("conv", "forward", 1000, each, 9, 1, "float16", 2, 8, depthwise=True)
        assert choice.choose(problem, 90).rung == "depthwise"


# Cuts of the depth ------------------------------------------------------------------------------------------

CUT = [
    square(3, 1, (2, 9, 32, 8), AROUND),
    square(3, 2, (2, 18, 64, 8), AROUND),
    square(5, 1, (2, 9, 64, 8), ((2, 2), (2, 2))),
    square(7, 1, (1, 18, 64, 8), ((3, 3), (3, 3))),
    ((2, 9, 32, 8), 8, (1, 2), ONE, NONE, ONE, 8),
    ((2, 9, 34, 3), 6, (1, 2), ONE, NONE, ONE, 3),
]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("case", CUT, ids=str)
def test_cut_depths(case, accumulate):
    y_shape, weight_shape, settings = sizes(*case)
    dy, x, dweight, dbias = (ternary(*s, seed=i) for i, s in enumerate((y_shape, case[0], weight_shape, y_shape[3:])))
    given = [to_device(dy, "float16"), to_device(x, "float16"), to_device(dweight), to_device(dbias)]
    expected = [a.astype(np.float64) for a in (dy, x, dweight, dbias)]
    with emulating(detector=False, seed=1):
        names, found = launches(lambda: ops.conv2d_backward_parameters(*given, accumulate, *settings))
    ops.conv2d_backward_parameters(*expected, accumulate, *settings)
    assert names[0] == "depthwise_backward_parameters" and set(ADDING) & set(names) and found[0].grid[1] > 1
    for actual, reference in zip(given[2:], expected[2:], strict=True):
        np.testing.assert_array_equal(to_host(actual), reference)


def test_a_long_sum_of_equal_terms_keeps_its_digits():
    x, dy = np.full((2, 150, 150, 4), 1.7), np.full((2, 150, 150, 4), 0.1)
    dweight, dbias = Wide(np.zeros((4, 3, 3, 1))), Wide(np.zeros(4))
    compare(ops.conv2d_backward_parameters, dy, x, dweight, dbias, False, ONE, AROUND, ONE, 4, length=45000)


# Random numbers, epilogues, alignment, order ----------------------------------------------------------------

# One of each variant, and of the last one in vectors, of channels of x beside each other and not, and without.
ONE_OF_EACH = [
    square(3, 1, (2, 5, 6, 8), AROUND),
    square(3, 2, (2, 7, 9, 8), AROUND),
    square(5, 1, (1, 5, 6, 8), ((2, 2), (2, 2))),
    square(5, 2, (1, 6, 9, 8), ((2, 2), (2, 2))),
    square(7, 1, (1, 4, 6, 8), ((3, 3), (3, 3))),
    ((2, 5, 6, 8), 8, (2, 3), (2, 1), AROUND, ONE, 8),
    ((2, 5, 6, 3), 24, (3, 3), ONE, AROUND, ONE, 3),
    ((2, 5, 6, 5), 5, (3, 3), ONE, AROUND, ONE, 5),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("case", [ONE_OF_EACH[0], ONE_OF_EACH[1], *ONE_OF_EACH[5:]], ids=str)
def test_epilogues(case, activation, dtype):
    """Of forward and of the data gradient, against float64 of the same arrays."""
    shape, out, kernel = case[:3]
    y_shape, weight_shape, settings = sizes(*case)
    generator = np.random.default_rng(0)
    x, weight, bias, dy = (generator.standard_normal(s) for s in (shape, weight_shape, (out,), y_shape))
    given = [to_device(array, dtype) for array in (x, weight, bias, dy)]
    x, weight, bias, dy = (to_host(array).astype(np.float64) for array in given)
    terms = kernel[0] * kernel[1] * out // shape[3]
    relative = tolerance("float32", terms) + (tolerance(dtype) if dtype != "float32" else 0.0)
    y, kept = ops.conv2d_activation(given[0], given[1], given[2], activation, True, *settings)
    expected, before = ops.conv2d_activation(x, weight, bias, activation, True, *settings)
    assert_close(to_host(y), expected, relative, "y")
    assert_close(to_host(kept), before, relative, "kept")
    dz = ops.conv2d_backward_input_activation(given[3], given[1], given[0], activation, shape[1:3], *settings)
    expected = ops.conv2d_backward_input_activation(dy, weight, x, activation, shape[1:3], *settings)
    assert_close(to_host(dz), expected, relative, "dz")


def results(given, case):
    """y with its bias and activation, what is kept of it, dz, dW and db, and the moments of y."""
    shape, out = case[:2]
    _, weight_shape, settings = sizes(*case)
    x, weight, bias, dy = given
    y, kept = ops.conv2d_activation(x, weight, bias, "gelu", True, *settings)
    dz = ops.conv2d_backward_input_activation(dy, weight, x, "gelu", shape[1:3], *settings)
    dweight, dbias = to_device(np.ones(weight_shape), "float32"), to_device(np.ones(out), "float32")
    ops.conv2d_backward_parameters(dy, x, dweight, dbias, True, *settings)
    return [to_host(a) for a in (y, kept, dz, dweight, dbias, *ops.conv2d_statistics(x, weight, bias, *settings))]


def drawn(case):
    y_shape, weight_shape, _ = sizes(*case)
    generator = np.random.default_rng(0)
    return [generator.standard_normal(s) for s in (case[0], weight_shape, y_shape[3:], y_shape)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_where_arrays_begin_changes_no_bit(case, dtype):
    arrays = drawn(case)
    expected = results([to_device(a, dtype) for a in arrays], case)
    for shifts in ((1, 1, 1, 1), (0, 1, 2, 0), (2, 0, 0, 0), (0, 0, 0, 1)):
        given = [on_device(Offset(a, shift), dtype) for a, shift in zip(arrays, shifts, strict=True)]
        for actual, reference in zip(results(given, case), expected, strict=True):
            np.testing.assert_array_equal(actual, reference)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_the_order_of_threads_does_not_matter(case):
    runs = []
    for seed in (0, 1, 2):
        with emulating(detector=False, seed=seed):
            runs.append(results([to_device(a, "float32") for a in drawn(case)], case))
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, other)


# What is not finite, and what is empty ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_what_is_not_finite(case, bad):
    """In x, in dy and in a weight, as in float64: zeros of the padding meet weights in y, and in no gradient."""
    shape = case[0]
    y_shape, weight_shape, settings = sizes(*case)
    for where in ("x", "dy", "weight"):
        arrays = {"x": np.ones(shape), "dy": np.ones(y_shape), "weight": np.full(weight_shape, 0.5)}
        arrays[where].reshape(-1)[[0, arrays[where].size // 2]] = bad
        x, dy, weight = (to_device(arrays[name], "float32") for name in ("x", "dy", "weight"))
        dweight, expected = to_device(np.zeros(weight_shape), "float32"), np.zeros(weight_shape)
        y = ops.conv2d(x, weight, None, *settings)
        dx = ops.conv2d_backward_input(dy, weight, shape[1:3], *settings)
        ops.conv2d_backward_parameters(dy, x, dweight, None, False, *settings)
        x, dy, weight = (arrays[name] for name in ("x", "dy", "weight"))
        np.testing.assert_array_equal(to_host(y), ops.conv2d(x, weight, None, *settings), err_msg=where)
        reference = ops.conv2d_backward_input(dy, weight, shape[1:3], *settings)
        np.testing.assert_array_equal(to_host(dx), reference, err_msg=where)
        ops.conv2d_backward_parameters(dy, x, expected, None, False, *settings)
        np.testing.assert_array_equal(to_host(dweight), expected, err_msg=where)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("channels", [8, 5])
def test_a_batch_of_no_images(channels, accumulate):
    compare_all(square(3, 1, (0, 5, 6, channels), AROUND), "float32", accumulate)


# Sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "channels"), [(2**21 + 1, 36), (2**26 + 1, 1)])
def test_elements_and_pixels_beyond_2_to_the_31(images, channels, huge):
    """The last image of a large batch, on the way there and back."""
    case = square(3, 1, (images, 4, 8, channels), AROUND)
    y_shape, weight_shape, settings = sizes(*case)
    weight = ternary(*weight_shape)
    x, dy = huge(*case[0]), huge(*y_shape)
    last, gradient = ternary(1, *case[0][1:]), ternary(1, *y_shape[1:], seed=1)
    x[images - 1 : images], dy[images - 1 : images] = last, gradient
    y = ops.conv2d(x, to_device(weight), None, *settings)
    dx = ops.conv2d_backward_input(dy, to_device(weight), (4, 8), *settings)
    # The last block computes the last pixel, of the last channels at least.
    expected = ops.conv2d(last, weight, None, *settings)
    np.testing.assert_array_equal(to_host(y[images - 1 :])[0, -1, -1, -4:], expected[0, -1, -1, -4:])
    expected = ops.conv2d_backward_input(gradient, weight, (4, 8), *settings)
    np.testing.assert_array_equal(to_host(dx[images - 1 :])[0, -1, -1, -4:], expected[0, -1, -1, -4:])


def test_more_parts_than_a_grid_has_blocks_for():
    """Sums over 2^28 pixels, in parts of at most 65,535."""
    case = square(7, 1, (1025, 512, 512, 64), ((3, 3), (3, 3)))
    y_shape, weight_shape, settings = sizes(*case)
    device = planning_device()
    x, dy = device.empty(case[0], "float16"), device.empty(y_shape, "float16")
    with device.recording() as ledger:
        ops.conv2d_backward_parameters(dy, x, device.empty(weight_shape, "float32"), None, False, *settings)
    launch = ledger.launches[0]
    assert launch.variant.kernel.name == "depthwise_backward_parameters" and 60_000 < launch.grid[1] <= 65_535
