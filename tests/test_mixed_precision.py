"""16-bit precision through a whole run: masters and copies, loss scaling, averages, checkpoints, what users get."""

import numpy as np
import pytest
from table import KERNEL_DEVICE

import bp
from bp.callbacks import Callback
from bp.checking import tolerance
from bp.planning import plan_step

X = np.random.default_rng(0).standard_normal((72, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)
NARROW = {"bf16": "bfloat16", "fp16": "float16"}

pytestmark = pytest.mark.parametrize("precision", list(NARROW))


def network():
    return bp.Sequential(bp.Linear(6, 16), bp.BatchNorm1d(), bp.Dropout(0.2), bp.ReLU(), bp.Linear(None, 2))


def trainer(precision, model=None, optimizer=None, **settings):
    return bp.Trainer(
        model or network(),
        bp.CrossEntropyLoss(),
        optimizer or bp.AdamW(lr=0.05),
        device=KERNEL_DEVICE,
        precision=precision,
        progress=False,
        **settings,
    )


def loader(batch_size=32):
    return bp.Loader(bp.ArrayDataset(X, Y), batch_size, shuffle=True)


def state_of(run):
    """Everything that has to be equal, bit for bit, where two runs are."""
    arena = run.model.arena
    low = {"low precision": arena.low_precision.get().view(np.uint16)}
    average = {} if run.average is None else run.average.state_dict()
    return bp.checkpoint.model_arrays(run.model) | run.optimizer.state_dict() | average | low


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def stochastic():
    optimizer = bp.AdamW(lr=0.05)
    optimizer.stochastic_rounding = True
    return optimizer


SETTINGS = [{}, {"ema_decay": 0.9, "max_grad_norm": 0.1}, {"accumulate_grad_batches": 2}, {"optimizer": stochastic}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "average-and-clip", "accumulate", "stochastic"])
def test_going_on_from_a_checkpoint_gives_the_bits_of_a_run_that_never_stopped(precision, settings, tmp_path):
    def run(folder, max_steps, resume=None):
        chosen = dict(settings)
        optimizer = chosen.pop("optimizer", lambda: None)()
        made = trainer(
            precision, optimizer=optimizer, output_dir=folder, save_every_n_steps=6, eval_every_n_steps=4, **chosen
        )
        made.fit(loader(), (X, Y), max_steps=max_steps, resume=resume)
        return made

    whole = run(tmp_path / "whole", 14)
    run(tmp_path / "parts", 6)
    resumed = run(tmp_path / "parts", 14, resume="auto")
    assert whole._graph.replaying and resumed._graph.replaying
    assert_equal(state_of(whole), state_of(resumed))


def test_a_snapshot_taken_up_by_a_trainer_that_replays_already(precision):
    run = trainer(precision)
    run.fit(loader(), max_steps=8)
    snapshot = run.snapshot()
    before = state_of(run)
    run.fit(loader(), max_steps=8)
    after = state_of(run)
    run.restore(snapshot)
    assert_equal(state_of(run), before)
    run.fit(loader(), max_steps=8)
    assert_equal(state_of(run), after)


@pytest.mark.parametrize("optimizer", [bp.AdamW, stochastic], ids=["nearest", "stochastic"])
def test_an_evaluation_with_averaged_weights_changes_nothing(precision, optimizer):
    runs = []
    for valid in (None, (X, Y)):
        run = trainer(precision, optimizer=optimizer(), ema_decay=0.9, eval_every_n_steps=1)
        run.fit(loader(), valid, max_steps=6)
        runs.append(state_of(run))
    assert_equal(*runs)


def test_predictions_and_metrics_are_in_float32(precision):
    seen = []

    class Seen(bp.Metric):
        name = "seen"

        def reset(self):
            """Nothing to forget."""

        def update(self, predictions, targets):
            seen.append(predictions.dtype)

        def compute(self):
            return 0.0

    run = trainer(precision, metrics=[Seen()])
    run.fit(loader(), max_steps=2)
    predictions = run.predict(X)
    assert predictions.dtype == np.float32 and predictions.shape == (72, 2)
    run.evaluate((X, Y))
    assert set(seen) == {np.dtype(np.float32)}
    reference = trainer("fp32", run.model.copy(dtype="float32")).predict(X)
    allowed = tolerance(NARROW[precision], 4) * np.abs(reference).max()  # each of four layers rounds its output
    assert np.abs(predictions - reference).max() < allowed


def test_the_loss_is_scaled_in_fp16_also_where_the_optimizer_was_set_up_before(precision):
    model = network()
    model.build((6,), device=KERNEL_DEVICE, dtype=NARROW[precision])
    run = trainer(precision, model, bp.SGD(lr=0.1).setup(model))
    run.fit(loader(), max_steps=2)
    assert run.optimizer.scales_loss == (precision == "fp16")
    assert (run.optimizer.loss_scale > 1) == (precision == "fp16")


def test_a_frozen_layer_and_a_tied_weight(precision):
    model = bp.Sequential(bp.Linear(6, 6), bp.Tanh(), bp.Linear(6, 6), bp.Linear(6, 2))
    model.layers[2].weight = model.layers[0].weight
    for parameter in (model.layers[3].weight, model.layers[3].bias):
        parameter.trainable = False
    run = trainer(precision, model)
    run.prepare((6,))
    frozen, tied = model.layers[3].weight, model.layers[0].weight
    assert frozen.value.dtype.name == NARROW[precision] and frozen.master.dtype == np.float32
    before = frozen.master.get(), frozen.value.get(), tied.master.get()
    run.fit(loader(), max_steps=6)
    np.testing.assert_array_equal(frozen.master.get(), before[0])
    np.testing.assert_array_equal(frozen.value.get(), before[1])
    assert model.layers[2].weight is tied and (tied.master.get() != before[2]).any()
    np.testing.assert_array_equal(tied.value.get(), tied.master.get().astype(tied.value.dtype))
    twin = model.copy()
    assert twin.layers[2].weight is twin.layers[0].weight
    np.testing.assert_array_equal(twin.layers[0].weight.master.get(), tied.master.get())


def test_weights_go_from_one_precision_to_another_by_file(precision, tmp_path):
    run = trainer(precision)
    run.fit(loader(), max_steps=4)
    bp.save_weights(tmp_path / "weights.safetensors", run.model)
    kept = bp.checkpoint.model_arrays(run.model)
    assert {array.dtype for array in kept.values()} == {np.dtype(np.float32)}
    for device, dtype in (
        ("cpu", "float32"),
        ("cpu", "float64"),
        (KERNEL_DEVICE, "float16"),
        (KERNEL_DEVICE, "bfloat16"),
    ):
        other = network()
        other.build((6,), device=device, dtype=dtype, seed=9)
        bp.load_weights(tmp_path / "weights.safetensors", other)
        for name, array in bp.checkpoint.model_arrays(other).items():
            np.testing.assert_array_equal(array, kept[name], err_msg=f"{name} in {dtype}")
        if other.arena.low_precision is not None:
            rounded = other.arena.values.get().astype(other.arena.dtype)
            np.testing.assert_array_equal(other.arena.low_precision.get(), rounded)


def test_a_run_in_another_precision_cannot_go_on(precision):
    run = trainer(precision)
    run.fit(loader(), max_steps=2)
    other = trainer("fp32")
    other.fit(loader(), max_steps=1)
    before = bp.checkpoint.model_arrays(other.model)
    with pytest.raises(bp.errors.CheckpointError, match=f"precision {precision} \\(now fp32\\)"):
        other.restore(run.snapshot())
    assert_equal(bp.checkpoint.model_arrays(other.model), before)


def test_check_and_summary_of_a_16_bit_model(precision):
    model = network()
    model.build((6,), device=KERNEL_DEVICE, dtype=NARROW[precision])
    assert bp.check(model, X[:4])
    assert "Linear" in str(bp.summary(model, (6,)))


def test_the_plan_has_the_launches_of_the_step(precision):
    class Launches(Callback):
        """Keeps the launches of the first steps."""

        def __init__(self):
            self.names = []

        def on_step_end(self, trainer, *, epoch_ended):
            ledger = next(iter(trainer._graph._by_shape.values()))._last
            self.names = [str(launch.variant) for launch in ledger.launches]

    launches = Launches()
    run = trainer(precision, callbacks=[launches])
    run.fit(loader(36), max_steps=2)
    planned = plan_step(network(), (36, 6), precision=precision, optimizer=bp.AdamW(lr=0.05)).launches
    assert [str(launch.variant) for launch in planned] == launches.names


def test_a_model_of_another_precision_or_device_is_refused(precision):
    model = network()
    model.build((6,), device=KERNEL_DEVICE, dtype=NARROW[precision])
    with pytest.raises(
        bp.errors.ConfigurationError, match=f"built in {NARROW[precision]} on {KERNEL_DEVICE}, the Trai"
    ):
        trainer("fp32", model).predict(X)
