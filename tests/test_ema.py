"""The exponential moving average of the weights: its formula, swapping in and out, state by name."""

import math

import numpy as np
import pytest

import bp
from bp.checking import tolerance
from bp.cpu import native


def network(dtype="float64"):
    model = bp.Sequential(bp.Linear(5, 30), bp.Linear(30, 7))
    model.build((5,), dtype=dtype)
    return model


def move(model, number):
    for name, parameter in model.named_parameters():
        generator = np.random.default_rng([number, *name.encode()])
        parameter.value = generator.standard_normal(parameter.shape)


@pytest.mark.parametrize("with_native", [False, True], ids=["numpy", "native"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("warmup", [False, True])
def test_average_matches_its_formula(warmup, dtype, with_native, monkeypatch):
    if not with_native:
        monkeypatch.setattr(native, "kernels", None)
    model = network(dtype)
    average = bp.ExponentialMovingAverage(model, 0.6, warmup)
    expected = np.array(model.arena.values, np.float64)
    for t in range(20):
        move(model, t)
        average.update()
        decay = min(0.6, (1 + t) / (10 + t)) if warmup else 0.6
        expected = decay * expected + (1 - decay) * model.arena.values
    assert average.updates == 20
    error = np.linalg.norm(average.averages - expected) / np.linalg.norm(expected)
    assert error <= tolerance(dtype, 20)


def test_average_matches_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = network()
    average = bp.ExponentialMovingAverage(model, 0.9)
    theirs = torch.nn.Linear(5, 30).double()
    theirs.weight.data = torch.tensor(np.array(model[0].weight.value))
    averaged = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(theirs)  # PyTorch's first update copies
    for t in range(20):
        move(model, t)
        average.update()
        theirs.weight.data = torch.tensor(np.array(model[0].weight.value))
        averaged.update_parameters(theirs)
    expected = averaged.module.weight.detach().numpy()
    with average.applied():
        np.testing.assert_allclose(model[0].weight.value, expected, atol=tolerance("float64", 20))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_are_swapped_in_and_out_exactly(dtype):
    model = network(dtype)
    average = bp.ExponentialMovingAverage(model, 0.5)
    move(model, 0)
    average.update()
    weights, averages = model.arena.values.tobytes(), average.averages.tobytes()
    with average.applied():
        assert model.arena.values.tobytes() == averages != weights
        assert np.shares_memory(model[0].weight.value, model.arena.values)
    assert model.arena.values.tobytes() == weights and average.averages.tobytes() == averages
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert model.arena.values.tobytes() == weights


def test_average_of_equal_weights_is_those_weights_bit_for_bit():
    model = network("float32")
    average = bp.ExponentialMovingAverage(model, 0.999)
    for _ in range(5):
        average.update()
    assert average.averages.tobytes() == model.arena.values.tobytes()


def test_using_it_while_applied_is_an_error():
    average = bp.ExponentialMovingAverage(network())
    with average.applied():
        for use in (average.update, lambda: average.applied().__enter__(), lambda: average.load_state_dict({})):
            with pytest.raises(bp.errors.BuildError, match=r"inside applied\(\)"):
                use()


def test_state_goes_by_name_and_is_checked_before_anything_changes():
    model, other = network(), network()
    average, peer = bp.ExponentialMovingAverage(model, 0.9, True), bp.ExponentialMovingAverage(other, 0.9, True)
    for t in range(3):
        move(model, t)
        average.update()
    state = average.state_dict()
    before = peer.averages.copy()
    with pytest.raises(bp.errors.CheckpointError, match=r"1 missing \(average/1.bias\)"):
        peer.load_state_dict({name: array for name, array in state.items() if name != "average/1.bias"})
    with pytest.raises(bp.errors.CheckpointError, match=r"average/1.bias: expected .*\(7,\), got float64 \(6,\)"):
        peer.load_state_dict({**state, "average/1.bias": np.zeros(6)})
    np.testing.assert_array_equal(peer.averages, before)
    peer.load_state_dict(state)
    for m, a in ((model, average), (other, peer)):
        move(m, 3)
        a.update()
    np.testing.assert_array_equal(peer.averages, average.averages)
    assert peer.updates == 4


def test_nan_and_overflow_are_shown_without_a_warning():
    model = network("float32")
    average = bp.ExponentialMovingAverage(model, 0.5)
    model[0].weight.value = np.full((30, 5), math.nan)
    model[1].weight.value = np.full((7, 30), 3e38)
    average.update()
    model[1].weight.value = np.full((7, 30), -3e38)
    average.update()
    with average.applied():
        assert np.isnan(model[0].weight.value).all() and not np.isnan(model[0].bias.value).any()


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_bad_decay(decay):
    with pytest.raises(bp.errors.ConfigurationError, match=r"decay in \[0, 1\)"):
        bp.ExponentialMovingAverage(network(), decay)
