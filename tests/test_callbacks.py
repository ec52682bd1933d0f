"""Callbacks: what each writes, shows or stops."""

import io
import json
import re
import sys

import numpy as np
import pytest

import bp
from bp.callbacks import Curves, JSONLLog, LearningRateMonitor, ModelCheckpoint, Progress, Trigger
from bp.checkpoint import find_checkpoint, step_folders
from bp.errors import ConfigurationError


def data():
    x = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


def run(*callbacks, steps=12, valid=True, **settings):
    x, y = data()
    trainer = bp.Trainer(
        bp.Sequential(bp.Linear(None, 2)),
        bp.CrossEntropyLoss(),
        bp.SGD(lr=0.5),
        metrics=[bp.Accuracy()],
        log_every_n_steps=2,
        progress=False,
        callbacks=callbacks,
        **settings,
    )
    trainer.fit(bp.Loader(bp.ArrayDataset(x, y), 10), (x, y) if valid else None, max_steps=steps)
    return trainer


@pytest.mark.parametrize(
    ("text", "fired"),
    [
        ("every 3 steps", [3, 6, 9]),
        ("every 1 epoch", [4, 8]),
        ("every epoch", [4, 8]),
        ("Every 2 epochs", [8]),
        ("every step", list(range(1, 11))),
    ],
)
def test_trigger(text, fired):
    trigger = Trigger.parse(text)
    assert fired == [s for s in range(1, 11) if trigger.fires(s, s // 4, epoch_ended=s % 4 == 0)]
    assert Trigger.parse(str(trigger)) == trigger


@pytest.mark.parametrize("text", ["", "100 steps", "every 0 steps", "every 2 batches", "every -1 steps"])
def test_trigger_refuses(text):
    with pytest.raises(ConfigurationError, match="expected 'every N steps'"):
        Trigger.parse(text)


def test_progress_in_a_pipe_is_one_line_a_record():
    stream = io.StringIO()
    run(Progress(stream))
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"step 2/12 \| loss [\d.]+ \| grad_norm [\d.]+ \| lr 5\.0e-01 \| [\d.]+ ms/step \| [\d.]+[kMG]? samples/s",
        lines[0],
    )
    assert "step 4/12 | valid_loss" in lines[2] and "valid_accuracy" in lines[2]
    assert len(lines) == 6 + 3


def test_progress_on_a_terminal_draws_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    run(Progress(stream))
    assert "12/12" in stream.getvalue()
    assert "valid_accuracy" in stream.getvalue()


def test_jsonl_log_has_every_record(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    log = JSONLLog(path)
    trainer = run(log)
    assert [json.loads(line) for line in path.read_text().splitlines()] == trainer.history.records
    # A run that goes on has the earlier records in its history; what a crash cut short is written again, whole.
    path.write_text(path.read_text() + '{"step": 1')
    log.on_fit_start(trainer)
    trainer.history.append({"step": 13, "loss": float("nan"), "grad_norm": float("inf")})
    log.on_log(trainer, trainer.history.records[-1])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[:-1] == trainer.history.records[:-1]
    assert lines[-1] == {"step": 13, "loss": None, "grad_norm": None}


def test_curves_draws_a_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bp[plot]'")
    run(Curves(tmp_path / "curves.png"))
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_curves_can_be_drawn_while_training(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bp[plot]'")
    seen = []

    class Look(bp.callbacks.Callback):
        def on_step_end(self, trainer, *, epoch_ended):
            seen.append((tmp_path / "curves.png").exists())

    run(Curves(tmp_path / "curves.png", "every 2 epochs"), Look())
    assert seen.index(True) == 7


def test_every_callback_ends_even_where_one_fails(tmp_path):
    class Broken(bp.callbacks.Callback):
        def on_fit_end(self, trainer):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(Broken(), ModelCheckpoint(tmp_path))
    assert [p.name for p in step_folders(tmp_path)][-1] == "step-00000012"


def test_a_monitor_that_is_never_measured_is_an_error():
    with pytest.raises(ConfigurationError, match=r"EarlyStopping expected monitor .*'valid_loss', .*got 'val_loss'"):
        run(bp.EarlyStopping("val_loss"))


def test_curves_says_what_is_missing(tmp_path, monkeypatch, capsys):
    for name in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    run(Curves(tmp_path / "curves.png"))
    assert "pip install 'bp[plot]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_checkpoints_keep_the_best_and_the_last_within_the_limit(tmp_path):
    class Scripted(bp.callbacks.Callback):
        """Makes the second evaluation the best."""

        def on_log(self, trainer, record):
            if "valid_loss" in record:
                record["valid_loss"] = {2: 0.5, 4: 0.1, 6: 0.3, 8: 0.4, 10: 0.6, 12: 0.7}[record["step"]]

    folder = tmp_path / "checkpoints"
    run(Scripted(), ModelCheckpoint(folder, "every 2 steps", save_total_limit=3), eval_every_n_steps=2)
    assert [p.name for p in step_folders(folder)] == ["step-00000004", "step-00000010", "step-00000012"]
    assert find_checkpoint(tmp_path, "best").name == "step-00000004"
    assert find_checkpoint(tmp_path, "last").name == "step-00000012"


def test_early_stopping_waits_its_patience():
    class Worse(bp.callbacks.Callback):
        def on_log(self, trainer, record):
            if "valid_loss" in record:
                record["valid_loss"] = {1: 1.0, 2: 0.5, 3: 0.6, 4: 0.45, 5: 0.7, 6: float("nan")}[record["step"]]

    trainer = run(Worse(), bp.EarlyStopping(patience=2), eval_every_n_steps=1)
    assert trainer.state.step == 6


def test_early_stopping_starts_afresh_with_every_run():
    stopping = bp.EarlyStopping(patience=1, min_delta=10.0)
    trainer = run(stopping, eval_every_n_steps=1)
    assert trainer.state.step == 2
    trainer.fit(bp.Loader(bp.ArrayDataset(*data()), 10), data(), max_steps=5)
    assert trainer.state.step == 2


def test_early_stopping_of_an_accuracy_rises():
    trainer = run(bp.EarlyStopping("valid_accuracy", patience=2), eval_every_n_steps=1, steps=40)
    accuracies = trainer.history["valid_accuracy"]
    assert trainer.state.step < 40 and max(accuracies[:-2]) >= max(accuracies[-2:])


def test_learning_rate_monitor_sees_every_step():
    monitor = LearningRateMonitor()
    run(monitor, schedule=bp.Cosine())
    assert monitor.steps == list(range(1, 13))
    assert monitor.values[0] == 0.5 and monitor.values == sorted(monitor.values, reverse=True)


def test_tensorboard_writes_every_figure(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'bp[tensorboard]'")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    trainer = run(bp.callbacks.TensorBoard(tmp_path))
    (file,) = tmp_path.iterdir()
    events = [e for e in EventFileLoader(str(file)).Load() if e.HasField("summary")]
    assert [e.step for e in events] == [r["step"] for r in trainer.history]


def test_tensorboard_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'bp\[tensorboard\]'"):
        run(bp.callbacks.TensorBoard(tmp_path))
