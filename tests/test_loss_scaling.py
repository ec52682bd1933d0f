"""Dynamic loss scaling: overflow skips the step and lowers the scale, good steps raise it; on every device alike."""

import math

import numpy as np
import pytest
from table import KERNEL_DEVICE

import bp
from bp.ops import control as block
from bp.ops.device import find_device

DEVICES = ("cpu", KERNEL_DEVICE)


def setup(device, make=bp.SGD, **scaling):
    model = bp.Sequential(bp.Linear(3, 2))
    model.build((3,), device=device, dtype="float16" if device == KERNEL_DEVICE else "float32")
    optimizer = make(0.5).setup(model)
    optimizer.enable_loss_scaling(**scaling)
    return model, optimizer


def step(model, optimizer, gradient, clip=None):
    """One step with a gradient that the loss scale is in already, as backward leaves it."""
    scale = optimizer.loss_scale
    for _, parameter in model.named_parameters():
        parameter.grad = np.full(parameter.shape, gradient * scale, np.float32)
    if clip is not None:
        clip()
    optimizer.step()
    return entries(optimizer)


def entries(optimizer):
    control = optimizer.arena.device.to_host(optimizer.control)
    return {name: float(control[getattr(block, name)]) for name in ("LOSS_SCALE", "SKIP_STEP", "GOOD_STEPS")}


def values_of(model):
    return np.array(model.arena.device.to_host(model.arena.values))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fault", [math.inf, -math.inf, math.nan])
def test_overflow_skips_and_good_steps_grow(fault, device):
    model, optimizer = setup(device, initial=1024.0, growth_interval=2)
    before = values_of(model)
    assert step(model, optimizer, fault) == {"LOSS_SCALE": 512.0, "SKIP_STEP": 1.0, "GOOD_STEPS": 0.0}
    np.testing.assert_array_equal(values_of(model), before)
    control = find_device(device).to_host(optimizer.control)
    assert control[block.ATTEMPTED_STEP] == 1 and control[block.APPLIED_STEP] == 0

    # The scale that was in the gradients is undone, also by the step after which it grows.
    for number, expected in enumerate([(512.0, 1.0), (1024.0, 0.0), (1024.0, 1.0), (2048.0, 0.0)]):
        before = values_of(model)
        after = step(model, optimizer, 0.25)
        assert (after["LOSS_SCALE"], after["GOOD_STEPS"]) == expected and after["SKIP_STEP"] == 0
        moved = (before - values_of(model))[:6]
        np.testing.assert_allclose(moved, 0.125, rtol=1e-5, err_msg=f"step {number}")
    step(model, optimizer, 0.25)
    assert step(model, optimizer, fault) == {"LOSS_SCALE": 1024.0, "SKIP_STEP": 1.0, "GOOD_STEPS": 0.0}
    control = find_device(device).to_host(optimizer.control)
    assert control[block.ATTEMPTED_STEP] == 7 and control[block.APPLIED_STEP] == 5


@pytest.mark.parametrize("device", DEVICES)
def test_clipping_counts_in_units_without_the_scale(device):
    model, optimizer = setup(device, initial=256.0)
    size = sum(parameter.size for _, parameter in model.named_parameters())
    before = values_of(model)
    step(model, optimizer, 3.0, lambda: optimizer.clip_by_global_norm(0.5))
    control = find_device(device).to_host(optimizer.control)
    assert control[block.GRADIENT_NORM] == pytest.approx(3 * math.sqrt(size))
    assert np.linalg.norm(before - values_of(model)) == pytest.approx(0.25, rel=1e-5)
    before = values_of(model)
    step(model, optimizer, 3.0, lambda: optimizer.clip_by_value(0.5))
    np.testing.assert_allclose((before - values_of(model))[:6], 0.25, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_clipping_by_value_does_not_hide_an_overflow(device):
    model, optimizer = setup(device, initial=256.0)
    before = values_of(model)

    def clip():
        optimizer.clip_by_value(0.5)
        optimizer.clip_by_global_norm(0.1)

    assert step(model, optimizer, math.inf, clip)["SKIP_STEP"] == 1
    np.testing.assert_array_equal(values_of(model), before)
    assert step(model, optimizer, 1.0, clip)["SKIP_STEP"] == 0
    assert (values_of(model) != before).any()


@pytest.mark.parametrize("device", DEVICES)
def test_the_scale_stays_within_its_bounds(device):
    model, optimizer = setup(device, initial=2.0**24, growth_interval=1)
    assert step(model, optimizer, 0.0)["LOSS_SCALE"] == 2.0**24
    optimizer.enable_loss_scaling(initial=1.0)
    assert step(model, optimizer, math.nan)["LOSS_SCALE"] == 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_a_skipped_step_does_not_count_for_the_rule(device):
    """Faulty steps in between leave Adam's moments and bias corrections as they would be without them."""
    runs = []
    for faults in (False, True):
        model, optimizer = setup(device, bp.NAdam, initial=64.0)
        for number in range(4):
            if faults:
                step(model, optimizer, math.nan)
            step(model, optimizer, 0.1 * (number + 1))
        runs.append(values_of(model))
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_the_scale_is_part_of_the_state(device):
    model, optimizer = setup(device, initial=1024.0, growth_interval=5)
    for gradient in (0.1, math.inf, 0.1, 0.1):
        step(model, optimizer, gradient)
    state = optimizer.state_dict()
    assert state["loss_scale"] == [512.0] and state["good_steps"] == [2.0]
    other, peer = setup(device, growth_interval=5)
    peer.load_state_dict(state)
    assert entries(peer)["LOSS_SCALE"] == 512 and entries(peer)["GOOD_STEPS"] == 2
    with pytest.raises(bp.errors.CheckpointError, match=r"2 not of this model \(good_steps, loss_scale\)"):
        bp.SGD(0.5).setup(other).load_state_dict(state)


def test_enabled_before_setup():
    optimizer = bp.SGD()
    optimizer.enable_loss_scaling(128.0)
    model = bp.Sequential(bp.Linear(3, 2))
    model.build((3,))
    assert optimizer.setup(model).loss_scale == 128.0
    assert bp.SGD().setup(model).loss_scale == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": 0.5}, r"initial loss scale in \[1, 1\.67772e\+07\], got 0\.5"),
        ({"initial": math.nan}, "initial loss scale"),
        ({"growth_factor": 1.0}, "growth_factor > 1"),
        ({"backoff_factor": 1.0}, r"backoff_factor in \(0, 1\)"),
        ({"growth_interval": 0}, "growth_interval of at least 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        bp.SGD().enable_loss_scaling(**settings)
