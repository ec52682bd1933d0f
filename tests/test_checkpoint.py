"""Checkpoints: what is written comes back bit for bit, by name, or an error says why not and nothing changes."""

import json

import numpy as np
import pytest

import bp
from bp.checkpoint import (
    STATE_KEYS,
    Snapshot,
    find_checkpoint,
    load_model_arrays,
    load_weights,
    model_arrays,
    point_to,
    read_snapshot,
    save_weights,
    write_snapshot,
)
from bp.errors import CheckpointError


class Named(bp.Layer):
    """Two branches whose layers are defined in a chosen order, which decides where they lie in the arena."""

    def __init__(self, order):
        for name in order:
            setattr(self, name, bp.Linear(4, 3 if name == "left" else 5))

    def declare(self, input_shape):
        self.right.declare(input_shape)
        return self.left.declare(input_shape)


def built(order=("left", "right"), seed=0):
    model = Named(order)
    model.build((4,), seed=seed)
    return model


def test_weights_go_by_name_into_a_reordered_model(tmp_path):
    saved, other = built(), built(("right", "left"), seed=1)
    assert saved.arena.offsets != other.arena.offsets
    save_weights(tmp_path / "w.safetensors", saved)
    load_weights(tmp_path / "w.safetensors", other)
    for name, array in model_arrays(saved).items():
        np.testing.assert_array_equal(model_arrays(other)[name], array)


def test_a_tied_parameter_is_saved_once_and_found_under_either_name():
    def tied(first):
        model = bp.Sequential(bp.Linear(4, 4, bias=False), bp.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        model.build((4,), seed=first)
        return model

    model, other = tied(0), tied(1)
    arrays = model_arrays(model)
    assert list(arrays) == ["0.weight"]
    load_model_arrays(other, {"1.weight": arrays["0.weight"]})
    np.testing.assert_array_equal(other[0].weight.value, model[0].weight.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("left.bias"), r"1 missing \(left.bias\)"),
        (lambda a: a.update(extra=np.zeros(2)), r"1 not of this model \(extra\)"),
        (lambda a: a.update({"left.bias": np.zeros(7)}), r"left.bias: expected shape \(3,\), got \(7,\)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message):
    model = built()
    before = model_arrays(model)
    arrays = model_arrays(built(seed=1))
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        load_model_arrays(model, arrays)
    for name, array in before.items():
        np.testing.assert_array_equal(model_arrays(model)[name], array)


def snapshot():
    generator = np.random.default_rng(0)
    return Snapshot(
        model={"w": generator.standard_normal((3, 4)).astype(np.float32), "empty": np.zeros((0, 2))},
        optimizer={"m/w": generator.standard_normal(12)},
        state={**dict.fromkeys(STATE_KEYS), "position": {"step": 3, "loss_sum": 0.1 + 0.2}},
    )


def test_snapshot_round_trip_is_bitwise(tmp_path):
    write_snapshot(tmp_path / "step-1", snapshot())
    back = read_snapshot(tmp_path / "step-1")
    for part in ("model", "optimizer", "average"):
        mine, theirs = getattr(snapshot(), part), getattr(back, part)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(mine[name], theirs[name])
    assert back.state["position"] == snapshot().state["position"]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    write_snapshot(tmp_path / "step-1", snapshot())
    broken = snapshot()
    broken.state["position"] = {"step": object()}  # not JSON: fails after the arrays are written
    with pytest.raises(TypeError):
        write_snapshot(tmp_path / "step-1", broken)
    assert read_snapshot(tmp_path / "step-1").state["position"]["step"] == 3
    write_snapshot(tmp_path / "step-1", snapshot())  # and what it left behind is no obstacle
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def truncate(path, size=20):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: truncate(f / "model.safetensors"), r"model\.safetensors: expected a safetensors file"),
        (lambda f: truncate(f / "model.safetensors", 0), r"model\.safetensors: expected a safetensors file"),
        (lambda f: (f / "optimizer.safetensors").unlink(), r"optimizer\.safetensors: no such file"),
        (lambda f: truncate(f / "state.json"), r"state\.json: expected JSON, got a damaged file"),
        (lambda f: (f / "state.json").unlink(), "step-1: not a checkpoint"),
        (lambda f: (f / "state.json").write_text(json.dumps({"format": 99})), "expected checkpoint format 1, got 99"),
        (lambda f: (f / "state.json").write_text('{"format": 1}'), "expected the keys position, .*schedule.* missing"),
        (lambda f: (f / "state.json").write_text("[]"), "expected checkpoint format 1, got list"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage, message):
    write_snapshot(tmp_path / "step-1", snapshot())
    damage(tmp_path / "step-1")
    with pytest.raises(CheckpointError, match=message):
        read_snapshot(tmp_path / "step-1")


def test_a_broken_pointer_to_the_last_step_falls_back_to_the_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        write_snapshot(folder / f"step-{step:08d}", snapshot())
    point_to(folder / "last", "step-00000009")
    point_to(folder / "best", "step-00000009")
    assert find_checkpoint(tmp_path).name == "step-00000002"
    assert find_checkpoint(tmp_path, "best") is None


def test_a_run_copied_with_its_links_followed_can_go_on(tmp_path):
    folder = tmp_path / "checkpoints"
    write_snapshot(folder / "step-00000001", snapshot())
    write_snapshot(folder / "last", snapshot())  # a folder where a link was
    write_snapshot(folder / "step-00000002", snapshot())
    point_to(folder / "last", "step-00000002")
    assert find_checkpoint(tmp_path).name == "step-00000002"


def test_weights_of_a_run_with_an_average_are_the_averages(tmp_path):
    model, other = built(), built(seed=1)
    averages = {f"average/{name}": array + 1 for name, array in model_arrays(model).items()}
    state = dict.fromkeys(STATE_KEYS)
    write_snapshot(
        tmp_path / "s", Snapshot(model_arrays(model), {"m": np.zeros(1)}, averages | {"updates": np.ones(1)}, state)
    )
    load_weights(tmp_path / "s", other)
    np.testing.assert_array_equal(other.left.weight.value, model.left.weight.value + 1)
