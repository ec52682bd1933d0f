"""The optimizer around its rule: clipping, groups, state by name, and what is refused."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

import bp
from bp.checking import tolerance
from bp.cpu import native
from bp.ops.control import GRADIENT_NORM, GRADIENT_SCALE

RULES = [
    lambda **s: bp.SGD(0.1, 0.9, **s),
    bp.Adagrad,
    bp.Adadelta,
    lambda **s: bp.RMSprop(momentum=0.5, centered=True, **s),
    bp.Adam,
    lambda **s: bp.AdamW(amsgrad=True, **s),
    bp.NAdam,
    bp.Lion,
    bp.Adafactor,
    bp.Muon,
]
NAMES = ["sgd", "adagrad", "adadelta", "rmsprop", "adam", "adamw", "nadam", "lion", "adafactor", "muon"]


def network(dtype="float32"):
    model = bp.Sequential(bp.Linear(5, 30), bp.Linear(30, 7))
    model.build((5,), dtype=dtype)
    return model


def step(model, optimizer, number, clip=None):
    for name, parameter in model.named_parameters():
        generator = np.random.default_rng([number, *name.rpartition(".")[2].encode(), parameter.size])
        parameter.grad = generator.standard_normal(parameter.shape)
    if clip is not None:
        clip()
    optimizer.step()


# Clipping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("with_native", [False, True], ids=["numpy", "native"])
def test_clip_by_global_norm(dtype, with_native, monkeypatch):
    if not with_native:
        monkeypatch.setattr(native, "kernels", None)
    model = network(dtype)
    optimizer = bp.SGD(1.0).setup(model)
    before = np.array(model.arena.values, np.float64)
    step(model, optimizer, 0, lambda: optimizer.clip_by_global_norm(0.25))
    gradients = np.array(model.arena.gradients, np.float64)
    norm = np.linalg.norm(gradients)
    assert float(optimizer.control[GRADIENT_NORM]) == pytest.approx(norm, rel=tolerance("float64", gradients.size))
    moved = before - model.arena.values
    np.testing.assert_allclose(moved, gradients * 0.25 / norm, atol=4 * np.finfo(dtype).eps)

    # The factor is of one step only, and a norm below the limit leaves it at 1.
    before = np.array(model.arena.values, np.float64)
    step(model, optimizer, 0)
    np.testing.assert_allclose(before - model.arena.values, gradients, atol=16 * np.finfo(dtype).eps)
    step(model, optimizer, 1, lambda: optimizer.clip_by_global_norm(1e6))
    assert optimizer.control[GRADIENT_SCALE] == 1.0
    step(model, optimizer, 1, optimizer.clip_by_global_norm)
    assert optimizer.control[GRADIENT_NORM] > 10


@pytest.mark.parametrize("with_native", [False, True], ids=["numpy", "native"])
def test_global_norm_of_extreme_gradients(with_native, monkeypatch):
    if not with_native:
        monkeypatch.setattr(native, "kernels", None)
    model = network()
    optimizer = bp.SGD(1.0).setup(model)

    def norm_and_scale(gradient):
        for _, parameter in model.named_parameters():
            parameter.grad = np.full(parameter.shape, gradient, np.float32)
        optimizer.clip_by_global_norm(1.0)
        return float(optimizer.control[GRADIENT_NORM]), float(optimizer.control[GRADIENT_SCALE])

    size = sum(parameter.size for _, parameter in model.named_parameters())
    norm, scale = norm_and_scale(1e30)
    assert norm == pytest.approx(float(np.float32(1e30)) * math.sqrt(size), rel=1e-12)
    assert scale == pytest.approx(1 / norm)
    before = np.array(model.arena.values, np.float64)
    optimizer.step()
    assert np.linalg.norm(before - model.arena.values) == pytest.approx(1.0, rel=1e-5)
    assert norm_and_scale(0.0) == (0.0, 1.0)
    assert norm_and_scale(1e-30)[1] == 1.0
    assert norm_and_scale(math.inf) == (math.inf, 1.0)
    norm, scale = norm_and_scale(math.nan)
    assert math.isnan(norm) and scale == 1.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("with_native", [False, True], ids=["numpy", "native"])
@pytest.mark.parametrize("size", [0, 1, 127, 16 * 1024, 100_003])
def test_sum_of_squares_in_blocks(size, with_native, dtype, monkeypatch):
    from bp.cpu.optimizer import sum_squared

    if not with_native:
        monkeypatch.setattr(native, "kernels", None)
    x = np.random.default_rng(0).standard_normal(size).astype(dtype)
    exact = math.fsum(float(value) ** 2 for value in x)
    assert sum_squared(x) == pytest.approx(exact, rel=tolerance("float64", size))


def test_results_do_not_depend_on_the_number_of_threads():
    if native.kernels is None or not native.kernels.openmp:
        pytest.skip("the native extension is not built, or without OpenMP")
    program = """
import hashlib, numpy as np, bp
model = bp.Sequential(bp.Linear(700, 500))
model.build((700,))
optimizer = bp.AdamW().setup(model)
for _ in range(2):
    model[0].weight.grad = np.random.default_rng(0).standard_normal((500, 700))
    optimizer.clip_by_global_norm(1.0)
    optimizer.step()
print(hashlib.sha256(model.arena.values.tobytes() + optimizer.control.tobytes()).hexdigest())
"""
    digests = set()
    for threads in ("1", "2", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        digests.add(run.stdout)
    assert len(digests) == 1


def test_clip_by_value():
    model = network("float64")
    optimizer = bp.SGD(1.0).setup(model)
    before = np.array(model.arena.values)
    step(model, optimizer, 0, lambda: optimizer.clip_by_value(0.5))
    generator = np.random.default_rng([0, *b"weight", 150])
    expected = np.clip(generator.standard_normal((30, 5)), -0.5, 0.5)
    np.testing.assert_allclose(before[:150].reshape(30, 5) - model[0].weight.value, expected, atol=1e-15)
    model[0].bias.grad = np.full(30, math.nan)
    optimizer.clip_by_value(0.5)
    assert np.isnan(model[0].bias.grad).all()


# Groups and settings --------------------------------------------------------------------------------------


def test_the_first_matching_group_applies():
    groups = [bp.Group("1.*", lr_factor=0.0), bp.Group("*.weight", lr_factor=3.0, weight_decay=0.5)]
    model = network("float64")
    optimizer = bp.SGD(0.1, groups=groups, weight_decay=0.2, l1=0.3).setup(model)
    rows = {name: np.array(optimizer.row(p))[0].tolist() for name, p in model.named_parameters()}
    assert rows == {
        "0.weight": [3.0, 0.0, 0.5, 0.3],
        "0.bias": [1.0, 0.0, 0.0, 0.0],  # a bias is not decayed and has no penalty
        "1.weight": [0.0, 0.0, 0.2, 0.3],
        "1.bias": [0.0, 0.0, 0.0, 0.0],
    }
    before = np.array(model[1].weight.value)
    step(model, optimizer, 0)
    np.testing.assert_array_equal(model[1].weight.value, before)


@pytest.mark.parametrize("make", [bp.SGD, bp.AdamW])
def test_what_a_group_leaves_open_is_inherited(make):
    model = network("float64")

    def row(parameter, **group):
        groups = [bp.Group("0.*", lr_factor=0.1, **group)]
        optimizer = make(weight_decay=0.5, l2=1e-2, l1=1e-3, groups=groups).setup(model)
        lr_factor, decay, l2, l1 = np.array(optimizer.row(parameter))[0].tolist()
        assert lr_factor == 0.1
        return (decay + l2, l1)

    assert row(model[0].weight) == (0.51, 1e-3)
    assert row(model[0].bias) == (0.0, 0.0)  # never decayed, unless the group says so
    assert row(model[0].weight, l2=0.0, l1=0.0) == (0.5, 0.0)
    assert row(model[0].weight, weight_decay=0.0, l2=0.25) == (0.25, 1e-3)
    assert row(model[0].bias, l2=0.25, l1=0.125) == (0.25, 0.125)


def test_a_pattern_of_muon_that_matches_nothing_is_an_error():
    with pytest.raises(bp.errors.ConfigurationError, match=r"Muon has an adamw pattern 'head\.\*' that matches no"):
        bp.Muon(adamw=["1.*", "head.*"]).setup(network())
    bp.Muon(adamw=["1.*", "*.bias"]).setup(network())


def test_a_group_that_matches_nothing_is_an_error():
    with pytest.raises(bp.errors.ConfigurationError, match=r"group 'feature\.\*' that matches no .*: 0\.weight, 0\.b"):
        bp.AdamW(groups=[bp.Group("feature.*")]).setup(network())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.SGD(-1.0), "SGD expected a finite lr >= 0, got -1.0"),
        (lambda: bp.SGD(math.nan), "finite lr >= 0, got nan"),
        (lambda: bp.SGD(math.inf), "finite lr >= 0, got inf"),
        (lambda: bp.SGD(momentum=1.0), r"momentum in \[0, 1\), got 1.0"),
        (lambda: bp.SGD(momentum=0.9, dampening=2), r"dampening in \[0, 1\]"),
        (lambda: bp.SGD(nesterov=True), "momentum > 0 and dampening 0 with nesterov"),
        (lambda: bp.Adam(betas=(1.0, 0.9)), r"Adam expected betas\[0\] in \[0, 1\), got 1.0"),
        (lambda: bp.AdamW(betas=(0.9, -0.1)), r"AdamW expected betas\[1\] in \[0, 1\), got -0.1"),
        (lambda: bp.NAdam(betas=(0.9,)), "NAdam expected two betas"),
        (lambda: bp.Adam(eps=0.0), "finite eps > 0"),
        (lambda: bp.Adam(eps=1e-50), "finite eps > 0"),
        (lambda: bp.Adam(weight_decay=-1), "weight_decay >= 0, got -1"),
        (lambda: bp.Adam(l1=-1), "l1 >= 0"),
        (lambda: bp.NAdam(momentum_decay=-1), "momentum_decay >= 0"),
        (lambda: bp.Lion(betas=(0.9, 1.5)), r"betas\[1\]"),
        (lambda: bp.Adadelta(rho=1.0), r"rho in \[0, 1\)"),
        (lambda: bp.Adagrad(lr_decay=-1), "lr_decay >= 0"),
        (lambda: bp.Adagrad(initial_accumulator_value=-1), "initial_accumulator_value >= 0"),
        (lambda: bp.RMSprop(alpha=2), r"alpha in \[0, 1\)"),
        (lambda: bp.Adafactor(beta2_decay=0.1), "beta2_decay <= 0"),
        (lambda: bp.Adafactor(d=0.5), "d >= 1"),
        (lambda: bp.Adafactor(eps=(-1.0, 0.0)), r"eps\[0\] >= 0 or None"),
        (lambda: bp.Muon(ns_steps=0), "ns_steps of at least 1"),
        (lambda: bp.Muon(adjust_lr="none"), "adjust_lr in .*got 'none'"),
        (lambda: bp.Muon(lr=0.0, adamw_lr=0.1), "lr > 0 with it"),
        (lambda: bp.Group("*", lr_factor=-1), r"Group '\*' expected a finite lr_factor >= 0, got -1"),
        (lambda: bp.Group("*", weight_decay=math.nan), "weight_decay >= 0, got nan"),
        (lambda: bp.SGD().setup(network()).clip_by_value(0.0), "limit > 0, got 0.0"),
        (lambda: bp.SGD().setup(network()).clip_by_global_norm(math.nan), "max_norm > 0, got nan"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        make()


def test_a_step_before_setup_is_an_error():
    with pytest.raises(bp.errors.BuildError, match="AdamW: call optimizer"):
        bp.AdamW().step()
    with pytest.raises(bp.errors.BuildError, match="not built yet"):
        bp.AdamW().setup(bp.Sequential(bp.Linear(5, 3)))


def test_is_setup_for():
    model, optimizer = network(), bp.SGD()
    assert not optimizer.is_setup_for(model)
    optimizer.setup(model)
    assert optimizer.is_setup_for(model) and not optimizer.is_setup_for(network())


# State ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_state_round_trip_is_bitwise(rule, dtype):
    model, other = network(dtype), network(dtype)
    optimizer, peer = rule().setup(model), rule().setup(other)
    for number in range(3):
        step(model, optimizer, number)
    for (_, parameter), (_, copy) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        copy.value = parameter.value
    state = optimizer.state_dict()
    assert all(type(array) is np.ndarray and array.ndim > 0 for array in state.values())
    peer.load_state_dict(state)
    assert {k: v.tobytes() for k, v in peer.state_dict().items()} == {k: v.tobytes() for k, v in state.items()}
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, peer, number)
    np.testing.assert_array_equal(model.arena.values, other.arena.values)


class Pair(bp.Layer):
    """Two layers whose parameters are laid out in the order of definition."""

    def __init__(self, swapped):
        for name in ("second", "first") if swapped else ("first", "second"):
            setattr(self, name, bp.Linear(5, 30 if name == "first" else 7))

    def declare(self, input_shape):
        return self.first.declare(input_shape) and self.second.declare(input_shape)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_state_goes_by_name_into_a_reordered_model(rule):
    models = [Pair(swapped) for swapped in (False, True)]
    optimizers = []
    for model in models:
        model.build((5,), dtype="float64")
        optimizers.append(rule().setup(model))
    assert models[0].arena.offsets != models[1].arena.offsets
    for number in range(2):
        step(models[0], optimizers[0], number)
    values = {name: p.value for name, p in models[0].named_parameters()}
    for name, parameter in models[1].named_parameters():
        parameter.value = values[name]
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, 2)
    for name, parameter in models[1].named_parameters():
        np.testing.assert_array_equal(parameter.value, values[name], err_msg=name)


def test_state_that_does_not_fit_changes_nothing():
    model = network()
    optimizer = bp.AdamW().setup(model)
    step(model, optimizer, 0)
    state = optimizer.state_dict()
    before = {name: array.copy() for name, array in state.items()}
    broken = {name: array + 1 for name, array in state.items() if name != "second_moment/1.bias"}
    broken["first_moment/9.weight"] = np.zeros(3)
    broken["first_moment/0.weight"] = np.zeros((5, 30))
    broken["first_moment/0.bias"] = np.zeros(30, np.int64)
    with pytest.raises(bp.errors.CheckpointError) as error:
        optimizer.load_state_dict(broken)
    message = str(error.value)
    assert "1 missing (second_moment/1.bias)" in message
    assert "1 not of this model (first_moment/9.weight)" in message
    assert "first_moment/0.weight: expected floating numbers of shape (30, 5), got float64 (5, 30)" in message
    assert "first_moment/0.bias: expected floating numbers of shape (30,), got int64 (30,)" in message
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_state_of_another_rule_is_an_error():
    model = network()
    state = bp.SGD(0.1, 0.9).setup(model).state_dict()
    with pytest.raises(bp.errors.CheckpointError, match=r"does not fit Lion: 4 missing.*4 not of this model"):
        bp.Lion().setup(model).load_state_dict(state)
