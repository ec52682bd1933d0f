"""Optimizer kernels: numbers below the normal range, and NaN, in one step of the native extension and of NumPy."""

import platform

import numpy as np
import pytest

import bp.ops.optimizer as ops
from bp.checking import tolerance
from bp.cpu import native
from bp.ops import control as block
from bp.ops.optimizer import DECOUPLED_DECAY, LR_FACTOR, TILE

SUBNORMAL = 1e-39


def adam_step(gradient, moment, square, largest=None):
    """(values, first moment, second moment, largest second moment) of one tile after a step, from values of 1."""
    values, g, m, v = (np.full(TILE, start, np.float32) for start in (1.0, gradient, moment, square))
    top = None if largest is None else np.full(TILE, largest, np.float32)
    settings = np.zeros((1, 4), np.float32)
    settings[:, LR_FACTOR] = 1
    settings[:, DECOUPLED_DECAY] = 0.01
    control = np.zeros(block.SIZE)
    control[[block.LEARNING_RATE, block.GRADIENT_SCALE, block.APPLIED_STEP]] = 0.1, 1.0, 1000
    ops.adam(values, g, m, v, top, settings, control, 0.9, 0.999, 1e-8, None, False)
    return values, m, v, top


@pytest.fixture
def both(monkeypatch):
    """Run a step natively and in NumPy."""
    if native.kernels is None:
        pytest.skip("the native extension is not built")

    def run(*arguments):
        fast = adam_step(*arguments)
        monkeypatch.setattr(native, "kernels", None)
        return fast, adam_step(*arguments)

    return run


def test_subnormal_moments_count_as_zero(both):
    native_step, numpy_step = both(0.0, SUBNORMAL, SUBNORMAL)
    values, m, v, _ = native_step
    assert np.isfinite(values).all()
    if platform.machine() in ("x86_64", "AMD64"):  # elsewhere the kernels leave the mode of the processor alone
        assert (m == 0).all() and (v == 0).all()
    for fast, reference in zip(native_step[:3], numpy_step[:3], strict=True):
        np.testing.assert_allclose(fast, reference, rtol=tolerance("float32"), atol=np.finfo(np.float32).tiny)


def test_a_step_leaves_the_arithmetic_of_the_caller_alone(both):
    both(0.0, SUBNORMAL, SUBNORMAL)
    assert (np.full(TILE, SUBNORMAL, np.float32) * np.float32(0.5) > 0).all()


@pytest.mark.parametrize("largest", [0.0, 1.0, np.inf])
def test_a_nan_gradient_stays_in_the_largest_second_moment(both, largest):
    for values, m, v, top in both(np.nan, 0.5, 0.5, largest):
        for array in (values, m, v, top):
            assert np.isnan(array).all()


def step(rule, gradient, means, settings):
    """Values and means of three tiles after a step of a rule, from values of 1, means of that size or absent."""
    generator = np.random.default_rng(0)
    values, g = np.ones(3 * TILE, np.float32), np.full(3 * TILE, gradient, np.float32)
    if np.isfinite(gradient):
        g += generator.standard_normal(g.shape).astype("float32")
    means = [None if mean is None else np.full(3 * TILE, mean, np.float32) for mean in means]
    rows = np.tile(np.float32([1, 0.01, 0.1, 0.02]), (3, 1))
    rows[2, LR_FACTOR] = 0.5
    control = np.zeros(block.SIZE)
    control[[block.LEARNING_RATE, block.GRADIENT_SCALE, block.APPLIED_STEP, block.MOMENTUM_PRODUCT]] = 0.1, 0.5, 7, 0.6
    getattr(ops, rule)(values, g, *means, rows, control, *settings, None, False)
    return [values, *(mean for mean in means if mean is not None)]


RULES = [
    ("sgd", (0.5,), (0.9, 0.1, True)),
    ("sgd", (None,), (0.0, 0.0, False)),
    ("adagrad", (0.5,), (0.01, 1e-10)),
    ("adadelta", (0.5, 0.25), (0.9, 1e-6)),
    ("rmsprop", (0.5, None, None), (0.99, 1e-8, 0.0)),
    ("rmsprop", (0.5, 0.25, None), (0.99, 1e-8, 0.0)),
    ("rmsprop", (0.5, None, 0.25), (0.99, 1e-8, 0.9)),
    ("rmsprop", (0.5, 0.25, 0.25), (0.99, 1e-8, 0.9)),
    ("adam", (0.5, 0.5, 0.4), (0.9, 0.999, 1e-8)),
    ("nadam", (0.5, 0.5), (0.9, 0.999, 1e-8, 4e-3)),
    ("lion", (0.5,), (0.9, 0.99)),
]


@pytest.mark.parametrize("gradient", [0.25, np.inf, np.nan])
@pytest.mark.parametrize(("rule", "means", "settings"), RULES)
def test_each_rule_is_that_of_numpy(rule, means, settings, gradient, monkeypatch):
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    fast = step(rule, gradient, means, settings)
    monkeypatch.setattr(native, "kernels", None)
    for actual, expected in zip(fast, step(rule, gradient, means, settings), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=tolerance("float32"))
        assert not np.isnan(gradient) or np.isnan(actual).all()


def test_a_variance_that_rounding_makes_negative_counts_as_zero(both_rmsprop):
    """The square of a mean of a gradient that is always 3 can be a little more than the mean of its squares."""
    for values, square, mean in both_rmsprop:
        assert (square < mean * mean).all()
        np.testing.assert_allclose(values, 1 - 0.1 * 3 / 1e-3, rtol=tolerance("float32"))


@pytest.fixture
def both_rmsprop(monkeypatch):
    """Values and means of a centred step, natively and in NumPy."""
    if native.kernels is None:
        pytest.skip("the native extension is not built")

    def run():
        values, g, square, mean = (np.full(TILE, start, np.float32) for start in (1.0, 3.0, 8.999, 3.0))
        settings = np.zeros((1, 4), np.float32)
        settings[:, LR_FACTOR] = 1
        control = np.zeros(block.SIZE)
        control[[block.LEARNING_RATE, block.GRADIENT_SCALE, block.APPLIED_STEP]] = 0.1, 1.0, 1000
        ops.rmsprop(values, g, square, mean, None, settings, control, 0.99, 1e-3, 0.0, None, False)
        return values, square, mean

    fast = run()
    monkeypatch.setattr(native, "kernels", None)
    return fast, run()
