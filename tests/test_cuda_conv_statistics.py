"""The statistics that a convolution gathers of its result, and the batch norm that takes them: far from zero too."""

import numpy as np
import pytest
from emulated import to_device, to_host
from products import launches
from table import assert_close, emulating
from test_cuda_conv import AROUND, NONE, ONE, sizes

import bp.ops.conv as ops
import bp.ops.norm as norm
from bp.checking import tolerance
from bp.ops.array import known_dtype

EPS = 1e-5
TWO, WIDE = (2, 2), ((3, 3), (3, 3))

# Rung, dtype, then x, out channels, kernel, stride, padding, dilation, groups: a tile, several, and a rest of a few
# rows or one; channels in vectors and not, groups; each variant that has code of its own for it.
CASES = [
    ("tiled", "float32", ((2, 9, 11, 8), 8, (3, 3), ONE, AROUND, ONE, 1)),
    ("tiled", "float32", ((1, 5, 13, 3), 70, (2, 2), ONE, ((0, 1), (1, 0)), ONE, 1)),
    ("tiled", "bfloat16", ((1, 5, 13, 6), 10, (1, 1), ONE, NONE, ONE, 2)),
    ("tiled", "float32", ((1, 1, 2, 4), 4, (1, 1), ONE, NONE, ONE, 1)),
    ("simt", "float32", ((1, 3, 43, 8), 68, (3, 3), ONE, AROUND, ONE, 1)),
    ("simt:64x128", "float32", ((2, 9, 11, 8), 24, (3, 3), ONE, AROUND, ONE, 2)),
    ("simt", "float32", ((1, 4, 17, 3), 7, (3, 3), ONE, AROUND, ONE, 1)),
    ("mma", "float16", ((2, 9, 11, 8), 24, (3, 3), ONE, AROUND, ONE, 1)),
    ("mma", "bfloat16", ((1, 3, 43, 16), 72, (1, 1), ONE, NONE, ONE, 1)),
    ("mma", "float16", ((1, 9, 15, 6), 10, (3, 3), ONE, AROUND, ONE, 1)),
    ("mma:16x128", "float16", ((2, 9, 11, 16), 16, (3, 3), ONE, AROUND, ONE, 2)),
    ("direct", "float32", ((2, 9, 11, 8), 8, (3, 3), ONE, AROUND, ONE, 1)),
    ("depthwise", "float32", ((2, 9, 11, 40), 40, (3, 3), ONE, AROUND, ONE, 40)),
    ("depthwise", "float16", ((2, 9, 23, 72), 72, (3, 3), ONE, NONE, ONE, 72)),
    ("depthwise", "bfloat16", ((2, 9, 11, 8), 8, (3, 3), TWO, AROUND, ONE, 8)),
    ("depthwise", "float32", ((1, 9, 11, 8), 8, (5, 5), ONE, ((2, 2), (2, 2)), ONE, 8)),
    ("depthwise", "float16", ((1, 9, 11, 16), 16, (5, 5), TWO, ((2, 2), (2, 2)), ONE, 16)),
    ("depthwise", "float32", ((1, 13, 21, 8), 8, (7, 7), ONE, WIDE, ONE, 8)),
    ("depthwise", "float32", ((2, 9, 11, 8), 64, (3, 3), ONE, AROUND, ONE, 8)),
    ("depthwise", "float32", ((2, 9, 11, 5), 5, (3, 2), ONE, AROUND, (1, 2), 5)),
    ("depthwise", "float32", ((1, 1, 2, 5), 5, (1, 1), ONE, NONE, ONE, 5)),
]
GATHERING = {"tiled": "conv_forward", "simt": "simt_forward", "mma": "mma_forward", "depthwise": "depthwise_forward"}


def drawn(case, scale, bias):
    _, weight_shape, _ = sizes(*case)
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal(case[0]), generator.standard_normal(weight_shape)
    return x, weight * scale, np.full(case[1], bias)


def check(y, mean, rest, variance):
    """Against float64 of y as it is stored; then the norm of y by these statistics and by its own, and float64."""
    stored, relative = to_host(y).astype(np.float64), tolerance("float32", y.size // y.shape[3])
    means, variances = stored.mean((0, 1, 2)), stored.var((0, 1, 2))
    roots = np.sqrt(variances + EPS)
    # What counts is the error beside the standard deviation, not beside the mean.
    assert_close((to_host(mean).astype(np.float64) + to_host(rest) - means) / roots, np.zeros(means.shape), relative)
    np.testing.assert_array_equal(to_host(mean), (to_host(mean).astype(np.float64) + to_host(rest)).astype(np.float32))
    assert_close(to_host(variance) / (variances + EPS), variances / (variances + EPS), relative)
    expected = (stored - means) / roots
    running = [to_device(np.zeros(y.shape[3]), "float32") for _ in range(4)]
    fused, rstd = norm.batch_norm_of(y, mean, rest, variance, None, None, *running[:2], 0.25, EPS)
    alone, saved, own_rstd = norm.batch_norm(y, None, None, *running[2:], True, 0.25, EPS)
    rounding = 0.0 if y.dtype.name == "float32" else tolerance(y.dtype.name)
    for result in (fused, alone):
        assert_close(to_host(result), expected, relative + rounding)
    for one, other in zip((mean, rstd, *running[:2]), (saved, own_rstd, *running[2:]), strict=True):
        assert_close(to_host(one), to_host(other), relative)


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4])
@pytest.mark.parametrize(("rung", "dtype", "case"), CASES, ids=str)
def test_statistics_and_the_norm_that_takes_them(rung, dtype, case, mean, force):
    """mean: of y, in standard deviations about; in 16 bits y itself is rounded to steps of up to 64 of them."""
    force("conv", rung)
    _, weight_shape, settings = sizes(*case)
    terms = weight_shape[1] * weight_shape[2] * weight_shape[3]
    x, weight, bias = (to_device(a, dtype) for a in drawn(case, 1 / np.sqrt(terms), mean))
    results = []
    with emulating(detector=mean == 0.0, seed=1):
        names, _ = launches(lambda: results.extend(ops.conv2d_statistics(x, weight, bias, *settings)))
    if rung != "direct":
        assert names == [GATHERING[rung.partition(":")[0]], "merge_moments"]
    np.testing.assert_array_equal(to_host(results[0]), to_host(ops.conv2d(x, weight, bias, *settings)))
    check(*results)


@pytest.mark.parametrize("rung", ["tiled", "simt", "depthwise"])
def test_a_mean_that_comes_from_x(rung, force):
    """Without a bias, and with pixels at the edge that see less of it: many standard deviations from the mean."""
    force("conv", rung)
    groups = 8 if rung == "depthwise" else 1
    for padding in (NONE, AROUND):
        _, weight_shape, settings = sizes((2, 14, 15, 8), 8, (3, 3), ONE, padding, ONE, groups)
        generator = np.random.default_rng(0)
        x, weight = 1e4 + generator.standard_normal((2, 14, 15, 8)), generator.uniform(0.5, 1.5, weight_shape) / 9
        check(*ops.conv2d_statistics(to_device(x, "float32"), to_device(weight, "float32"), None, *settings))


@pytest.mark.parametrize(("rung", "dtype", "case"), CASES, ids=str)
def test_equal_numbers_have_no_variance(rung, dtype, case, force):
    force("conv", rung)
    _, weight_shape, settings = sizes(*case)
    x, weight, bias = (to_device(a, dtype) for a in (np.zeros(case[0]), np.ones(weight_shape), np.full(case[1], 777.7)))
    _, mean, rest, variance = ops.conv2d_statistics(x, weight, bias, *settings)
    value = np.array(777.7, known_dtype(dtype)).astype(np.float32)
    for actual, expected in ((mean, value), (rest, 0.0), (variance, 0.0)):
        np.testing.assert_array_equal(to_host(actual), np.full(case[1], expected, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("rung", "dtype", "case"), [CASES[0], CASES[4], CASES[7], CASES[12], CASES[19]], ids=str)
@pytest.mark.parametrize("pixel", [0, -1])
def test_what_is_not_finite_stays_in_its_channels(rung, dtype, case, pixel, bad, force):
    """The first pixel of a tile, about which all others are taken, and the last one."""
    force("conv", rung)
    _, _, settings = sizes(*case)
    x, weight, bias = drawn(case, 1.0, 0.0)
    x[pixel, pixel, pixel, 0] = bad  # which one channel of y sees, or all of them
    x = to_device(x, dtype)
    y, mean, rest, variance = ops.conv2d_statistics(x, to_device(weight, dtype), to_device(bias, dtype), *settings)
    finite = np.isfinite(to_host(y).astype(np.float64)).all((0, 1, 2))
    assert not finite.all()
    for statistic in (mean, variance):
        np.testing.assert_array_equal(np.isfinite(to_host(statistic)), finite)
    fused, _ = norm.batch_norm_of(y, mean, rest, variance, None, None, None, None, 0.1, EPS)
    alone, _, _ = norm.batch_norm(y, None, None, None, None, True, 0.1, EPS)
    for result in (fused, alone):
        np.testing.assert_array_equal(
            np.isnan(to_host(result).astype(np.float64)), np.broadcast_to(~finite, result.shape)
        )


def test_a_mean_in_two_parts_on_the_cpu():
    y = 1e6 + np.random.default_rng(0).standard_normal((5, 4, 3))
    mean, variance = y.mean((0, 1)), y.var((0, 1))
    rounded = mean.astype(np.float32)
    expected, _ = norm.batch_norm_of(y, mean, None, variance, None, None, None, None, 0.1, EPS)
    result, _ = norm.batch_norm_of(y, rounded, mean - rounded, variance, None, None, None, None, 0.1, EPS)
    np.testing.assert_array_equal(result, expected)
