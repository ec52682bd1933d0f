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
