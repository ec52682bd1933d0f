"""Convolutions on the rung of wgmma: every kind of window to the bit, epilogues, parts, sums, and what it leaves."""

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from emulated import sparse, to_device, to_host
from faulty import with_faults
from planted import needs_nvdisasm, needs_nvrtc
from products import ADDED, integers, launches, ternary
from table import KERNEL_DEVICE, emulating

import bp.ops.conv as ops
from bp.cuda import choice, conv_wgmma, disassembler, nvrtc, wgmma_tiles
from bp.cuda.convolution import Convolution, Sizes
from bp.cuda.epilogue import ADDING
from bp.cuda.files import kernel_folder
from bp.errors import ConfigurationError
from bp.ops.array import known_dtype
from bp.ops.device import find_device

inf, nan = np.inf, np.nan
ONE, TWO, NONE, AROUND = (1, 1), (2, 2), ((0, 0), (0, 0)), ((1, 1), (1, 1))
SMALL = "64x128"  # the tile that costs the emulator least: 64 x 128, slices of 64 of the depth, 8 stages

# x, out channels, kernel, stride, padding, dilation, groups. Windows in lines that end within a tile, several images in
# one; tiles, slices and panels that are full, and such that are not.
SHAPES = [
    ((1, 1, 1, 8), 8, (1, 1), ONE, NONE, ONE, 1),
    ((3, 5, 7, 64), 72, (1, 1), ONE, NONE, ONE, 1),
    ((2, 5, 6, 64), 72, (3, 3), ONE, AROUND, ONE, 1),
    ((5, 3, 4, 8), 136, (3, 3), ONE, AROUND, ONE, 1),
    ((1, 9, 8, 72), 8, (2, 3), ONE, ((1, 0), (0, 2)), ONE, 1),
    ((1, 8, 9, 128), 16, (5, 5), ONE, ((2, 2), (2, 2)), ONE, 1),
    ((2, 9, 8, 72), 72, (3, 3), (2, 2), AROUND, ONE, 1),
    ((2, 13, 9, 8), 8, (3, 2), (2, 3), ((2, 1), (1, 0)), ONE, 1),
    ((1, 9, 8, 16), 24, (2, 3), ONE, ((2, 2), (1, 1)), (3, 2), 1),
    ((2, 3, 3, 8), 8, (2, 2), ONE, ((9, 9), (7, 8)), (5, 4), 1),  # windows of nothing but padding
    ((3, 2, 65, 8), 8, (1, 3), ONE, NONE, ONE, 1),  # a slice of windows is less than a line
    ((2, 5, 6, 128), 256, (1, 3), ONE, ((0, 0), (1, 1)), ONE, 2),
    ((2, 5, 6, 128), 16, (2, 2), TWO, NONE, ONE, 2),
    ((1, 7, 6, 128), 128, (3, 3), TWO, AROUND, ONE, 2),
    ((2, 6, 7, 16), 24, (1, 1), TWO, NONE, ONE, 1),  # classes of pixels without a tap
    ((1, 9, 7, 8), 72, (3, 2), (2, 3), ((2, 1), (1, 3)), (2, 3), 1),  # stride and dilation share a factor
    ((1, 10, 9, 8), 8, (3, 3), (4, 6), ((4, 4), (5, 5)), (6, 4), 1),
    # At the limits of a map of pixels.
    ((1, 3, 4, 8), 8, (2, 2), ONE, ((128, 128), (128, 128)), (255, 255), 1),
    ((1, 9, 17, 8), 8, (1, 1), (8, 8), NONE, ONE, 1),
]


@pytest.fixture
def blocks(monkeypatch):
    """blocks(3): as many multiprocessors, and so blocks that stay, has the device."""
    return lambda count: monkeypatch.setattr(type(find_device(KERNEL_DEVICE)), "multiprocessors", count)


def sizes(shape, out, kernel, stride, padding, dilation, groups):
    """The shapes of (y, the weight) and the settings that every operation takes."""
    size = ops.convolved_size("conv2d", shape[1:3], kernel, stride, padding, dilation)
    return (shape[0], *size, out), (out, *kernel, shape[3] // groups), (stride, padding, dilation, groups)


def has_input_gradient(case):
    """Whether this rung computes dx: in groups of whole slices."""
    return case[6] == 1 or case[1] // case[6] % 64 == 0


def expect_equal(got, expected):
    """got: on the device; expected: in float64, which is rounded once, for the sums themselves are exact."""
    rounded = expected.astype(known_dtype(got.dtype.name)).astype(np.float64)
    np.testing.assert_array_equal(to_host(got).astype(np.float64), rounded)


def arrays(case):
    """(x, weight, dy) of integers."""
    y_shape, weight_shape, settings = sizes(*case)
    return ternary(*case[0]), ternary(*weight_shape, seed=1), ternary(*y_shape, seed=2), settings


def check(case, dtype="bfloat16", accumulate=False):
    """y, dW with db, and dx where it is this rung's, against float64."""
    x, weight, dy, settings = arrays(case)
    on = [to_device(a, dtype) for a in (x, weight, dy)]
    exact = [a.astype(np.float64) for a in (x, weight, dy)]
    expect_equal(ops.conv2d(on[0], on[1], None, *settings), ops.conv2d(exact[0], exact[1], None, *settings))
    if has_input_gradient(case):
        got = ops.conv2d_backward_input(on[2], on[1], case[0][1:3], *settings)
        expect_equal(got, ops.conv2d_backward_input(exact[2], exact[1], case[0][1:3], *settings))
    before = [integers(*weight.shape, seed=3), integers(dy.shape[3], seed=4)]
    sums, expected = [to_device(a, "float32") for a in before], [a.astype(np.float64) for a in before]
    ops.conv2d_backward_parameters(on[2], on[0], *sums, accumulate, *settings)
    ops.conv2d_backward_parameters(exact[2], exact[0], *expected, accumulate, *settings)
    for got, wanted in zip(sums, expected, strict=True):
        expect_equal(got, wanted)


# Exact convolutions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_integers_are_exact(case, force):
    force("conv", f"wgmma:{SMALL}")
    for seed, dtype in ((0, "bfloat16"), (3, "float16")):
        with emulating(detector=True, seed=seed):
            names, _ = launches(lambda dtype=dtype, seed=seed: check(case, dtype, accumulate=seed == 0))
    gradient = {"wgmma_backward_input" if case[3] == ONE else "wgmma_backward_strided"}
    used = {"wgmma_forward", "wgmma_backward_parameters"} | (gradient if has_input_gradient(case) else set())
    assert set(names) - set(ADDING) == used


@pytest.mark.parametrize("variant", wgmma_tiles.TILES)
def test_every_tile(variant, force):
    """More windows, channels and outputs than one has rows and columns."""
    force("conv", f"wgmma:{variant}")
    tile = wgmma_tiles.TILES[variant]
    with emulating(detector=True, seed=1):
        check(((1, 2, tile.rows // 2 + 4, tile.columns + 8), tile.columns + 8, (1, 1), ONE, NONE, ONE, 1))
        check(((1, 2, 8, 64), tile.rows + 8, (2, 3), ONE, AROUND, ONE, 1))  # panels at several taps


def test_results_do_not_depend_on_the_number_of_blocks(force, blocks):
    """One block that has all tiles, some that share them, one each: the ring of stages goes on from tile to tile."""
    force("conv", f"wgmma:{SMALL}")
    generator = np.random.default_rng(0)
    case = ((3, 7, 9, 72), 136, (3, 3), ONE, AROUND, ONE, 1)
    y_shape, weight_shape, settings = sizes(*case)
    x, weight, dy = (to_device(generator.standard_normal(s), "bfloat16") for s in (case[0], weight_shape, y_shape))
    runs = []
    for count, detector in ((1, True), (2, True), (100, False)):
        blocks(count)
        sums = [to_device(np.zeros(s), "float32") for s in (weight_shape, y_shape[3:])]
        with emulating(detector=detector, seed=count % 3):
            y = ops.conv2d(x, weight, None, *settings)
            dx = ops.conv2d_backward_input(dy, weight, case[0][1:3], *settings)
            ops.conv2d_backward_parameters(dy, x, *sums, False, *settings)
        runs.append([to_host(a) for a in (y, dx, *sums)])
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(("stride", "output_padding"), [(ONE, (0, 0)), (TWO, (1, 0))])
def test_the_transposed_convolution(stride, output_padding, force):
    """With a row beyond those that the smallest result has."""
    _, weight, x, settings = arrays(((2, 9, 7, 8), 72, (3, 2), stride, AROUND, (2, 2), 1))
    bias = integers(8, seed=5)
    given = to_device(x, "bfloat16"), to_device(weight, "bfloat16")
    exact = x.astype(np.float64), weight.astype(np.float64)
    expected = ops.conv_transpose2d(*exact, bias.astype(np.float64), output_padding, *settings)
    force("conv", f"wgmma:{SMALL}")
    up = ops.conv_transpose2d(*given, to_device(bias, "bfloat16"), output_padding, *settings)
    expect_equal(up, expected)
    dy = ternary(*up.shape, seed=6)
    given_dy, exact_dy = to_device(dy, "bfloat16"), dy.astype(np.float64)
    expect_equal(
        ops.conv_transpose2d_backward_input(given_dy, given[1], *settings),
        ops.conv_transpose2d_backward_input(exact_dy, exact[1], *settings),
    )
    dweight, wanted = to_device(np.zeros(weight.shape), "float32"), np.zeros(weight.shape)
    ops.conv_transpose2d_backward_parameters(given_dy, given[0], dweight, None, False, *settings)
    ops.conv_transpose2d_backward_parameters(exact_dy, exact[0], wanted, None, False, *settings)
    expect_equal(dweight, wanted)


# Epilogues, parts and sums ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "stride"), [(1, ONE), (2, ONE), (2, TWO)])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "silu"])
def test_epilogues(activation, groups, stride, force):
    """Sums of integers are exact, so what follows is the same to the bit as on the rung below."""
    case = ((2, 5, 7, 128), 144 if groups == 1 else 256, (2, 2), stride, AROUND, ONE, groups)
    x, weight, dy, settings = arrays(case)
    given = [to_device(a / 4, "bfloat16") for a in (x, weight, dy)]
    bias, kept = (to_device(integers(*s, seed=5) / 4, "bfloat16") for s in ((dy.shape[3],), x.shape))
    results = []
    for rung in (f"wgmma:{SMALL}", "tiled"):
        force("conv", rung)
        with emulating(detector=rung != "tiled", seed=1):
            y, before = ops.conv2d_activation(given[0], given[1], bias, activation, True, *settings)
            dx = ops.conv2d_backward_input_activation(
                given[2], given[1], None if activation == "identity" else kept, activation, x.shape[1:3], *settings
            )
        results.append([to_host(a).astype(np.float32) for a in (y, before, dx) if a is not None])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "case",
    [
        ((1, 3, 3, 320), 16, (3, 3), ONE, AROUND, ONE, 1),  # y
        ((1, 3, 3, 16), 320, (3, 3), ONE, AROUND, ONE, 1),  # dx
        ((1, 5, 6, 16), 640, (3, 3), TWO, AROUND, ONE, 1),  # in classes of four, two and one tap
        ((1, 3, 3, 1280), 128, (1, 2), ONE, NONE, ONE, 2),  # y of two groups
        ((2, 40, 40, 8), 24, (1, 2), ONE, NONE, ONE, 1),  # dW and db, a product for each tap
        ((2, 40, 40, 64), 24, (1, 2), TWO, NONE, ONE, 1),  # and one for both
    ],
    ids=str,
)
def test_cut_depths(case, force):
    force("conv", f"wgmma:{SMALL}")
    with emulating(detector=True, seed=2):
        names, _ = launches(lambda: check(case, accumulate=True))
    assert set(ADDING) & set(names)


def test_the_bias_and_relu_of_cut_depths(force):
    force("conv", f"wgmma:{SMALL}")
    x, weight, _, settings = arrays(((1, 3, 3, 1280), 16, (1, 2), ONE, NONE, ONE, 2))
    bias = integers(16, seed=5)
    given, results = [to_device(a, "bfloat16") for a in (x, weight, bias)], []
    names, _ = launches(lambda: results.append(ops.conv2d_activation(*given, "relu", False, *settings)[0]))
    assert names[:1] == ["wgmma_forward"] and names[1:] in ADDED
    exact = (a.astype(np.float64) for a in (x, weight, bias))
    expect_equal(results[0], np.maximum(ops.conv2d(*exact, *settings), 0))


# What is not finite, and what is large ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize(
    "case",
    [
        ((2, 8, 9, 8), 8, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 6, 8, 72), 72, (2, 3), ONE, ((1, 0), (0, 1)), (1, 2), 1),
        ((2, 8, 9, 16), 40, (2, 3), (2, 1), ((1, 0), (0, 1)), (1, 2), 1),
        ((2, 6, 8, 128), 128, (3, 2), ONE, NONE, ONE, 2),
    ],
    ids=str,
)
def test_what_is_not_finite_reaches_its_windows_and_nothing_else(case, bad, force):
    """Beside the zeros that fill up slices and tiles, in the last channel, and in another group."""
    force("conv", f"wgmma:{SMALL}")
    shape = case[0]
    y_shape, weight_shape, settings = sizes(*case)
    weight, ones = np.full(weight_shape, 0.5, "float32"), np.ones(weight_shape)
    x, dy = np.ones(shape, "float32"), np.ones(y_shape, "float32")
    x[0, 0, 0, 0] = x[0, -1, -1, -1] = x[1, 3, 4, 1] = bad
    given = to_device(x, "bfloat16"), to_device(weight, "bfloat16")
    reached = ops.conv2d((~np.isfinite(x)).astype("float64"), ones, None, *settings) > 0
    np.testing.assert_array_equal(
        ~np.isfinite(to_host(ops.conv2d(*given, None, *settings)).astype(np.float32)), reached
    )

    dweight, dbias = to_device(np.zeros(weight_shape), "float32"), to_device(np.zeros(y_shape[3]), "float32")
    ops.conv2d_backward_parameters(to_device(dy, "bfloat16"), given[0], dweight, dbias, False, *settings)
    marked = np.zeros(weight_shape)
    ops.conv2d_backward_parameters(np.ones(y_shape), (~np.isfinite(x)) * 1.0, marked, None, False, *settings)
    np.testing.assert_array_equal(~np.isfinite(to_host(dweight)), marked > 0)
    assert np.isfinite(to_host(dbias)).all()

    dy[0, 0, 0, 0] = dy[1, -1, -1, -1] = dy[0, 1, 2, 1] = bad
    ops.conv2d_backward_parameters(
        to_device(dy, "bfloat16"), to_device(np.ones(shape), "bfloat16"), dweight, dbias, False, *settings
    )
    touched = ~np.isfinite(dy).all((0, 1, 2))
    np.testing.assert_array_equal(~np.isfinite(to_host(dbias)), touched)
    np.testing.assert_array_equal(~np.isfinite(to_host(dweight)).all((1, 2, 3)), touched)
    if not has_input_gradient(case):
        return
    dx = ops.conv2d_backward_input(to_device(dy, "bfloat16"), given[1], shape[1:3], *settings)
    reached = ops.conv2d_backward_input((~np.isfinite(dy)) * 1.0, ones, shape[1:3], *settings) > 0
    np.testing.assert_array_equal(~np.isfinite(to_host(dx).astype(np.float32)), reached)


def test_weights_that_are_not_finite(force):
    """In the last channel and the last output: beside the zeros that fill up slices."""
    force("conv", f"wgmma:{SMALL}")
    case = ((1, 3, 4, 72), 72, (1, 2), ONE, NONE, ONE, 1)
    x, weight, _, settings = arrays(case)
    weight[71, 0, 1, 71] = inf
    y = to_host(ops.conv2d(to_device(np.abs(x) + 1, "bfloat16"), to_device(weight, "bfloat16"), None, *settings))
    assert (y[..., 71] == inf).all() and np.isfinite(y[..., :71].astype(np.float32)).all()
    dx = ops.conv2d_backward_input(
        to_device(np.ones((1, 3, 3, 72)), "bfloat16"), to_device(weight, "bfloat16"), (3, 4), *settings
    )
    dx = to_host(dx).astype(np.float32)
    assert np.isfinite(dx[..., :71]).all() and (dx[:, :, 1:, 71] == inf).all()


@pytest.mark.parametrize("stride", [ONE, TWO])
def test_elements_beyond_2_to_the_31(stride, force, huge, blocks):
    """The last image of a large batch, on the way there and back."""
    force("conv", f"wgmma:{SMALL}")
    blocks(2**30)  # so that the last block has the last tile alone
    images = 2**21 + 1
    y_shape, weight_shape, settings = sizes((images, 4, 8, 40), 40, (3, 3), stride, AROUND, ONE, 1)
    weight, last, gradient = (ternary(*s) for s in (weight_shape, (1, 4, 8, 40), (1, *y_shape[1:])))
    exact = weight.astype(np.float64)
    x, dy = sparse((images, 4, 8, 40), "bfloat16"), sparse(y_shape, "bfloat16")
    x[images - 1 : images], dy[images - 1 : images] = last, gradient
    y = ops.conv2d(x, to_device(weight, "bfloat16"), None, *settings)
    expect_equal(y[images - 1 : images], ops.conv2d(last.astype(np.float64), exact, None, *settings))
    dx = ops.conv2d_backward_input(dy, to_device(weight, "bfloat16"), (4, 8), *settings)
    expected = ops.conv2d_backward_input(gradient.astype(np.float64), exact, (4, 8), *settings)
    expect_equal(dx[images - 1 : images], expected)


def test_what_is_empty(force):
    force("conv", "wgmma")
    for shape in ((0, 5, 6, 8), (2, 5, 6, 0)):
        y_shape, weight_shape, settings = sizes(shape, 8, (3, 3), ONE, AROUND, ONE, 1)
        x, weight, dy = (to_device(np.zeros(s), "bfloat16") for s in (shape, weight_shape, y_shape))
        dweight, dbias = to_device(np.ones(weight_shape), "float32"), to_device(np.ones(8), "float32")
        assert not to_host(ops.conv2d(x, weight, None, *settings)).any()
        assert ops.conv2d_backward_input(dy, weight, (5, 6), *settings).shape == shape
        ops.conv2d_backward_parameters(dy, x, dweight, dbias, False, *settings)
        assert not to_host(dweight).any() and not to_host(dbias).any()


# The choice -------------------------------------------------------------------------------------------------


def task(way, case, dtype="bfloat16"):
    """One of the three products, of arrays that nobody reads."""
    y_shape, weight_shape, settings = sizes(*case)
    shapes = {
        "forward": (case[0], weight_shape, y_shape),
        "backward_input": (y_shape, weight_shape, case[0]),
        "backward_parameters": (y_shape, case[0], weight_shape),
    }
    given = (find_device(KERNEL_DEVICE).empty(s, known_dtype(dtype)) for s in shapes[way])
    return Convolution(way, Sizes(case[0], y_shape, weight_shape, *settings), *given)


WAYS = ("forward", "backward_input", "backward_parameters")
PLAIN = ((1, 300, 5, 16), 16, (3, 3), ONE, AROUND, ONE, 1)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, ()),
        ({3: (8, 1)}, ()),
        ({3: (9, 1)}, WAYS),
        ({4: ((129, 0), (1, 1))}, ("forward", "backward_parameters")),
        ({2: (3, 1), 5: (128, 1)}, WAYS),
        ({6: 2}, WAYS),
        ({0: (1, 300, 5, 128), 6: 2}, ("backward_input",)),
        ({0: (1, 300, 5, 128), 1: 128, 6: 2}, ()),
        ({0: (1, 300, 5, 12)}, WAYS),
        ({1: 12}, WAYS),
    ],
)
def test_what_maps_of_pixels_cannot_describe_is_left_to_other_rungs(change, left, force):
    case = tuple(change.get(place, value) for place, value in enumerate(PLAIN))
    for way in WAYS:
        problem = task(way, case).problem
        assert choice.find("conv", "wgmma").computes(problem, 90) == (way not in left)
        force("conv", "")
        assert choice.choose(problem, 90).rung != "wgmma"  # its instructions have run on models alone
        force("conv", "wgmma")
        if way in left:
            with pytest.raises(ConfigurationError, match=r"BP_CONV=wgmma cannot compute .*: needs "):
                choice.choose(problem, 90)
        else:
            assert choice.choose(problem, 90).variant in wgmma_tiles.TILES
            with pytest.raises(ConfigurationError, match=r"exists for compute capability 9\.0 alone"):
                choice.choose(problem, 80)


def test_float32_is_left_to_other_rungs(force):
    force("conv", "wgmma")
    with pytest.raises(ConfigurationError, match=r"BP_CONV=wgmma cannot compute .*: fp16 and bf16 only"):
        choice.choose(task("forward", PLAIN, "float32").problem, 90)


def test_too_many_windows_for_a_kernel_that_counts_in_int():
    few = task("forward", PLAIN)
    many = replace(few, sizes=replace(few.sizes, narrow=(2**20, 2**6, 2**5, 16)))
    assert few.im2col and not many.im2col


# Planted faults ---------------------------------------------------------------------------------------------

# What is wrong: the text, what stands in its place, where WRONG says whether this fault is planted, and what it breaks.
FAULTS = {
    "taps are one to the right": ("at.v * taps.reach_w", "(at.v + WRONG) * taps.reach_w", "y dx strided"),
    "taps are turned by a quarter": ("at.u * taps.reach_h", "(WRONG ? at.v : at.u) * taps.reach_h", "y dx strided"),
    "the taps of the input gradient are not mirrored": (
        "kh * kw - 1, -kw, -1}",
        "WRONG ? 0 : kh * kw - 1, WRONG ? kw : -kw, WRONG ? 1 : -1}",
        "dx",
    ),
    "pixels of a class lie beside each other": (
        "(row - line * pixels) * stride_w",
        "(row - line * pixels) * (WRONG ? 1 : stride_w)",
        "strided",
    ),
    "taps of a class follow each other": ("-period_h * kw", "-(WRONG ? 1 : period_h) * kw", "strided"),
    "slices of a tap are not counted": (
        "at.channel += SLICE;",
        "at.channel += WRONG ? 2 * SLICE : SLICE;",
        "y dx strided",
    ),
    "a line ends within a slice, and the image goes on": (
        "corner.w -= line, corner.h += windows.step_h;",
        "corner.w -= line, corner.h += WRONG ? 0 : windows.step_h;",
        "dw",
    ),
    "an image ends within a slice, and the same begins again": (
        "corner.h -= image, ++corner.n;",
        "corner.h -= image, corner.n += !WRONG;",
        "dw",
    ),
    "all panels are at one tap": ("tap % kw * reach_w", "(WRONG ? 0 : tap % kw * reach_w)", "dw"),
    "a tile begins with the first window of its image": (
        "image.remainder) * windows.step_h",
        "WRONG ? 0 : image.remainder) * windows.step_h",
        "y dx strided",
    ),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """All kernels of the file."""
    faults = [("conv_wgmma.cu", right, wrong) for right, wrong, _ in FAULTS.values()]
    names = [f"wgmma_{way}" for way in ("forward", "backward_input", "backward_strided", "backward_parameters")]
    kernels = with_faults(tmp_path_factory.mktemp("kernels"), "conv_wgmma", faults, names, "bfloat16")
    return {name.removeprefix("wgmma_"): kernel for name, kernel in kernels.items()}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_planted_faults_are_found(fault, planted, force, monkeypatch):
    force("conv", f"wgmma:{SMALL}")
    number = 0 if fault is None else 1 + list(FAULTS).index(fault)
    for name, kernel in planted.items():
        monkeypatch.setitem(
            conv_wgmma._kernels,
            name,
            lambda grid, *arguments, kernel=kernel, variant, **axes: kernel(grid, *arguments, number, **axes),
        )
    case = ((3, 9, 11, 128), 128, (3, 3), ONE, AROUND, ONE, 1)
    x, weight, dy, settings = arrays(case)
    on = [to_device(a, "bfloat16") for a in (x, weight, dy)]
    exact = [a.astype(np.float64) for a in (x, weight, dy)]
    dw, wanted = to_device(np.zeros(weight.shape), "float32"), np.zeros(weight.shape)
    ops.conv2d_backward_parameters(on[2], on[0], dw, None, False, *settings)
    ops.conv2d_backward_parameters(exact[2], exact[0], wanted, None, False, *settings)
    found = {
        "y": (ops.conv2d(on[0], on[1], None, *settings), ops.conv2d(exact[0], exact[1], None, *settings)),
        "dx": (
            ops.conv2d_backward_input(on[2], on[1], (9, 11), *settings),
            ops.conv2d_backward_input(exact[2], exact[1], (9, 11), *settings),
        ),
        "strided": (
            ops.conv2d_backward_input(on[2], on[1], (17, 22), TWO, *settings[1:]),
            ops.conv2d_backward_input(exact[2], exact[1], (17, 22), TWO, *settings[1:]),
        ),
        "dw": (dw, wanted),
    }
    wrong = set()
    for name, (got, expected) in found.items():
        rounded = expected.astype(known_dtype(got.dtype.name)).astype(np.float64)
        if not np.array_equal(to_host(got).astype(np.float64), rounded):
            wrong.add(name)
    assert wrong == (set() if fault is None else set(FAULTS[fault][2].split()))


# The machine code -------------------------------------------------------------------------------------------


@needs_nvrtc
@needs_nvdisasm
def test_the_machine_code(tmp_path):
    """The copy engine brings the patches, and a slice is as it is of the matrix product."""
    macros = {"T": "bfloat16"} | {name: str(value) for name, value in wgmma_tiles.VARIANTS["128x256"].items()}
    head, *kernels = re.split(r'(?=extern "C")', conv_wgmma._source.path.read_text())
    headers = {file.name: file.read_text() for file in (kernel_folder() / "include").glob("*.cuh")}
    source = nvrtc._macros(macros) + head + kernels[0]
    compiled = nvrtc.compile(source, "conv_wgmma.cu", [*nvrtc.OPTIONS, "-arch=sm_90a"], headers)
    assert "0 bytes stack frame, 0 bytes spill stores" in compiled.log and "C75" not in compiled.log
    file = tmp_path / "conv_wgmma.cubin"
    file.write_bytes(compiled.cubin)
    code = subprocess.run([disassembler.find(), "-c", file], capture_output=True, text=True, check=True).stdout
    assert code.count("UTMALDG.4D.IM2COL") == 1 and code.count("UTMALDG.3D") == 1
    names = re.findall(r"\b(HGMMA|WARPGROUP\.ARRIVE|WARPGROUP\.DEPBAR|BRA)\b", code)
    first = names.index("WARPGROUP.ARRIVE")
    assert names[first : first + 7] == ["WARPGROUP.ARRIVE", *["HGMMA"] * 4, "WARPGROUP.DEPBAR", "BRA"]
