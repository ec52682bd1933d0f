"""The training loop: what it computes, what it reports, and that a run which stops goes on bit for bit."""

import signal
import threading

import numpy as np
import pytest

import bp
from bp.callbacks import Callback
from bp.checking import tolerance
from bp.checkpoint import find_checkpoint, step_folders
from bp.trainer import DivergedError


def problem(samples=70, features=6, classes=3):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((samples, features))
    y = (x @ generator.standard_normal((features, classes))).argmax(axis=1)
    return x, y


def classifier(dropout=0.0):
    layers = [bp.Linear(None, 16), bp.Tanh(), bp.Dropout(dropout), bp.Linear(None, 3)]
    return bp.Sequential(*layers)


def trainer(model=None, **settings):
    settings = {"precision": "fp64", "log_every_n_steps": 5, "progress": False} | settings
    optimizer = settings.pop("optimizer", None) or bp.AdamW(lr=1e-2)
    loss = settings.pop("loss", None) or bp.CrossEntropyLoss()
    return bp.Trainer(model or classifier(), loss, optimizer, **settings)


def loader(batch_size=10, shuffle=True, **settings):
    return bp.Loader(bp.ArrayDataset(*problem()), batch_size, shuffle=shuffle, **settings)


def weights(run):
    return np.array(run.model.arena.values)


def figures(history):
    """The records without the times, which differ from run to run."""
    return [{k: v for k, v in r.items() if k not in ("ms_per_step", "samples_per_second", "time")} for r in history]


def test_training_lowers_the_loss_and_reports_it():
    run = trainer(metrics=[bp.Accuracy()])
    history = run.fit(loader(), problem(), max_epochs=30)
    assert run.state.step == 7 * 30 and run.state.epoch == 30
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["valid_accuracy"][-1] > 0.9
    assert len(history["valid_loss"]) == 30
    assert history.steps("loss")[:3] == [5, 10, 15]
    assert len(history["time"]) == len(history) and history["time"] == sorted(history["time"])


def test_running_loss_is_sample_weighted_and_agrees_with_evaluate():
    run = trainer(optimizer=bp.SGD(lr=0.0), log_every_n_steps=9)
    # 70 samples in batches of 8: the last batch has 6, so a mean of batch means would differ.
    history = run.fit(loader(batch_size=8), max_epochs=1)
    evaluated = run.evaluate(problem())["loss"]
    assert history["loss"][0] == pytest.approx(evaluated, rel=tolerance("float64", 70))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulated_gradient_equals_that_of_the_large_batch(reduction):
    # Unequal micro-batches and ignored labels: counts differ, so means of means would differ; dropout masks must agree.
    x, y = problem()
    y[5:12] = -100

    def after_one_step(batch_size, accumulate):
        run = trainer(
            classifier(dropout=0.3),
            optimizer=bp.SGD(lr=0.1),
            loss=bp.CrossEntropyLoss(reduction=reduction),
            accumulate_grad_batches=accumulate,
        )
        run.fit(bp.Loader(bp.ArrayDataset(x, y), batch_size), max_steps=1)
        return weights(run)

    whole, parts = after_one_step(70, 1), after_one_step(16, 5)
    assert np.linalg.norm(whole - parts) <= tolerance("float64", 70) * np.linalg.norm(whole)


class StopAt(Callback):
    """Ends a run from inside, as a full disk or a user would."""

    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_step_end(self, trainer, *, epoch_ended):
        if trainer.state.step == self.step:
            self.how(trainer)


def stop(trainer):
    trainer.should_stop = True


def interrupt(trainer):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stopped_at", [3, 7, 12])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"ema_decay": 0.9, "max_grad_norm": 0.1}])
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(tmp_path, stopped_at, settings):
    def make(folder, **more):
        return trainer(
            classifier(dropout=0.2),
            schedule=bp.WarmupCosine(warmup_steps=4),
            output_dir=folder,
            save_every_n_steps=100,
            **settings,
            **more,
        )

    straight = make(tmp_path / "straight")
    straight.fit(loader(), problem(), max_steps=16)
    first = make(tmp_path / "resumed", callbacks=[StopAt(stopped_at, stop)])
    first.fit(loader(), problem(), max_steps=16)
    assert first.state.step == stopped_at
    second = make(tmp_path / "resumed")
    second.fit(loader(), problem(), max_steps=16, resume="auto")

    np.testing.assert_array_equal(weights(second), weights(straight))
    for slot, moment in straight.optimizer.moments.items():
        np.testing.assert_array_equal(second.optimizer.moments[slot], moment)
    assert figures(second.history) == figures(straight.history)


def test_an_interrupt_ends_the_step_saves_and_can_be_resumed(tmp_path):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only, and this runner uses another")
    first = trainer(output_dir=tmp_path, callbacks=[StopAt(4, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        first.fit(loader(), max_steps=10)
    second = trainer(output_dir=tmp_path)
    second.fit(loader(), max_steps=10, resume="auto")
    straight = trainer()
    straight.fit(loader(), max_steps=10)
    np.testing.assert_array_equal(weights(second), weights(straight))


def test_a_second_interrupt_within_a_step_saves_nothing(tmp_path):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals reach the main thread only, and this runner uses another")

    class Impatient(bp.SGD):
        def update(self, values, gradients):
            super().update(values, gradients)
            if self.control[bp.ops.control.APPLIED_STEP] == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    # A process that was started in the background may ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(optimizer=Impatient(lr=0.1), output_dir=tmp_path, save_every_n_steps=1).fit(loader(), max_steps=10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [p.name for p in step_folders(tmp_path / "checkpoints")] == ["step-00000001", "step-00000002"]


def test_resume_into_another_folder_saves_there(tmp_path):
    trainer(output_dir=tmp_path / "a").fit(loader(), problem(), max_steps=7)
    second = trainer(output_dir=tmp_path / "b")
    second.fit(loader(), problem(), max_steps=7, resume=tmp_path / "a")
    assert find_checkpoint(tmp_path / "b").name == "step-00000007"
    third = trainer(output_dir=tmp_path / "b", save_total_limit=1)
    third.fit(loader(), problem(), max_steps=21, resume="auto")
    assert find_checkpoint(tmp_path / "b").name == "step-00000021"
    assert find_checkpoint(tmp_path / "b", "best") is not None
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == len(third.history)


def test_a_folder_that_holds_a_run_takes_no_other(tmp_path):
    trainer(output_dir=tmp_path).fit(loader(), max_steps=3)
    log = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(bp.errors.ConfigurationError, match="holds the checkpoints of another run"):
        trainer(output_dir=tmp_path).fit(loader(), max_steps=3)
    assert (tmp_path / "metrics.jsonl").read_text() == log


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"precision": "fp32"}, r"precision fp64 \(now fp32\)"),
        ({"ema_decay": 0.9}, r"ema_decay None \(now 0.9\)"),
        ({"seed": 3}, r"seed 0 \(now 3\)"),
        ({"optimizer": bp.SGD(lr=0.1, momentum=0.9)}, "SGD"),
    ],
)
def test_resume_with_other_settings_is_refused_and_changes_nothing(tmp_path, settings, named):
    trainer(output_dir=tmp_path).fit(loader(), max_steps=4)
    run = trainer(**settings)
    run.fit(loader(), max_steps=2)
    before, history = weights(run), figures(run.history)
    with pytest.raises(bp.errors.CheckpointError, match=named):
        run.fit(loader(), max_steps=8, resume=tmp_path)
    np.testing.assert_array_equal(weights(run), before)
    assert figures(run.history) == history and run.state.step == 2


def test_the_step_after_a_failed_one_has_a_gradient_of_its_own():
    clean, failed = trainer(accumulate_grad_batches=2), trainer(accumulate_grad_batches=2)

    class Failing(bp.CrossEntropyLoss):
        calls = 0

        def forward(self, predictions, targets, ctx):
            self.calls += 1
            if self.calls == 2:
                raise bp.errors.DataError("planted")
            return super().forward(predictions, targets, ctx)

    failed.loss = Failing()
    with pytest.raises(bp.errors.DataError, match="planted"):
        failed.fit(loader(), max_steps=1)
    failed.fit(loader(), max_steps=1)
    clean.fit(loader(), max_steps=1)
    np.testing.assert_array_equal(weights(failed), weights(clean))


def test_bad_labels_leave_running_statistics_alone():
    x, y = problem()
    y[3] = 7
    run = trainer(bp.Sequential(bp.Linear(None, 4), bp.BatchNorm1d(), bp.Linear(None, 3)))
    run.prepare((6,))
    before = run.model[1].running_mean.value.copy()
    with pytest.raises(bp.errors.DataError, match="got 7 at index"):
        run.fit((x, y), max_steps=3)
    np.testing.assert_array_equal(run.model[1].running_mean.value, before)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Spike(bp.SGD):
        def update(self, values, gradients):
            super().update(values, gradients)
            if self.control[bp.ops.control.APPLIED_STEP] == 3:
                self.arena.parameters[0].value[0, 0] = np.nan

    run = trainer(optimizer=Spike(lr=0.1), output_dir=tmp_path, save_every_n_steps=1, save_total_limit=1)
    with pytest.raises(DivergedError, match=r"'0\.weight' is not finite at step 3"):
        run.fit(loader(), max_steps=9)
    assert [p.name for p in step_folders(tmp_path / "checkpoints")] == ["step-00000002"]


def test_evaluate_takes_every_sample_once():
    run = trainer()
    whole = run.evaluate(problem())
    assert run.evaluate(loader(drop_last=True, batch_size=32)) == pytest.approx(whole)
    assert run.evaluate(loader(weights=np.arange(70.0))) == pytest.approx(whole)


def test_an_average_starts_from_the_weights_that_training_starts_from():
    run = trainer(ema_decay=0.99)
    run.evaluate(problem())
    for parameter in run.model.arena.parameters:
        parameter.value = np.zeros(parameter.shape)
    run.fit(loader(), max_steps=1)
    assert np.abs(run.average.averages).max() <= 0.01 * np.abs(weights(run)).max() + 1e-12


def test_an_extra_evaluation_at_the_end_does_not_change_how_a_longer_run_goes_on(tmp_path):
    def make(folder):
        schedule = bp.ReduceOnPlateau(factor=0.5, patience=0)
        return trainer(schedule=schedule, optimizer=bp.SGD(lr=2.0), output_dir=folder)

    straight = make(tmp_path / "straight")
    straight.fit(loader(), problem(), max_steps=28)
    make(tmp_path / "resumed").fit(loader(), problem(), max_steps=10)
    resumed = make(tmp_path / "resumed")
    resumed.fit(loader(), problem(), max_steps=28, resume="auto")
    np.testing.assert_array_equal(weights(resumed), weights(straight))


def test_resume_with_other_data_is_refused_and_changes_nothing(tmp_path):
    trainer(output_dir=tmp_path).fit(loader(), max_steps=4)
    run = trainer()
    run.prepare((6,))
    before = weights(run)
    with pytest.raises(bp.errors.CheckpointError, match="batch_size"):
        run.fit(loader(batch_size=7), max_steps=8, resume=tmp_path)
    np.testing.assert_array_equal(weights(run), before)


def test_resume_auto_without_a_checkpoint_starts_afresh(tmp_path):
    run = trainer(output_dir=tmp_path)
    run.fit(loader(), max_steps=3, resume="auto")
    assert run.state.step == 3


def test_two_runs_with_one_seed_are_bitwise_equal_and_another_seed_differs():
    def run(seed):
        r = trainer(classifier(dropout=0.5), seed=seed, precision="fp32")
        r.fit(loader(), max_steps=10)
        return weights(r)

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_a_step_in_steady_state_allocates_no_array():
    run = trainer()
    run.fit(loader(), max_steps=8)
    held = run._memory.nbytes
    run.fit(loader(), max_steps=40)
    assert run._memory.nbytes == held


def test_a_diverging_run_says_so(tmp_path):
    x, _ = problem()
    run = trainer(loss=bp.MSELoss(), optimizer=bp.SGD(lr=1e100), output_dir=tmp_path)
    with (
        np.errstate(all="ignore"),
        pytest.raises(DivergedError, match=r"the loss is (inf|nan) at step 3: lower the learning rate"),
    ):
        run.fit((x, x[:, :3] * 1e100), max_steps=20)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_predict_keeps_the_order_and_runs_in_inference_mode():
    run = trainer(classifier(dropout=0.5))
    run.fit(loader(), max_steps=5)
    x, _ = problem()
    np.testing.assert_array_equal(run.predict(x, batch_size=16), run.predict(loader()))
    np.testing.assert_allclose(run.predict(x, batch_size=1), run.model(x), rtol=1e-12)
    assert not np.array_equal(run.predict(x)[0], run.predict(x)[1])


def test_by_hand_equals_the_trainer():
    x, y = problem()
    run = trainer(optimizer=bp.SGD(lr=0.1))
    run.fit(bp.Loader(bp.ArrayDataset(x, y), 70), max_steps=3)

    model, loss, optimizer = classifier(), bp.CrossEntropyLoss(), bp.SGD(lr=0.1)
    model.build((6,), dtype="float64")
    optimizer.setup(model)
    for _ in range(3):
        ctx = bp.Context(training=True)
        logits = model.forward(x, ctx)
        loss.forward(logits, y, ctx)
        model.backward(loss.backward(ctx), ctx)
        optimizer.step()
    np.testing.assert_array_equal(model.arena.values, weights(run))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "bf16"}, "precision 'bf16' is not available on device 'cpu'.*need a GPU"),
        ({"device": "tpu"}, "device 'tpu' is not one that bp has"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches to be an integer of at least 1, got 0"),
        ({"log_every_n_steps": 2.5}, "log_every_n_steps to be an integer of at least 1, got 2.5"),
        ({"max_grad_norm": -1.0}, "max_grad_norm > 0, got -1.0"),
        ({"clip_value": 0.0}, "clip_value > 0, got 0.0"),
        ({"ema_decay": 1.5}, r"ema_decay in \[0, 1\), got 1.5"),
        ({"seed": -1}, "seed in"),
        ({"loss": bp.CrossEntropyLoss(reduction="none")}, "reduction 'mean' or 'sum', got 'none'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        trainer(**settings)


def test_labels_outside_the_classes_are_found_before_anything_changes():
    x, y = problem()
    y[7] = 3
    run = trainer()
    run.prepare((6,))
    before = weights(run)
    with pytest.raises(bp.errors.DataError, match=r"labels in 0\.\.2.*got 3 at index \(7,\)"):
        run.fit(bp.Loader(bp.ArrayDataset(x, y), 10), max_steps=1)
    np.testing.assert_array_equal(weights(run), before)


def test_a_run_that_diverged_goes_on_from_its_last_checkpoint(tmp_path):
    run = trainer(output_dir=tmp_path, save_every_n_steps=3)
    run.fit(loader(), max_steps=3)
    saved = weights(run)
    run.model.layers[0].weight.value = np.full((16, 6), np.nan)
    run.device.fill(run.loss_sum, np.nan)
    with pytest.raises(DivergedError):
        run.snapshot()
    run.restore(bp.checkpoint.read_snapshot(find_checkpoint(tmp_path)))
    np.testing.assert_array_equal(weights(run), saved)
    run.model.layers[0].weight.value = np.full((16, 6), np.nan)
    run.fit(loader(), max_steps=6, resume="auto")
    assert run.state.step == 6 and np.isfinite(weights(run)).all()


def test_gradients_that_somebody_wrote_between_steps_belong_to_none():
    class Writes(Callback):
        def on_step_end(self, trainer, *, epoch_ended):
            for _, parameter in trainer.model.named_parameters():
                parameter.grad = np.ones(parameter.shape)

    runs = [trainer(), trainer(callbacks=[Writes()])]
    for run in runs:
        run.fit(loader(), max_steps=5)
    np.testing.assert_array_equal(*map(weights, runs))
