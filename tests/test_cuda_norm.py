"""Normalisation on the emulator: every path of the kernels, sizes and alignments, accuracy, order of threads."""

import numpy as np
import pytest
from emulated import DTYPES, Offset, Wide, compare, to_device, to_host
from table import KERNEL_DEVICE, assert_close, emulating

import bp.ops.norm as ops
from bp.checking import tolerance
from bp.cuda import norm
from bp.ops.device import find_device

EPS = 1e-5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def eighths(*shape):
    """Numbers whose sums are exact in 16 bits, so that the reference normalises the same total."""
    return np.round(8 * normal(*shape, seed=2)) / 8


def expectations(shape, affine, seed=5):
    """gamma, beta, and destinations of their gradients that hold something."""
    gamma, beta, dgamma, dbeta = normal(4, *affine, seed=seed)
    return 1 + 0.3 * gamma, beta, Wide(dgamma), Wide(dbeta)


# A forward and its backward as one function of arrays, which runs on either device.


def layer_pass(x, dy, gamma, beta, dgamma, dbeta, accumulate=False):
    y, mean, rstd = ops.layer_norm(x, gamma, beta, 1, EPS)
    return y, mean, rstd, ops.layer_norm_backward(dy, x, gamma, mean, rstd, dgamma, dbeta, accumulate)


def rms_pass(x, dy, gamma, beta, dgamma, dbeta, accumulate=False):
    y, rstd = ops.rms_norm(x, gamma, 1, EPS)
    return y, rstd, ops.rms_norm_backward(dy, x, gamma, rstd, dgamma, accumulate)


def add_layer_pass(x, dy, gamma, beta, dgamma, dbeta, residual, dtotal, accumulate=False):
    y, total, mean, rstd = ops.add_layer_norm(x, residual, gamma, beta, 1, EPS)
    dx = ops.add_layer_norm_backward(dy, dtotal, total, gamma, mean, rstd, dgamma, dbeta, accumulate)
    return y, total, mean, rstd, dx


def add_rms_pass(x, dy, gamma, beta, dgamma, dbeta, residual, dtotal, accumulate=False):
    y, total, rstd = ops.add_rms_norm(x, residual, gamma, 1, EPS)
    return y, total, rstd, ops.add_rms_norm_backward(dy, dtotal, total, gamma, rstd, dgamma, accumulate)


def group_pass(groups):
    def group_pass(x, dy, gamma, beta, dgamma, dbeta, accumulate=False):
        y, mean, rstd = ops.group_norm(x, gamma, beta, groups, EPS)
        return y, mean, rstd, ops.group_norm_backward(dy, x, gamma, mean, rstd, dgamma, dbeta, accumulate)

    return group_pass


def batch_pass(training):
    def batch_pass(x, dy, gamma, beta, dgamma, dbeta, running_mean, running_var, accumulate=False):
        y, mean, rstd = ops.batch_norm(x, gamma, beta, running_mean, running_var, training, 0.1, EPS)
        dx = ops.batch_norm_backward(dy, x, gamma, mean, rstd, dgamma, dbeta, accumulate, training)
        return y, mean, rstd, dx

    return batch_pass


# Rows -----------------------------------------------------------------------------------------------------------------

# Rows x columns: a part of a warp, a warp, blocks of 128, 256 and 512, loops; each just up to its limit, in float32 or
# in 16 bits, and just beyond; whole vectors and not.
ROWS = [
    *((5, 1), (3, 2), (1, 8), (0, 24), (37, 8), (70, 16), (67, 24), (9, 33), (133, 64), (6, 511), (6, 512), (5, 520)),
    *((3, 1024), (3, 1032), (2, 2047), (2, 2048), (2, 2056), (2, 4096), (2, 4104), (3, 8192), (2, 8200), (1, 16400)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_rows(shape, dtype):
    rows, columns = shape
    arguments = normal(*shape), normal(*shape, seed=1), *expectations(shape, (columns,))
    with emulating(detector=rows * columns <= 8192, seed=0):
        compare(layer_pass, *arguments, dtype=dtype, length=max(shape))
        compare(rms_pass, *arguments, True, dtype=dtype, length=max(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (7, 1), (9, 33), (21, 64), (3, 1032), (1, 8200)], ids=str)
def test_rows_of_a_sum_with_the_residual(shape, dtype):
    dy, dtotal = normal(2, *shape)
    x, residual = eighths(2, *shape)
    arguments = x, dy, *expectations(shape, shape[-1:])
    for forward_and_backward in (add_layer_pass, add_rms_pass):
        actual = compare(forward_and_backward, *arguments, residual, dtotal, dtype=dtype, length=max(shape))
        assert actual[1].dtype.name == dtype
        compare(forward_and_backward, *arguments, residual, None, True, dtype=dtype, length=max(shape))


def test_the_total_is_rounded_once_and_that_is_what_is_normalised():
    x, residual = (to_device(a, "bfloat16") for a in normal(2, 4, 32))
    y, total, mean, rstd = ops.add_layer_norm(x, residual, None, None, 1, EPS)
    again = ops.layer_norm(total, None, None, 1, EPS)
    for actual, expected in zip((y, mean, rstd), again, strict=True):
        np.testing.assert_array_equal(to_host(actual), to_host(expected))
    exact = to_host(x).astype("float32") + to_host(residual).astype("float32")
    np.testing.assert_array_equal(to_host(total), exact.astype(total.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 24), (3, 1032), (2, 8200)], ids=str)
@pytest.mark.parametrize("which", range(5))
def test_rows_at_any_address(which, shape, dtype):
    arrays = [*normal(2, *shape), *eighths(2, *shape), 1 + 0.3 * normal(shape[-1])]
    arrays[which] = Offset(arrays[which], 1 + which % 3)
    dy, dtotal, x, residual, gamma = arrays
    arguments = x, dy, gamma, Offset(normal(shape[-1])), Wide(normal(shape[-1])), Wide(normal(shape[-1]))
    compare(add_layer_pass, *arguments, residual, dtotal, dtype=dtype, length=max(shape))
    compare(rms_pass, *arguments, dtype=dtype, length=max(shape))


@pytest.mark.parametrize("shape", [(6, 33), (6, 64), (3, 1032), (2, 8200)], ids=str)
def test_rows_without_parameters(shape):
    x, dy = normal(2, *shape)
    gamma, beta, dgamma, dbeta = expectations(shape, shape[-1:])
    for arguments in (
        (None, None, None, None),
        (gamma, None, dgamma, None),
        (None, beta, None, dbeta),
        (gamma, beta, None, None),
        (gamma, beta, None, dbeta, True),
    ):
        compare(layer_pass, x, dy, *arguments, length=max(shape))
        compare(rms_pass, x, dy, *arguments, length=max(shape))


def test_several_axes_make_one_row():
    x, dy = normal(2, 2, 3, 4, 5)
    gamma, dgamma = normal(2, 4, 5)
    compare(ops.layer_norm, x, gamma, None, 2, EPS, length=20)
    rstd = 0.5 + np.abs(normal(2, 3))
    compare(ops.rms_norm_backward, dy, x, gamma, Wide(rstd), Wide(dgamma), True, length=20)


@pytest.mark.parametrize("shape", [(300, 64), (40, 33), (9, 4104), (17, 8200)], ids=str)
def test_many_rows_are_summed_in_the_same_order(shape):
    """More rows than the teams take at once, in several blocks: bitwise the same in any order of blocks and threads."""
    x, dy = (to_device(a, "bfloat16") for a in normal(2, *shape))
    results = []
    for seed in (0, 1, 2):
        dgamma, dbeta = (to_device(np.ones(shape[1]), "float32") for _ in range(2))
        with emulating(detector=False, seed=seed):
            arrays = *layer_pass(x, dy, None, None, dgamma, dbeta), dgamma, dbeta
        results.append([to_host(a) for a in arrays])
    for other in results[1:]:
        for first, array in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, array)


@pytest.mark.parametrize("columns", [1 << 16, 100_003])
@pytest.mark.parametrize("kind", ["two-values", "relu"])
def test_statistics_of_long_rows(kind, columns):
    """Held to what a short row is: a sum in float32 alone would be off by far more."""
    generator = np.random.default_rng(0)
    x = np.maximum(generator.standard_normal((2, columns)), 0)
    if kind == "two-values":
        x = generator.choice([-1.1, 1.1], (2, columns))
    x = x.astype("float32")
    with emulating(detector=False, seed=0):
        _, mean, rstd = ops.layer_norm(to_device(x), None, None, 1, 0.0)
        _, root = ops.rms_norm(to_device(x), None, 1, 0.0)
    assert_close(to_host(mean), x.mean(axis=1, dtype=np.float64), tolerance("float32"))
    assert_close(to_host(rstd), 1 / x.std(axis=1, dtype=np.float64), tolerance("float32"))
    assert_close(to_host(root), 1 / np.sqrt(np.square(x, dtype=np.float64).mean(axis=1)), tolerance("float32"))


# Channels -------------------------------------------------------------------------------------------------------------

# (shape, groups): at once and in three launches, several strips and chunks, whole vectors and not.
GROUPS = [
    *(
        ((0, 3, 4), 2),
        ((3, 1), 1),
        ((5, 7, 6), 3),
        ((2, 9, 10), 5),
        ((2, 33, 40), 4),
        ((3, 2, 96), 3),
        ((1, 60, 520), 260),
    ),
    *(((2, 70, 65), 1), ((1, 3000, 4), 2), ((2, 300, 200), 2), ((1, 40, 2056), 8), ((2, 1100, 3), 3), ((3, 5, 70), 1)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), GROUPS, ids=str)
def test_groups(shape, groups, dtype):
    arguments = normal(*shape), normal(*shape, seed=1), *expectations(shape, shape[-1:])
    length = int(np.prod(shape[1:]))
    with emulating(detector=np.prod(shape) < 20_000, seed=0):
        compare(group_pass(groups), *arguments, dtype=dtype, length=length)
        compare(group_pass(groups), *arguments, True, dtype=dtype, length=length)


BATCHES = [(2, 1), (3, 5), (7, 64), (130, 33), (2000, 3), (60, 520), (3000, 16), (2, 4, 5, 6), (6, 2056)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_batches(shape, training, dtype):
    arguments = normal(*shape), normal(*shape, seed=1), *expectations(shape, shape[-1:])
    running = Wide(normal(shape[-1])), Wide(0.5 + np.abs(normal(shape[-1])))
    length = int(np.prod(shape[:-1]))
    with emulating(detector=np.prod(shape) < 20_000, seed=0):
        compare(batch_pass(training), *arguments, *running, dtype=dtype, length=length)
        compare(batch_pass(training), *arguments, *running, True, dtype=dtype, length=length)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 8, 16), (1, 1500, 16)], ids=str)
@pytest.mark.parametrize("which", range(4))
def test_channels_at_any_address(which, shape, dtype):
    arrays = [*normal(2, *shape), 1 + 0.3 * normal(shape[-1]), normal(shape[-1])]
    arrays[which] = Offset(arrays[which], 1 + which)
    destinations = Wide(normal(shape[-1])), Wide(normal(shape[-1]))
    compare(group_pass(2), *arrays, *destinations, dtype=dtype, length=int(np.prod(shape)))


@pytest.mark.parametrize("shape", [(4, 6, 5), (2, 1200, 4)], ids=str)
def test_channels_without_parameters(shape):
    x, dy = normal(2, *shape)
    gamma, beta, dgamma, dbeta = expectations(shape, shape[-1:])
    for arguments in ((None, None, None, None), (gamma, None, dgamma, None), (None, beta, None, dbeta)):
        compare(group_pass(1), x, dy, *arguments, length=int(np.prod(shape)))
        compare(batch_pass(True), x, dy, *arguments, None, None, length=int(np.prod(shape)))
        running = Wide(normal(shape[-1])), Wide(0.5 + np.abs(normal(shape[-1])))
        compare(batch_pass(False), x, dy, *arguments, *running, length=int(np.prod(shape)))


def test_an_empty_batch_in_inference_still_gives_its_statistics_and_no_gradient():
    arguments = np.zeros((0, 3)), np.zeros((0, 3)), *expectations((0, 3), (3,))
    compare(batch_pass(False), *arguments, Wide(normal(3)), Wide(np.ones(3)))


@pytest.mark.parametrize(("shape", "groups"), [((2, 900, 40), 4), ((3, 40, 40), 4)], ids=str)
def test_channels_are_summed_in_the_same_order(shape, groups):
    x, dy = (to_device(a, "float16") for a in normal(2, *shape))
    results = []
    for seed in (0, 1, 2):
        dgamma, dbeta = (to_device(np.ones(shape[-1]), "float32") for _ in range(2))
        with emulating(detector=False, seed=seed):
            arrays = *group_pass(groups)(x, dy, None, None, dgamma, dbeta), dgamma, dbeta
        results.append([to_host(a) for a in arrays])
    for other in results[1:]:
        for first, array in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, array)


def test_how_many_launches():
    device = find_device(KERNEL_DEVICE)

    def launches(forward_and_backward, *shape):
        x, dy = (to_device(a, "float32") for a in normal(2, *shape))
        destinations = [to_device(np.zeros(shape[-1]), "float32") for _ in range(2)]
        with device.recording() as ledger:
            forward_and_backward(x, dy, None, None, *destinations)
        return len(ledger.launches)

    assert launches(layer_pass, 32, 512) == 3
    assert launches(lambda *a: batch_pass(True)(*a, None, None), 128, 96) == 2
    assert launches(group_pass(4), 4, 16, 32) == 3
    assert launches(lambda *a: batch_pass(True)(*a, None, None), 4000, 16) == 6


@pytest.mark.parametrize("samples", [1, 3, 200])
@pytest.mark.parametrize("positions", [0, 1, 49, 1024, 10**6, 10**9])
@pytest.mark.parametrize(("channels", "group_size"), [(1, 1), (3, 1), (64, 2), (512, 512), (2056, 1), (120, 40)])
def test_splits_cover_everything_once(samples, positions, channels, group_size):
    for vector in (4, 8):
        split = norm._split(samples, positions, channels, group_size, vector)
        assert channels % split.width == 0 and 1 <= split.across <= 256
        assert split.across * split.width * (split.strips - 1) < channels <= split.across * split.width * split.strips
        assert split.chunk * (split.chunks - 1) <= positions <= split.chunk * split.chunks
        if split.at_once:
            assert split.across * split.width % group_size == 0 and split.across * split.width <= 64 * vector


# Accuracy -------------------------------------------------------------------------------------------------------------

PASSES = {
    "layer": layer_pass,
    "group": group_pass(2),
    "batch": lambda *arguments: batch_pass(True)(*arguments, None, None),
}
SHAPES = {"small": (6, 9, 64), "large": (1, 1200, 16), "odd": (5, 7, 66)}


def large_mean(kind, shape):
    """Normal numbers about 10,000, or 2^20 and every other time the next float32: a mean that no float32 holds."""
    if kind == "normal":
        return (1e4 + normal(*shape)).astype("float32")
    return (2.0**20 + 2.0**-3 * (np.indices(shape).sum(axis=0) % 2)).astype("float32")


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("gradient", ["random", "along-x"])
@pytest.mark.parametrize("kind", ["normal", "step"])
@pytest.mark.parametrize("name", PASSES)
def test_large_mean_and_small_variance_do_not_cancel(name, kind, gradient, size):
    shape = SHAPES[size]
    x = large_mean(kind, shape)
    dy = normal(*shape, seed=1)
    if gradient == "along-x":
        dy = x - x.mean(dtype=np.float64) + 0.01 * dy
    with emulating(detector=False, seed=0):
        compare(PASSES[name], x, dy, *expectations(shape, shape[-1:]), length=int(np.prod(shape)))


def test_gradients_of_one_sign_over_many_rows():
    """dgamma and dbeta of one sign: errors that only ever go one way add up."""
    x = np.full((1 << 14, 2), [[-1.0, 1.0]], "float32")
    dy = np.full_like(x, 0.1)
    with emulating(detector=False, seed=0):
        dgamma, dbeta = (to_device(np.zeros(2), "float32") for _ in range(2))
        dx = layer_pass(to_device(x), to_device(dy), None, None, dgamma, dbeta)[-1]
        total = dy[:, 0].sum(dtype=np.float64)
        np.testing.assert_allclose(to_host(dgamma), [-total, total], rtol=tolerance("float32", 8) + EPS)
        np.testing.assert_allclose(to_host(dbeta), [total, total], rtol=tolerance("float32", 8))
        np.testing.assert_allclose(to_host(dx), np.zeros_like(x), atol=0.1 * tolerance("float32"))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e18])
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", PASSES)
def test_constant_input_gives_beta(name, size, value):
    shape = SHAPES[size]
    beta = np.arange(shape[-1], dtype="float32")
    x, dy = to_device(np.full(shape, value, "float32")), to_device(normal(*shape), "float32")
    with emulating(detector=False, seed=0):
        y, *_, dx = PASSES[name](x, dy, None, to_device(beta), None, None)
    np.testing.assert_array_equal(to_host(y), np.broadcast_to(beta, shape))
    assert np.isfinite(to_host(dx)).all()


@pytest.mark.parametrize("shape", [(50, 7), (3, 1), (5, 1, 8)], ids=str)
def test_one_element_has_no_gradient(shape):
    x, dy = (to_device(a, "float32") for a in normal(2, *shape))
    gamma = to_device(1 + 0.3 * normal(shape[-1]), "float32")
    forward_and_backward = layer_pass if shape[-1] == 1 else group_pass(shape[-1])
    *_, dx = forward_and_backward(x, dy, gamma, None, None, None)
    np.testing.assert_array_equal(to_host(dx), np.zeros(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 6, 16), (3, 5, 33), (3, 2, 1032), (2, 1100, 4), (2, 1, 8200)], ids=str)
def test_nan_and_infinity_reach_what_they_belong_to(shape, value, dtype):
    """And nothing else: another row, channel, or group of a sample."""
    x, dy = normal(2, *shape)
    x[1, 0, 3] = value
    gamma, beta, dgamma, dbeta = expectations(shape, shape[-1:])
    reach = {"layer": np.s_[1, 0, :], "rms": np.s_[1, 0, :], "batch": np.s_[:, :, 3]}
    if shape[-1] % 2 == 0:
        reach["group"] = np.s_[1, :, : shape[-1] // 2] if shape[-1] > 6 else np.s_[1, :, shape[-1] // 2 :]
    passes = PASSES | {"rms": rms_pass}
    for name, where in reach.items():
        given = (to_device(a, dtype) for a in (x, dy, gamma, beta))
        destinations = (to_device(a.array, "float32") for a in (dgamma, dbeta))
        with emulating(detector=False, seed=0):
            y, *_, dx = (to_host(a).astype("float64") for a in passes[name](*given, *destinations))
        outside = np.ones(shape, bool)
        outside[where] = False
        assert np.isfinite(y[outside]).all() and np.isfinite(dx[outside]).all(), name
        assert np.isnan(dx[where]).all() and np.isnan(y[1, 0, 3]), name
        if np.isnan(value) or name != "rms":
            assert np.isnan(y[where]).all(), name


def test_running_statistics_stay_where_they_are_none_of_training():
    """The running variance is the unbiased one; mean and variance of the batch are those of float64."""
    x = normal(40, 6)
    mean, var = (to_device(a, "float32") for a in (np.zeros(6), np.ones(6)))
    with emulating(detector=True, seed=0):
        ops.batch_norm(to_device(x, "bfloat16"), None, None, mean, var, True, 0.25, EPS)
    rounded = to_host(to_device(x, "bfloat16")).astype("float64")
    assert_close(to_host(mean), 0.25 * rounded.mean(axis=0), tolerance("float32", 40))
    assert_close(to_host(var), 0.75 + 0.25 * rounded.var(axis=0, ddof=1), tolerance("float32", 40))
