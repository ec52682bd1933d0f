"""Initializers: the moments of their draws, their structure, and what they do to a signal in a deep network."""

import math

import numpy as np
import pytest

import bp
from bp import initializers as init

SIGMAS = 5.0  # a correct draw leaves this interval once in 1.7 million; seeds are fixed


def draw(initializer, shape, name="weight", seed=0):
    return initializer(shape, init.generator_for(seed, name))


LINEAR, CONV = (300, 200), (64, 3, 5, 40)  # fans (200, 300) and (600, 960)
TRUNCATED_STD = math.sqrt(1 - 2 * 2 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))

# (initializer, shape, mean, std, kurtosis E[(x - mean)^4] / std^4: 9/5 of a uniform, 3 of a normal draw)
MOMENTS = [
    (init.Uniform(-1, 3), LINEAR, 1.0, 4 / math.sqrt(12), 1.8),
    (init.Normal(2.0, 0.5), LINEAR, 2.0, 0.5, 3),
    (init.TruncatedNormal(), LINEAR, 0.0, TRUNCATED_STD, 3),
    (init.XavierNormal(), LINEAR, 0.0, math.sqrt(2 / 500), 3),
    (init.XavierUniform(2.0), CONV, 0.0, 2 * math.sqrt(2 / 1560), 1.8),
    (init.KaimingNormal(), LINEAR, 0.0, math.sqrt(2 / 200), 3),
    (init.KaimingUniform(), CONV, 0.0, math.sqrt(2 / 600), 1.8),
    (init.KaimingNormal("fan_out", "tanh"), CONV, 0.0, 5 / 3 / math.sqrt(960), 3),
    (init.KaimingUniform("fan_out", "leaky_relu", 0.5), LINEAR, 0.0, math.sqrt(2 / 1.25 / 300), 1.8),
    (init.LecunNormal(), LINEAR, 0.0, math.sqrt(1 / 200), 3),
    (init.LecunUniform(), CONV, 0.0, math.sqrt(1 / 600), 1.8),
]


@pytest.mark.parametrize(
    ("initializer", "shape", "mean", "std", "kurtosis"), MOMENTS, ids=[type(case[0]).__name__ for case in MOMENTS]
)
def test_moments_of_the_draw(initializer, shape, mean, std, kurtosis):
    values = draw(initializer, shape)
    n = values.size
    assert values.shape == shape and values.dtype == np.float64
    # By the central limit theorem a mean of n draws has the deviation std / sqrt(n), and the mean of their squares
    # about the true mean has the deviation std^2 sqrt((kurtosis - 1) / n).
    assert abs(values.mean() - mean) < SIGMAS * std / math.sqrt(n)
    variance = np.mean((values - mean) ** 2)
    assert abs(variance - std**2) < SIGMAS * std**2 * math.sqrt((kurtosis - 1) / n)
    if kurtosis == 1.8:
        assert np.abs(values - mean).max() <= math.sqrt(3) * std


def test_truncated_normal_stays_within_its_bounds():
    values = draw(init.TruncatedNormal(1.0, 2.0, 0.5, 4.0), (100, 100))
    assert values.min() >= 0.5 and values.max() <= 4.0 and len(np.unique(values)) > 9990
    assert draw(init.TruncatedNormal(), (0, 3)).shape == (0, 3)


def test_constants():
    np.testing.assert_array_equal(draw(init.Zeros(), (2, 3)), np.zeros((2, 3)))
    np.testing.assert_array_equal(draw(init.Ones(), ()), 1.0)
    np.testing.assert_array_equal(draw(init.Constant(-2), (3,)), np.full(3, -2.0))


def test_fans_match_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    fans = torch.nn.init._calculate_fan_in_and_fan_out
    assert init.fans((7, 5)) == fans(torch.empty(7, 5)) == (5, 7)
    ours, theirs = (8, 3, 5, 6), (8, 6, 3, 5)  # ours has the channels last
    assert init.fans(ours) == fans(torch.empty(theirs)) == (90, 120)


@pytest.mark.parametrize("nonlinearity", ["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gain_matches_torch(nonlinearity):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    assert init.gain(nonlinearity) == pytest.approx(torch.nn.init.calculate_gain(nonlinearity), rel=1e-15)
    assert init.gain("leaky_relu", 0.2) == pytest.approx(torch.nn.init.calculate_gain("leaky_relu", 0.2), rel=1e-15)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (9, 9), (1, 5), (5, 1), (6, 3, 3, 4), (50, 1, 1, 4)])
def test_orthogonal(shape):
    weight = draw(init.Orthogonal(1.5), shape).reshape(shape[0], -1)
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    np.testing.assert_allclose(gram, 1.5**2 * np.eye(len(gram)), atol=1e-13)
    assert draw(init.Orthogonal(), (0, 4)).shape == (0, 4)


def test_orthogonal_is_uniform_over_orthogonal_matrices():
    # Without the signs of R's diagonal, Q's own diagonal would be negative throughout (LAPACK's Householder vectors).
    signs = [np.sign(np.diagonal(draw(init.Orthogonal(), (4, 4), seed=seed))) for seed in range(200)]
    assert abs(np.mean(signs)) < SIGMAS / math.sqrt(800)


def convolve(x, weight, groups):
    """A 'same' convolution of one image (H, W, C) by its definition."""
    out, height, width, inner = weight.shape
    padded = np.pad(x, ((height // 2, height // 2), (width // 2, width // 2), (0, 0)))
    y = np.zeros((*x.shape[:2], out))
    for channel in range(out):
        first = channel // (out // groups) * inner
        for row in range(x.shape[0]):
            for column in range(x.shape[1]):
                window = padded[row : row + height, column : column + width, first : first + inner]
                y[row, column, channel] = np.sum(window * weight[channel])
    return y


@pytest.mark.parametrize(
    ("channels", "kernel", "groups"), [(4, (3, 3), 1), (6, (1, 5), 3), (3, (3, 1), 3), (1, (1, 1), 1)]
)
def test_dirac_convolution_is_the_identity(channels, kernel, groups):
    x = np.random.default_rng(0).standard_normal((4, 5, channels))
    weight = draw(init.Dirac(groups), (channels, *kernel, channels // groups))
    np.testing.assert_array_equal(convolve(x, weight, groups), x)


def test_dirac_with_more_outputs_or_inputs():
    x = np.random.default_rng(0).standard_normal((3, 3, 2))
    y = convolve(x, draw(init.Dirac(), (5, 3, 3, 2)), 1)
    np.testing.assert_array_equal(y[..., :2], x)
    assert not y[..., 2:].any()
    np.testing.assert_array_equal(draw(init.Identity(), (2, 4)), np.eye(2, 4))


@pytest.mark.parametrize(
    "initializer", [init.Normal(), init.KaimingUniform(), init.Orthogonal(), init.TruncatedNormal()]
)
def test_a_draw_depends_on_seed_and_name_alone(initializer):
    first = draw(initializer, (6, 5), "0.weight", seed=1)
    draw(initializer, (3, 3), "another")
    np.testing.assert_array_equal(draw(initializer, (6, 5), "0.weight", seed=1), first)
    assert not np.array_equal(draw(initializer, (6, 5), "1.weight", seed=1), first)
    assert not np.array_equal(draw(initializer, (6, 5), "0.weight", seed=2), first)


def test_a_layer_added_leaves_the_values_of_the_others_alone():
    small = bp.Sequential(bp.Linear(4, 4), bp.Linear(4, 4))
    large = bp.Sequential(bp.Linear(4, 4), bp.Linear(4, 4), bp.Linear(4, 9))
    for model in (small, large):
        model.build((4,), seed=7)
    for index in range(2):
        np.testing.assert_array_equal(small[index].weight.value, large[index].weight.value)
    assert not np.array_equal(small[0].weight.value, small[1].weight.value)


def deep_signal(initializer, depth=30, width=128):
    """Root mean square, per layer, of the outputs and of the gradients of a deep network of ReLUs."""
    layers = [
        layer for _ in range(depth) for layer in (bp.Linear(width, width, weight_initializer=initializer), bp.ReLU())
    ]
    model = bp.Sequential(*layers)
    model.build((width,), dtype="float64")
    generator = np.random.default_rng(0)
    ctx = bp.Context(training=True)
    forward, backward = [], []
    x = generator.standard_normal((64, width))
    for layer in layers:
        x = layer.forward(x, ctx)
        forward.append(float(np.sqrt(np.mean(x**2))))
    dy = generator.standard_normal(x.shape)
    for layer in reversed(layers):
        dy = layer.backward(dy, ctx)
        backward.append(float(np.sqrt(np.mean(dy**2))))
    return forward[1::2], backward[1::2]


def test_kaiming_keeps_signals_and_gradients_alive_through_30_layers():
    forward, backward = deep_signal(init.KaimingUniform())
    # Each layer multiplies the expected second moment by 1. Its relative fluctuation per layer is about
    # sqrt(5 / width) (He et al.; Hanin 2018: exp of a sum of depth terms of size 5 / width), so after 30 layers the
    # logarithm of the second moment has a deviation near sqrt(30 * 5 / 128) = 1.1, of the root half as much.
    for signal in (forward, backward):
        assert abs(math.log(signal[-1] / signal[0])) < 3 * 0.5 * 1.1


@pytest.mark.parametrize(
    ("initializer", "per_layer"),
    [(init.Normal(std=0.01), 0.01 * math.sqrt(128 / 2)), (init.LecunNormal(), math.sqrt(0.5))],
    ids=["too-small", "no-gain"],
)
def test_without_the_right_scale_signals_vanish(initializer, per_layer):
    forward, backward = deep_signal(initializer)
    for signal in (forward, backward):
        # A factor per_layer at each of the 29 layers between; the same fluctuation as above.
        assert abs(math.log(signal[-1] / signal[0]) - 29 * math.log(per_layer)) < 3 * 0.5 * 1.1
        assert signal[-1] < 1e-4 * signal[0]


def test_too_large_a_scale_makes_signals_explode():
    forward, backward = deep_signal(init.Normal(std=2 * math.sqrt(2 / 128)))
    for signal in (forward, backward):
        assert signal[-1] > 1e7 * signal[0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: init.Uniform(1, 0), "ConfigurationError", "low <= high"),
        (lambda: init.Uniform(0, math.inf), "ConfigurationError", "both finite"),
        (lambda: init.Normal(std=-1), "ConfigurationError", "std >= 0"),
        (lambda: init.TruncatedNormal(std=0), "ConfigurationError", "std > 0"),
        (lambda: init.TruncatedNormal(low=8, high=9), "ConfigurationError", "at least 1% of the distribution"),
        (lambda: init.TruncatedNormal(low=2, high=-2), "ConfigurationError", "at least 1% of the distribution"),
        (lambda: init.XavierUniform(0), "ConfigurationError", "XavierUniform expected a finite gain > 0, got 0"),
        (lambda: init.KaimingNormal("fan"), "ConfigurationError", "KaimingNormal expected mode .* got 'fan'"),
        (lambda: init.KaimingNormal(nonlinearity="gelo"), "ConfigurationError", "no gain for nonlinearity 'gelo'"),
        (lambda: init.Orthogonal(-1), "ConfigurationError", "gain > 0"),
        (lambda: init.Dirac(0), "ConfigurationError", "groups of at least 1"),
        (lambda: draw(init.Dirac(2), (3, 1, 1, 3)), "ShapeError", "2 groups divide"),
        (lambda: draw(init.Orthogonal(), (3,)), "ShapeError", r"rank 2 or more, got shape \(3,\)"),
        (lambda: draw(init.KaimingUniform(), (3,)), "ShapeError", r"rank 2 or more, got shape \(3,\)"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(getattr(bp.errors, error), match=message):
        make()
