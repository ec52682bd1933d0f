"""Normalisation: the table of its cases, running statistics, stability, native kernels, and its errors."""

import hashlib

import numpy as np
import pytest
from any_threads import expect_same_on_any_threads
from table import LAYER_CHECKS, Case, assert_close

import bp
import bp.ops.norm as ops
from bp.checking import tolerance
from bp.cpu import native


def affine(layer, xhat):
    y = xhat if layer.weight is None else xhat * layer.weight.value
    return y if layer.bias is None else y + layer.bias.value


def standardised(x, axes, eps):
    deviation = x - x.mean(axis=axes, keepdims=True)
    return deviation / np.sqrt(np.mean(deviation**2, axis=axes, keepdims=True) + eps)


def batch_reference(layer, x):
    return affine(layer, standardised(x, tuple(range(x.ndim - 1)), layer.eps))


def running_reference(layer, x):
    return affine(layer, (x - layer.running_mean.value) / np.sqrt(layer.running_var.value + layer.eps))


def layer_reference(layer, x):
    axes = len(layer.normalized_shape or (1,))
    return affine(layer, standardised(x, tuple(range(x.ndim - axes, x.ndim)), layer.eps))


def rms_reference(layer, x):
    axes = tuple(range(x.ndim - len(layer.normalized_shape or (1,)), x.ndim))
    return affine(layer, x / np.sqrt(np.mean(x * x, axis=axes, keepdims=True) + layer.eps))


def group_reference(layer, x):
    groups = np.split(x, layer.num_groups, axis=-1)
    parts = [standardised(g, tuple(range(1, x.ndim)), layer.eps) for g in groups]
    return affine(layer, np.concatenate(parts, axis=-1))


def batch_torch(training):
    def in_torch(p, torch, x):
        mean, var = (torch.tensor(b.value.copy()) for b in (p.layer.running_mean, p.layer.running_var))
        moved = x.movedim(-1, 1)
        y = torch.nn.functional.batch_norm(moved, mean, var, p["weight"], p["bias"], training, eps=p.layer.eps)
        return y.movedim(1, -1)

    return in_torch


def layer_torch(p, torch, x):
    shape = p.layer.normalized_shape or x.shape[-1:]
    return torch.nn.functional.layer_norm(x, shape, p["weight"], p["bias"], p.layer.eps)


def rms_torch(p, torch, x):
    return torch.nn.functional.rms_norm(x, p.layer.normalized_shape or x.shape[-1:], p["weight"], p.layer.eps)


def group_torch(p, torch, x):
    y = torch.nn.functional.group_norm(x.movedim(-1, 1), p.layer.num_groups, p["weight"], p["bias"], p.layer.eps)
    return y.movedim(1, -1)


def batch(make, shape, name=""):
    length = int(np.prod(shape[1:-1]))
    return Case(make, shape, batch_reference, batch_torch(True), length=length, name=name)


def running(make, shape, name="inference"):
    length = int(np.prod(shape[1:-1]))
    return Case(make, shape, running_reference, batch_torch(False), length=length, training=False, name=name)


CASES = [
    batch(lambda: bp.BatchNorm1d(), (9, 5)),
    batch(lambda: bp.BatchNorm1d(5), (2, 5), name="two-values"),
    batch(lambda: bp.BatchNorm1d(1), (7, 1)),
    batch(lambda: bp.BatchNorm1d(affine=False), (33, 3), name="no-affine"),
    batch(lambda: bp.BatchNorm1d(6), (3, 4, 6), name="sequence"),
    batch(lambda: bp.BatchNorm1d(eps=0.3), (1, 11, 65), name="one-sequence"),
    batch(lambda: bp.BatchNorm2d(), (3, 5, 7, 3)),
    batch(lambda: bp.BatchNorm2d(16), (5, 9, 9, 16)),
    batch(lambda: bp.BatchNorm2d(4, affine=False), (1, 3, 3, 4), name="no-affine"),
    batch(lambda: bp.BatchNorm2d(17, eps=0.5), (2, 1, 1, 17), name="two-pixels"),
    running(lambda: bp.BatchNorm1d(), (4, 5)),
    running(lambda: bp.BatchNorm1d(), (1, 3), name="inference-one"),
    running(lambda: bp.BatchNorm1d(), (0, 3), name="inference-empty"),
    running(lambda: bp.BatchNorm1d(affine=False), (2, 3, 4), name="inference-no-affine"),
    running(lambda: bp.BatchNorm2d(), (2, 3, 5, 16)),
    Case(lambda: bp.LayerNorm(), (4, 5), layer_reference, layer_torch, length=5),
    Case(lambda: bp.LayerNorm(7), (2, 3, 7), layer_reference, layer_torch, length=7, name="rank3"),
    Case(lambda: bp.LayerNorm((3, 7)), (4, 3, 7), layer_reference, layer_torch, length=21, name="two-axes"),
    Case(lambda: bp.LayerNorm((2, 3, 5)), (2, 2, 3, 5), layer_reference, layer_torch, length=30, name="three-axes"),
    Case(lambda: bp.LayerNorm(), (0, 5), layer_reference, layer_torch, length=5, name="empty"),
    # One element is beta exactly; PyTorch's x * scale + shift is not, so it is no judge here.
    Case(lambda: bp.LayerNorm(), (3, 1), layer_reference, name="one-element"),
    Case(lambda: bp.LayerNorm(elementwise_affine=False), (5, 33), layer_reference, layer_torch, 33, name="no-affine"),
    Case(lambda: bp.LayerNorm(bias=False), (5, 32), layer_reference, layer_torch, length=32, name="no-bias"),
    Case(lambda: bp.LayerNorm(eps=0.1), (2, 1, 2, 129), layer_reference, layer_torch, length=129, name="rank4"),
    Case(lambda: bp.RMSNorm(), (4, 5), rms_reference, rms_torch, length=5),
    Case(lambda: bp.RMSNorm((3, 7)), (2, 3, 7), rms_reference, rms_torch, length=21, name="two-axes"),
    Case(lambda: bp.RMSNorm(), (0, 5), rms_reference, rms_torch, length=5, name="empty"),
    Case(lambda: bp.RMSNorm(eps=0.1), (3, 1), rms_reference, rms_torch, name="one-element"),
    Case(lambda: bp.RMSNorm(elementwise_affine=False), (3, 2, 33), rms_reference, rms_torch, 33, name="no-affine"),
    Case(lambda: bp.RMSNorm(65), (3, 2, 1, 65), rms_reference, rms_torch, length=65, name="rank4"),
    Case(lambda: bp.GroupNorm(2, 6), (3, 4, 5, 6), group_reference, group_torch, length=60),
    Case(lambda: bp.GroupNorm(1), (2, 5, 6), group_reference, group_torch, length=30, name="one-group"),
    Case(lambda: bp.GroupNorm(6), (2, 5, 6), group_reference, group_torch, length=30, name="a-group-a-channel"),
    Case(lambda: bp.GroupNorm(3), (4, 9), group_reference, group_torch, length=9, name="rank2"),
    Case(lambda: bp.GroupNorm(2, affine=False), (2, 3, 2, 2, 4), group_reference, group_torch, 48, name="rank5"),
    Case(lambda: bp.GroupNorm(1), (3, 1), group_reference, name="one-element"),
    Case(lambda: bp.GroupNorm(2), (0, 3, 4), group_reference, None, length=12, name="empty"),
    Case(lambda: bp.GroupNorm(4), (1, 19, 17, 64), group_reference, group_torch, length=19 * 17 * 16),
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


# Running statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("layer_class", "sample"), [("BatchNorm1d", (3,)), ("BatchNorm2d", (4, 5, 3))])
def test_running_statistics_follow_torch(layer_class, sample, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    generator = np.random.default_rng(0)
    ours = getattr(bp, layer_class)(momentum=0.3)
    ours.build(sample, dtype=dtype)
    theirs = getattr(torch.nn, layer_class)(3, momentum=0.3, dtype=getattr(torch, dtype))
    steps = 6
    for step in range(steps):
        x = (2 + (1 + step) * generator.standard_normal((4, *sample))).astype(dtype)
        y = ours.forward(x, bp.Context(training=True))
        ty = theirs(torch.tensor(x).movedim(-1, 1)).movedim(1, -1)
        assert_close(y, ty.detach().numpy(), tolerance(dtype, 80), f"output of step {step}")
    assert_close(ours.running_mean.value, theirs.running_mean.numpy(), tolerance(dtype, 80 * steps), "running mean")
    assert_close(ours.running_var.value, theirs.running_var.numpy(), tolerance(dtype, 80 * steps), "running variance")
    theirs.eval()
    expected = theirs(torch.tensor(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    assert_close(ours(x), expected, tolerance(dtype, 80 * steps), "inference")


def built_batch_norm(channels=3, **settings):
    layer = bp.BatchNorm1d(**settings)
    layer.build((channels,))
    layer.running_mean.value = np.arange(1, channels + 1, dtype="float32")
    return layer


@pytest.mark.parametrize("mode", ["inference", "recompute", "check"])
def test_running_statistics_stay(mode):
    layer = built_batch_norm()
    x = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    if mode == "inference":
        layer(x)
    elif mode == "recompute":
        layer.forward(x, bp.Context(training=True).replay(0))
    else:
        bp.checking.check(layer, x)
    np.testing.assert_array_equal(layer.running_mean.value, [1, 2, 3])
    np.testing.assert_array_equal(layer.running_var.value, [1, 1, 1])


def test_recomputing_gives_the_same_output():
    layer = built_batch_norm()
    x = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    ctx = bp.Context(training=True)
    np.testing.assert_array_equal(layer.forward(x, ctx), layer.forward(x, ctx.replay(0)))


def test_backward_in_inference_mode_uses_the_statistics_of_its_forward():
    layer = built_batch_norm()
    x = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    dx = []
    for later_variance in (1.0, 100.0):
        layer.running_var.value = np.ones(3, "float32")
        ctx = bp.Context(training=False, saving=True)
        layer.forward(x, ctx)
        layer.running_var.value = np.full(3, later_variance, "float32")
        dx.append(layer.backward(np.ones_like(x), ctx))
    np.testing.assert_array_equal(dx[0], dx[1])


@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (1, 1, 3), (2, 0, 3)], ids=str)
def test_training_needs_two_values_per_channel(shape):
    layer = bp.BatchNorm1d()
    layer.build(shape[1:])
    with pytest.raises(bp.errors.ShapeError, match=r"BatchNorm1d: .*at least 2 values per channel in training"):
        layer.forward(np.zeros(shape, "float32"), bp.Context(training=True))
    np.testing.assert_array_equal(layer.running_var.value, [1, 1, 1])


# Numbers --------------------------------------------------------------------------------------------------------------

LAYERS = {
    "batch": lambda: bp.BatchNorm2d(),
    "layer": lambda: bp.LayerNorm(),
    "rms": lambda: bp.RMSNorm(),
    "group": lambda: bp.GroupNorm(2),
    "plain-batch": lambda: bp.BatchNorm2d(affine=False),
    "plain-layer": lambda: bp.LayerNorm(elementwise_affine=False),
}


def run(make, x, dtype, *, dy=None, twice=False):
    """(y, dx, gradients) of one training pass; `twice` adds the gradients of a second one. dy: random, where None."""
    layer = make()
    layer.build(x.shape[1:], dtype=dtype)
    generator = np.random.default_rng(3)
    for _, parameter in layer.named_parameters():
        parameter.value = parameter.value + 0.5 * generator.standard_normal(parameter.shape)
    if dy is None:
        dy = generator.standard_normal(x.shape).astype("float32")
    for _ in range(2 if twice else 1):
        ctx = bp.Context(training=True)
        y = layer.forward(x.astype(dtype), ctx)
        dx = layer.backward(dy.astype(dtype), ctx)
    return [y, dx, *(np.array(p.grad) for _, p in layer.named_parameters())]


@pytest.fixture(params=["native", "numpy"])
def either(request, monkeypatch):
    """float32 runs on the native kernels, then on NumPy."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    elif native.kernels is None:
        pytest.skip("the native extension is not built")


def large_mean(kind, shape):
    """Normal numbers about 10,000, or 2^20 and every other time the next float32: a mean that no float32 holds."""
    if kind == "normal":
        return (1e4 + np.random.default_rng(0).standard_normal(shape)).astype("float32")
    return (2.0**20 + 2.0**-3 * (np.indices(shape).sum(axis=0) % 2)).astype("float32")


# Gradients that have nothing to do with x hide what is projected out of them: sums of dy and of dy xhat are near 0.
@pytest.mark.parametrize("gradient", ["random", "along-x"])
@pytest.mark.parametrize("kind", ["normal", "step"])
@pytest.mark.parametrize("name", ["batch", "layer", "group", "plain-batch", "plain-layer"])
def test_large_mean_and_small_variance_do_not_cancel(name, kind, gradient, either):
    x = large_mean(kind, (8, 9, 7, 64))
    longest = x.size // x.shape[-1] if name.endswith("batch") else 64 if name.endswith("layer") else 63 * 32
    noise = 0.01 * np.random.default_rng(1).standard_normal(x.shape)
    dy = None if gradient == "random" else (x - x.mean(dtype=np.float64) + noise).astype("float32")
    results = (run(LAYERS[name], x, dtype, dy=dy) for dtype in ("float32", "float64"))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, tolerance("float32", longest))


RUN = 128  # terms that native kernels sum in float32 alone; NumPy takes none


def long_row(kind, columns):
    generator = np.random.default_rng(0)
    if kind == "two-values":
        return generator.choice(np.array([-1.1, 1.1], "float32"), (2, columns))
    return np.maximum(generator.standard_normal((2, columns)), 0).astype("float32")


# The allowance is that of a short row, at a length at which a sum in float32 alone is off by far more.
@pytest.mark.parametrize("kind", ["two-values", "relu"])
@pytest.mark.parametrize("columns", [1 << 16, 1_000_003])
def test_statistics_of_long_rows(columns, kind, either):
    x = long_row(kind, columns)
    mean, variance = x.mean(axis=1, dtype=np.float64), x.var(axis=1, dtype=np.float64)
    _, actual_mean, rstd = ops.layer_norm(x, None, None, 1, 0.0)
    assert_close(rstd, 1 / np.sqrt(variance), tolerance("float32"))
    assert_close(actual_mean, mean, tolerance("float32"))
    _, rstd = ops.rms_norm(x, None, 1, 0.0)
    assert_close(rstd, 1 / np.sqrt(np.square(x, dtype=np.float64).mean(axis=1)), tolerance("float32"))


@pytest.mark.parametrize("kind", ["two-values", "relu"])
def test_gradients_of_long_rows(kind, either):
    x = long_row(kind, 1 << 18)
    for operation, backward in ((ops.layer_norm, ops.layer_norm_backward), (ops.rms_norm, ops.rms_norm_backward)):
        rest = (None,) if operation is ops.rms_norm else (None, None)
        dx = []
        for dtype in ("float32", "float64"):
            _, *saved = operation(x.astype(dtype), *rest, 1, 1e-5)
            dx.append(backward((x + 1).astype(dtype), x.astype(dtype), None, *saved, *rest, False))
        assert_close(dx[0], dx[1], tolerance("float32", RUN))


def test_sums_over_many_rows(either):
    """dgamma and dbeta of one sign: errors that only ever go one way add up."""
    x = np.full((1 << 18, 2), [[-1.0, 1.0]], "float32")
    dy = np.full_like(x, 0.1)
    _, mean, rstd = ops.layer_norm(x, None, None, 1, 0.0)
    dgamma, dbeta = np.zeros(2, "float32"), np.zeros(2, "float32")
    ops.layer_norm_backward(dy, x, None, mean, rstd, dgamma, dbeta, False)
    total = dy[:, 0].sum(dtype=np.float64)
    np.testing.assert_allclose(dgamma, [-total, total], rtol=tolerance("float32", RUN))
    np.testing.assert_allclose(dbeta, [total, total], rtol=tolerance("float32", RUN))

    x[::2] *= -1
    _, mean, rstd = ops.batch_norm(x, None, None, None, None, True, 0.1, 0.0)
    dx = ops.batch_norm_backward(dy, x, None, mean, rstd, None, None, False, True)
    np.testing.assert_allclose(dx, np.zeros_like(x), atol=0.1 * tolerance("float32", RUN))


def test_one_element_has_no_gradient(either):
    generator = np.random.default_rng(0)
    x, dy = generator.standard_normal((2, 50, 7)).astype("float32")
    gamma = generator.standard_normal(7).astype("float32")
    _, mean, rstd = ops.group_norm(x, gamma, None, 7, 1e-5)
    dx = ops.group_norm_backward(dy, x, gamma, mean, rstd, None, None, False)
    np.testing.assert_array_equal(dx, np.zeros_like(x))


# Samples that stay in the cache between two passes, and larger ones.
@pytest.mark.parametrize("pixels", [1, 35, 600, 2100])
def test_group_norm_treats_each_sample_by_itself(pixels, either):
    generator = np.random.default_rng(0)
    x, dy = generator.standard_normal((2, 3, pixels, 34)).astype("float32")
    gamma, beta = generator.standard_normal((2, 34)).astype("float32")
    y, mean, rstd = ops.group_norm(x, gamma, beta, 2, 1e-5)
    dx = ops.group_norm_backward(dy, x, gamma, mean, rstd, None, None, False)
    for i in range(3):
        one = slice(i, i + 1)
        np.testing.assert_array_equal(ops.group_norm(x[one], gamma, beta, 2, 1e-5)[0], y[one])
        alone = ops.group_norm_backward(dy[one], x[one], gamma, mean[one], rstd[one], None, None, False)
        np.testing.assert_array_equal(alone, dx[one])


@pytest.mark.parametrize("channels", [2, 6, 16, 48, 64, 66, 130])
@pytest.mark.parametrize("name", LAYERS)
def test_native_equals_numpy(name, channels, monkeypatch):
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    x = (0.5 + np.random.default_rng(channels).standard_normal((5, 13, 11, channels))).astype("float32")
    by_kernel = run(LAYERS[name], x, "float32", twice=True)
    monkeypatch.setattr(native, "kernels", None)
    for actual, expected in zip(by_kernel, run(LAYERS[name], x, "float32", twice=True), strict=True):
        assert_close(actual, expected, tolerance("float32", 5 * 13 * 11))


# Rows in groups, where the last one is short, and single rows; sums of lanes and what is left of them.
@pytest.mark.parametrize("shape", [(37, 31), (35, 1500), (3, 4096), (2, 5001)], ids=str)
def test_rows_of_every_length(shape, either):
    x = (3 + np.random.default_rng(0).standard_normal(shape)).astype("float32")
    for actual, expected in zip(
        ops.layer_norm(x, None, None, 1, 1e-5), ops.layer_norm(x.astype("float64"), None, None, 1, 1e-5), strict=True
    ):
        assert_close(actual, expected, tolerance("float32"))


@pytest.mark.parametrize("name", LAYERS)
def test_second_pass_adds_its_gradient(name, either):
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 6)).astype("float32")
    once, twice = run(LAYERS[name], x, "float32"), run(LAYERS[name], x, "float32", twice=True)
    for one, two in zip(once[2:], twice[2:], strict=True):
        np.testing.assert_array_equal(two, 2 * one)


def test_frozen_scale_gets_no_gradient(either):
    layer = bp.LayerNorm()
    layer.weight.trainable = False
    layer.build((5,))
    x = np.random.default_rng(0).standard_normal((4, 5)).astype("float32")
    ctx = bp.Context(training=True)
    layer.forward(x, ctx)
    layer.backward(np.ones_like(x), ctx)
    assert layer.weight.grad is None
    np.testing.assert_array_equal(layer.bias.grad, np.full(5, 4.0))


# Where a value of element (1, 0, 0, 3) may reach: its channel, its pixel, or its group in its image.
REACH = {"batch": np.s_[:, :, :, 3], "layer": np.s_[1, 0, 0, :], "rms": np.s_[1, 0, 0, :], "group": np.s_[1, :, :, 2:]}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", REACH)
def test_nan_and_infinity_stay_where_they_belong(name, value, either):
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype("float32")
    x[1, 0, 0, 3] = value
    y, dx, *_ = run(LAYERS[name], x, "float32")
    outside = np.ones(x.shape, bool)
    outside[REACH[name]] = False
    assert np.isfinite(y[outside]).all() and np.isfinite(dx[outside]).all()
    if np.isnan(value) or name != "rms":
        assert np.isnan(y[REACH[name]]).all()
    assert np.isnan(y[1, 0, 0, 3])


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e18])
@pytest.mark.parametrize("name", ["batch", "layer", "group"])
def test_constant_input_gives_beta(name, value, either):
    layer = LAYERS[name]()
    layer.build((3, 3, 6))
    layer.bias.value = np.arange(6, dtype="float32")
    ctx = bp.Context(training=True)
    y = layer.forward(np.full((2, 3, 3, 6), value, "float32"), ctx)
    dx = layer.backward(np.random.default_rng(0).standard_normal(y.shape).astype("float32"), ctx)
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(6), y.shape))
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("name", LAYERS)
def test_arrays_that_are_not_contiguous(name, either):
    x = np.random.default_rng(0).standard_normal((4, 4, 3, 6)).astype("float32")
    swapped = np.ascontiguousarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    layer = LAYERS[name]()
    layer.build(x.shape[1:])
    ctx = bp.Context(training=True)
    y = layer.forward(x, ctx)
    dx = layer.backward(x, ctx)
    np.testing.assert_array_equal(layer.forward(swapped, ctx), y)
    np.testing.assert_array_equal(layer.backward(swapped, ctx), dx)


def digest():
    """A hash of all bits that the float32 operations give for inputs large enough to be split among threads."""
    result = hashlib.sha256()
    x = np.random.default_rng(0).standard_normal((6, 37, 41, 18)).astype("float32")
    for make in LAYERS.values():
        for array in run(make, x, "float32", twice=True):
            result.update(array.tobytes())
    return result.hexdigest()


def test_result_does_not_depend_on_the_number_of_threads():
    expect_same_on_any_threads("import test_norm; print(test_norm.digest())")


# Sum with the residual, then norm ------------------------------------------------------------------------------------


def add_norm_pass(name, x, residual, gamma, beta, dy, dtotal):
    """(y, total, dx, dgamma, dbeta) in float64."""
    dgamma, dbeta = np.zeros_like(gamma), np.zeros_like(gamma)
    if name == "layer":
        y, total, *saved = ops.add_layer_norm(x, residual, gamma, beta, 1, 1e-5)
        dx = ops.add_layer_norm_backward(dy, dtotal, total, gamma, *saved, dgamma, dbeta, False)
    else:
        y, total, *saved = ops.add_rms_norm(x, residual, gamma, 1, 1e-5)
        dx = ops.add_rms_norm_backward(dy, dtotal, total, gamma, *saved, dgamma, False)
    return y, total, dx, dgamma, dbeta


@pytest.mark.parametrize("with_dtotal", [True, False])
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_gradients_of_a_sum_and_its_norm(name, with_dtotal):
    """Central differences of sum(dy y) + sum(dtotal total) along x, the residual, gamma and beta."""
    generator = np.random.default_rng(0)
    x, residual, dy, dtotal = generator.standard_normal((4, 5, 7))
    gamma, beta = generator.standard_normal((2, 7))
    inputs = [x, residual, gamma, beta]
    weight = dtotal if with_dtotal else np.zeros_like(dtotal)

    def loss(arrays):
        y, total, *_ = add_norm_pass(name, *arrays, dy, None)
        return np.sum(dy * y) + np.sum(weight * total)

    _, total, dx, dgamma, dbeta = add_norm_pass(name, *inputs, dy, dtotal if with_dtotal else None)
    np.testing.assert_array_equal(total, x + residual)
    h = np.finfo(np.float64).eps ** (1 / 3)
    for number, gradient in enumerate((dx, dx, dgamma, dbeta)):
        direction = generator.standard_normal(gradient.shape)
        ends = []
        for distance in (h, -h):
            moved = list(inputs)
            moved[number] = inputs[number] + distance * direction
            ends.append(loss(moved))
        allowed = 100 * h**2 * np.linalg.norm(gradient * direction) + 100 * np.finfo(np.float64).eps / h
        assert abs((ends[0] - ends[1]) / (2 * h) - np.sum(gradient * direction)) <= allowed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"residual": np.zeros((3, 5))}, r"residual of shape \(3, 4\), got \(3, 5\)"),
        ({"residual": np.zeros((3, 4), "float32")}, "residual of dtype float64 like x, got float32"),
        ({"gamma": np.zeros(3)}, r"gamma of shape \(4,\), got \(3,\)"),
    ],
)
def test_a_residual_that_does_not_fit(changed, message):
    arguments = {"x": np.zeros((3, 4)), "residual": np.zeros((3, 4)), "gamma": np.ones(4)} | changed
    with pytest.raises(bp.errors.BPError, match=f"add_rms_norm expected {message}"):
        ops.add_rms_norm(*arguments.values(), 1, 1e-5)
    with pytest.raises(bp.errors.BPError, match=f"add_layer_norm expected {message}"):
        ops.add_layer_norm(*arguments.values(), None, 1, 1e-5)


def test_a_gradient_of_the_total_that_does_not_fit():
    x, rstd = np.zeros((3, 4)), np.ones(3)
    for dtotal, message in ((np.zeros((3, 5)), r"shape \(3, 4\)"), (np.zeros((3, 4), "float32"), "dtype float64")):
        with pytest.raises(bp.errors.BPError, match=f"add_layer_norm_backward expected dtotal of {message}"):
            ops.add_layer_norm_backward(x, dtotal, x, None, rstd, rstd, None, None, False)
        with pytest.raises(bp.errors.BPError, match=f"add_rms_norm_backward expected dtotal of {message}"):
            ops.add_rms_norm_backward(x, dtotal, x, None, rstd, None, False)


# Construction and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_are_weight_and_bias_without_decay(name):
    layer = LAYERS[name]()
    layer.build((3, 3, 6))
    names = [n for n, _ in layer.named_parameters()]
    assert names == ([] if name.startswith("plain") else ["weight"] if name == "rms" else ["weight", "bias"])
    assert not any(p.decay for _, p in layer.named_parameters())
    for parameter_name, parameter in layer.named_parameters():
        np.testing.assert_array_equal(parameter.value, 1.0 if parameter_name == "weight" else 0.0)


@pytest.mark.parametrize(
    ("make", "sample", "message"),
    [
        (lambda: bp.BatchNorm1d(4), (3,), r"expected 4 channels along axis -1 of a sample, got shape \(3,\)"),
        (
            lambda: bp.BatchNorm1d(),
            (2, 3, 4),
            r"expected a batch with axes \(N, C\) or \(B, T, C\), got .*\(N, 2, 3, 4\)",
        ),
        (lambda: bp.BatchNorm1d(), (), r"expected a batch with axes"),
        (lambda: bp.BatchNorm2d(), (3,), r"expected a batch with axes \(N, H, W, C\)"),
        (lambda: bp.LayerNorm(4), (3,), r"expected samples with the last sizes \(4,\).*got shape \(3,\)"),
        (lambda: bp.LayerNorm((2, 3)), (3,), r"last sizes \(2, 3\)"),
        (lambda: bp.LayerNorm(), (), r"at least one axis"),
        (lambda: bp.RMSNorm((3, 2)), (2, 3), r"last sizes \(3, 2\)"),
        (lambda: bp.GroupNorm(4), (6,), r"expected channels that 4 groups divide"),
        (lambda: bp.GroupNorm(2, 4), (6,), r"expected 4 channels"),
    ],
)
def test_build_errors(make, sample, message):
    layer = make()
    with pytest.raises(bp.errors.ShapeError, match=f"{type(layer).__name__}.*{message}"):
        layer.build(sample)


@pytest.mark.parametrize(
    ("make", "sample", "shape", "dtype", "message"),
    [
        (lambda: bp.BatchNorm1d(), (3,), (4, 4), "float32", r"batch_norm expected gamma of shape \(4,\), got \(3,\)"),
        (lambda: bp.BatchNorm1d(), (3,), (4, 4, 4, 3), "float32", r"expected a batch with axes"),
        (lambda: bp.BatchNorm1d(), (3,), (4, 3), "float64", r"batch_norm expected gamma of dtype float64 like x"),
        (lambda: bp.BatchNorm1d(affine=False), (3,), (4, 3), "float64", r"expected running_mean of dtype float64"),
        (lambda: bp.LayerNorm(), (3,), (4, 4), "float32", r"layer_norm expected gamma of shape \(4,\), got \(3,\)"),
        (lambda: bp.LayerNorm((2, 3)), (2, 3), (3,), "float32", r"layer_norm expected x with at least 2 axes"),
        (lambda: bp.LayerNorm(), (3,), (4, 3), "float64", r"layer_norm expected gamma of dtype float64"),
        (lambda: bp.LayerNorm(elementwise_affine=False), (3,), (4, 0), "float32", r"at least one element to normalise"),
        (lambda: bp.RMSNorm(), (3,), (4, 4), "float32", r"rms_norm expected gamma of shape \(4,\), got \(3,\)"),
        (lambda: bp.RMSNorm(), (3,), (), "float32", r"rms_norm expected x with at least 1 axes"),
        (lambda: bp.GroupNorm(3), (3,), (4, 6), "float32", r"group_norm expected gamma of shape \(6,\), got \(3,\)"),
        (lambda: bp.GroupNorm(2, affine=False), (4,), (3, 5), "float32", r"channels that 2 groups divide"),
        (lambda: bp.GroupNorm(2, affine=False), (4,), (4,), "float32", r"group_norm expected x of rank 2 or more"),
        (lambda: bp.GroupNorm(2), (5, 4), (3, 0, 4), "float32", r"at least one element in each sample"),
    ],
)
def test_input_errors(make, sample, shape, dtype, message):
    layer = make()
    layer.build(sample)
    with pytest.raises(bp.errors.BPError, match=f"{type(layer).__name__}: .*{message}"):
        layer.forward(np.zeros(shape, dtype), bp.Context(training=True))


@pytest.mark.parametrize("layer_class", [bp.LayerNorm, bp.RMSNorm])
def test_no_axis_to_normalise_over(layer_class):
    with pytest.raises(bp.errors.ConfigurationError, match=r"at least one axis, got \(\)"):
        layer_class(())


def test_running_statistics_come_in_pairs_and_are_needed_in_inference():
    x, ones = np.zeros((2, 3)), np.ones(3)
    with pytest.raises(bp.errors.ConfigurationError, match="both of running_mean and running_var or neither"):
        ops.batch_norm(x, None, None, ones, None, True, 0.1, 1e-5)
    with pytest.raises(bp.errors.ConfigurationError, match="expected running statistics in inference"):
        ops.batch_norm(x, None, None, None, None, False, 0.1, 1e-5)


def run_backward(name, x, **changed):
    """A backward with arguments that fit (3 samples of 4 channels, 2 groups), but for those that `changed` names."""
    rows, channels, groups = np.zeros(3), np.zeros(4), np.zeros((3, 2))
    statistic = {"batch_norm": channels, "group_norm": groups}.get(name, rows)
    arguments = {"dy": x, "x": x, "gamma": channels, "mean": statistic, "rstd": statistic}
    arguments |= {"dgamma": channels.copy(), "dbeta": channels.copy(), "accumulate": False, "training": True}
    if name == "rms_norm":
        del arguments["mean"], arguments["dbeta"]
    if name != "batch_norm":
        del arguments["training"]
    return getattr(ops, f"{name}_backward")(*(arguments | changed).values())


ALL, CENTRED = ["layer_norm", "rms_norm", "group_norm", "batch_norm"], ["layer_norm", "group_norm", "batch_norm"]
BAD_BACKWARDS = [
    *((name, {"dy": np.zeros((3, 5))}, r"dy of shape \(3, 4\), got \(3, 5\)") for name in ALL),
    *((name, {"gamma": np.zeros(3)}, r"gamma of shape \(4,\), got \(3,\)") for name in ALL),
    *((name, {"dgamma": np.zeros(3)}, r"dgamma of shape \(4,\), got \(3,\)") for name in ALL),
    *((name, {"dbeta": np.zeros((1, 4))}, r"dbeta of shape \(4,\), got \(1, 4\)") for name in CENTRED),
    *((name, {"dgamma": np.zeros(8)[::2]}, r"a C-contiguous dgamma, got strides \(16,\)") for name in ALL),
    *((name, {"dbeta": np.zeros(8)[::2]}, r"a C-contiguous dbeta, got strides \(16,\)") for name in CENTRED),
    *((name, {"dy": np.zeros((3, 4), "float32")}, "dy of dtype float64 like x, got float32") for name in ALL),
    ("layer_norm", {"mean": np.zeros(2)}, r"mean of shape \(3,\), got \(2,\)"),
    ("layer_norm", {"rstd": np.zeros(2)}, r"rstd of shape \(3,\), got \(2,\)"),
    ("rms_norm", {"rstd": np.zeros(2)}, r"rstd of shape \(3,\), got \(2,\)"),
    ("group_norm", {"mean": np.zeros((2, 2))}, r"mean of shape \(3, 2\), got \(2, 2\)"),
    ("group_norm", {"mean": np.zeros(3)}, r"mean of shape \(3, 3\), got \(3,\)"),
    ("group_norm", {"rstd": np.zeros((3, 4))}, r"rstd of shape \(3, 2\), got \(3, 4\)"),
    ("group_norm", {"mean": np.zeros((3, 3)), "rstd": np.zeros((3, 3))}, r"channels that 3 groups divide"),
    ("group_norm", {"mean": np.zeros((3, 0)), "rstd": np.zeros((3, 0))}, r"channels that 0 groups divide"),
    ("batch_norm", {"mean": np.zeros(1)}, r"mean of shape \(4,\), got \(1,\)"),
    ("batch_norm", {"rstd": np.zeros((1, 4))}, r"rstd of shape \(4,\), got \(1, 4\)"),
]


@pytest.mark.parametrize(("name", "changed", "message"), BAD_BACKWARDS)
def test_backward_arguments_that_do_not_fit(name, changed, message):
    run_backward(name, np.zeros((3, 4)))
    with pytest.raises(bp.errors.BPError, match=f"{name}_backward expected {message}"):
        run_backward(name, np.zeros((3, 4)), **changed)
