"""Schedules: against PyTorch's for 200 steps, their edges, and the one that has state."""

import json
import math

import pytest

import bp
from bp import schedules
from bp.checking import tolerance

STEPS = 200
BASE = 0.3


def rates(schedule, total_steps=STEPS, steps=STEPS):
    schedule.setup(total_steps, BASE)
    return [BASE * schedule.factor(step) for step in range(steps)]


def one_cycle(lr, optimizer):
    return lr.OneCycleLR(optimizer, BASE, STEPS, 0.3, div_factor=10, final_div_factor=100, cycle_momentum=False)


def warmup_cosine(lr, optimizer):
    warm = lr.LinearLR(optimizer, 1 / 21, 1.0, 20)
    return lr.SequentialLR(optimizer, [warm, lr.CosineAnnealingLR(optimizer, STEPS - 20, 0.01)], [20])


PEERS = [
    (bp.Constant(), lambda lr, o: lr.ConstantLR(o, 1.0)),
    (bp.Step(30, 0.5), lambda lr, o: lr.StepLR(o, 30, 0.5)),
    (bp.MultiStep([1, 50, 120]), lambda lr, o: lr.MultiStepLR(o, [1, 50, 120])),
    (bp.Exponential(0.98), lambda lr, o: lr.ExponentialLR(o, 0.98)),
    (bp.Polynomial(2.0, total_steps=150), lambda lr, o: lr.PolynomialLR(o, 150, 2.0)),
    (schedules.Linear(0.2, 0.9, total_steps=70), lambda lr, o: lr.LinearLR(o, 0.2, 0.9, 70)),
    (bp.Cosine(min_lr=0.02), lambda lr, o: lr.CosineAnnealingLR(o, STEPS, 0.02)),
    (bp.CosineWithRestarts(17, min_lr=0.02), lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 17, 1, 0.02)),
    (bp.CosineWithRestarts(10, 3, 0.02), lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 10, 3, 0.02)),
    (bp.OneCycle(0.3, 10, 100), one_cycle),
    (bp.WarmupCosine(20, 0.01), warmup_cosine),
]


@pytest.mark.parametrize(("schedule", "peer"), PEERS, ids=[type(schedule).__name__ for schedule, _ in PEERS])
def test_schedule_matches_torch(schedule, peer):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    theirs = peer(torch.optim.lr_scheduler, optimizer)
    # PyTorch multiplies the rate of the step before, which rounds once a step and divides by small numbers at the end.
    relative = tolerance("float64", STEPS**2)
    for step, rate in enumerate(rates(schedule)):
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=relative, abs=1e-15), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_reduce_on_plateau_matches_torch(mode, threshold_mode):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    settings = {"factor": 0.5, "patience": 2, "mode": mode, "threshold": 0.05, "threshold_mode": threshold_mode}
    settings |= {"cooldown": 3, "min_lr": 0.01}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **settings)
    ours = bp.ReduceOnPlateau(**settings).setup(None, BASE)
    for step in range(STEPS):
        value = 1.0 + math.cos(step) / (1 + step) + (0.001 * step if mode == "min" else -0.001 * step)
        value = math.nan if step == 40 else value
        ours.observe(value)
        theirs.step(value)
        assert BASE * ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
    assert ours.factor(STEPS) == pytest.approx(0.01 / BASE)


def test_an_improvement_of_a_negative_metric_is_one():
    schedule = bp.ReduceOnPlateau(0.5, patience=0, threshold=0.1).setup(None, 1.0)
    for value in (-1.0, -1.2, -1.4):
        schedule.observe(value)
    assert schedule.factor(3) == 1.0
    schedule.observe(-1.45)  # less than 10% better
    assert schedule.factor(4) == 0.5


def test_reduce_on_plateau_state_is_json_and_goes_on():
    values = [1.0, 0.9, 0.95, 0.96, 0.97, 0.5, 0.6, 0.6, 0.6]
    whole, first = (bp.Warmup(bp.ReduceOnPlateau(patience=1, cooldown=1), 3).setup(100, BASE) for _ in range(2))
    for value in values[:4]:
        whole.observe(value)
        first.observe(value)
    second = bp.Warmup(bp.ReduceOnPlateau(patience=1, cooldown=1), 3).setup(100, BASE)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for value in values[4:]:
        whole.observe(value)
        second.observe(value)
        assert second.factor(10) == whole.factor(10)
    assert second.factor(10) < 1.0
    fresh = bp.ReduceOnPlateau()
    assert json.loads(json.dumps(fresh.state_dict(), allow_nan=False))["best"] is None


def test_a_new_setup_starts_anew():
    schedule = bp.ReduceOnPlateau(patience=0).setup(None, BASE)
    schedule.observe(1.0)
    schedule.observe(2.0)
    assert schedule.factor(0) == 0.1 and schedule.setup(None, BASE).factor(0) == 1.0
    cosine = bp.Cosine().setup(100, BASE)
    assert cosine.setup(50, BASE).factor(50) == 0.0


def test_state_of_another_schedule_is_an_error():
    assert bp.Cosine().state_dict() == {}
    with pytest.raises(bp.errors.CheckpointError, match=r"Cosine expected a state of \[\], got one of \['bad', 'best'"):
        bp.Cosine().load_state_dict(bp.ReduceOnPlateau().state_dict())
    with pytest.raises(bp.errors.CheckpointError, match="ReduceOnPlateau expected a state of"):
        bp.ReduceOnPlateau().load_state_dict({})


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (bp.Polynomial(3.0, 0.03), 0.1),
        (schedules.Linear(1.0, 0.25), 0.25),
        (bp.Cosine(0.03), 0.1),
        (bp.OneCycle(0.25, 10, 10), 0.01),
        (bp.WarmupStableDecay(3, 5, 0.03), 0.1),
        (bp.WarmupCosine(5, 0.03), 0.1),
        (bp.WarmupLinear(5, 0.03), 0.1),
        (bp.Warmup(bp.MultiStep([10]), 5), 0.1),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("total", [1, 2, 40])
def test_beyond_the_end_the_end_value_stays(schedule, end, total):
    schedule.setup(total, BASE)
    assert [schedule.factor(step) for step in (40, 41, 10**9)] == pytest.approx([end] * 3)
    assert all(0 <= schedule.factor(step) <= 1 for step in range(45))


def test_warmup_rises_in_a_straight_line_to_the_schedule():
    factors = [f / BASE for f in rates(bp.Warmup(bp.Constant(), 4), None, 7)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    factors = [f / BASE for f in rates(bp.WarmupLinear(2), 6, 8)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


@pytest.mark.parametrize("inner", [bp.Cosine, schedules.Linear, bp.OneCycle])
def test_warmup_of_no_steps_changes_nothing(inner):
    assert rates(bp.Warmup(inner(), 0), 50, 60) == rates(inner(), 50, 60)


def test_warmup_longer_than_the_run():
    assert rates(bp.WarmupCosine(100), 10, 10) == pytest.approx([BASE * (s + 1) / 101 for s in range(10)])


def test_total_steps_given_is_with_the_warmup_and_goes_before_the_run():
    assert rates(bp.WarmupCosine(5, total_steps=50), 999, 60) == rates(bp.WarmupCosine(5), 50, 60)
    assert rates(bp.Cosine(total_steps=50), 999, 60) == rates(bp.Cosine(), 50, 60)


def test_warmup_stable_decay():
    factors = [f / BASE for f in rates(bp.WarmupStableDecay(3, 4, min_lr=BASE / 2), 10, 11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5])
    # Too short for both: rise and fall meet.
    assert [f / BASE for f in rates(bp.WarmupStableDecay(3, 3), 4, 4)] == pytest.approx([0.25, 0.5, 2 / 3, 1 / 3])
    assert rates(bp.WarmupStableDecay(0, 0), 3, 3) == [BASE] * 3


def test_a_base_learning_rate_of_zero_is_no_division_by_zero():
    for schedule in (bp.Cosine(), bp.ReduceOnPlateau(), bp.CosineWithRestarts(3), bp.WarmupCosine(2)):
        assert math.isfinite(schedule.setup(10, 0.0).factor(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.Step(0), "Step expected step_size of at least 1, got 0"),
        (lambda: bp.Step(1, gamma=-1), "gamma > 0"),
        (lambda: bp.MultiStep([5, 5]), r"MultiStep expected increasing milestones from 1 on, got \[5, 5\]"),
        (lambda: bp.MultiStep([0]), "increasing milestones from 1 on"),
        (lambda: bp.Exponential(0.0), "gamma > 0"),
        (lambda: bp.Polynomial(0.0), "power > 0"),
        (lambda: bp.Polynomial(total_steps=0), "Polynomial expected total_steps of at least 1, got 0"),
        (lambda: schedules.Linear(-1.0), "start_factor >= 0"),
        (lambda: bp.Cosine(min_lr=-1), "min_lr >= 0"),
        (lambda: bp.Cosine(min_lr=math.nan), "min_lr >= 0"),
        (lambda: bp.Cosine(min_lr=0.5).setup(10, 0.1), "min_lr of at most the learning rate 0.1, got 0.5"),
        (lambda: bp.ReduceOnPlateau(min_lr=0.5).setup(10, 0.1), "min_lr of at most the learning rate"),
        (lambda: bp.CosineWithRestarts(5, min_lr=0.5).setup(10, 0.1), "min_lr of at most the learning rate"),
        (lambda: bp.Cosine().setup(None, 0.1), "Cosine expected total_steps: the length of the run is not known"),
        (lambda: bp.WarmupCosine(5).setup(None, 0.1), "Cosine expected total_steps"),
        (lambda: bp.Cosine().setup(0, 0.1), "a run of at least 1 step, got 0"),
        (lambda: bp.Cosine().factor(0), r"Cosine: call schedule.setup\(total_steps, base_lr\) first"),
        (lambda: bp.CosineWithRestarts(0), "T_0 of at least 1"),
        (lambda: bp.CosineWithRestarts(1, 0), "T_mult of at least 1"),
        (lambda: bp.OneCycle(1.5), r"pct_start in \[0, 1\]"),
        (lambda: bp.OneCycle(div_factor=0), "div_factor > 0"),
        (lambda: bp.WarmupStableDecay(-1, 1), "warmup_steps >= 0"),
        (lambda: bp.WarmupStableDecay(1, -1), "decay_steps >= 0"),
        (lambda: bp.Warmup(bp.Constant(), -1), "Warmup expected warmup_steps >= 0, got -1"),
        (lambda: bp.WarmupCosine(10, total_steps=10), "total_steps above the warmup_steps 10, got 10"),
        (lambda: bp.ReduceOnPlateau(1.0), r"factor in \(0, 1\)"),
        (lambda: bp.ReduceOnPlateau(patience=-1), "patience >= 0"),
        (lambda: bp.ReduceOnPlateau(mode="less"), "mode 'min' or 'max', got 'less'"),
        (lambda: bp.ReduceOnPlateau(threshold_mode="x"), "threshold_mode 'rel' or 'abs'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        make()
