"""The command line, end to end on digits: what it prints, writes and refuses."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import bp
from bp import recipes
from bp.callbacks import Callback
from bp.cli import main
from bp.cli import train as train_command

SHORT = [
    "--trainer.max_steps",
    "120",
    "--trainer.log_every_n_steps",
    "40",
    "--model.hidden",
    "[16]",
    "--optimizer.lr",
    "1e-2",
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BP_DATA_DIR", raising=False)


def run(capsys, *argv):
    """(exit code, stdout, stderr) of a command line."""
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def files():
    return sorted(str(path) for path in Path().rglob("*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of digits: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    printed, stdout = io.StringIO(), sys.stdout
    sys.stdout = printed
    try:
        assert main(["train", *SHORT, "--output-dir", str(folder)]) == 0
    finally:
        sys.stdout = stdout
    return folder, printed.getvalue()


# Training -------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_decided_and_leaves_its_files(trained):
    folder, printed = trained
    lines = printed.splitlines()
    for pattern in (
        r"recipe +digits$",
        r"device +cpu, \d+ cores, .*",
        r"precision +fp32$",
        r"data +digits: 1,\d+ train, \d+ valid, \d+ test; samples of shape \(64,\), 10 classes$",
        r"model +mlp, 1,210 parameters$",
        r"optimizer +adamw \(lr .*",
        r"training +\d+ batches of 32 an epoch, .* at most 120 steps; seed 0$",
        r"output +.*run$",
        r".*Linear +\(N, 16\) +1,040$",
        r"step 40/120 \| loss \d\.\d+ \| grad_norm .* \| lr .* \| .* ms/step \| .*samples/s$",
        r"step \d+/120 \| valid_loss \d\.\d+ \| valid_accuracy 0\.\d+$",
        r"test_loss \d\.\d{4} \| test_accuracy 0\.\d{4} \| \d+\.\d s \| .*run$",
    ):
        assert any(re.match(pattern, line) for line in lines), f"no line {pattern!r} in:\n{printed}"
    assert [line.split("|")[0] for line in lines if " loss " in line] == [f"step {s}/120 " for s in (40, 80, 120)]
    summary = json.loads((folder / "summary.json").read_text())
    assert {k: summary[k] for k in ("recipe", "device", "precision", "parameters", "steps", "epochs")} == {
        "recipe": "digits",
        "device": "cpu",
        "precision": "fp32",
        "parameters": 1210,
        "steps": 120,
        "epochs": 120 / -(-len(bp.data.load("digits").train) // 32),
    }
    for key in ("seconds", "samples_per_second", "train_loss", "valid_loss", "test_loss", "test_accuracy"):
        assert summary[key] > 0
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [40, 80, 120]
    assert (folder / "checkpoints" / "last" / "model.safetensors").exists()
    assert not list(folder.rglob("*.partial"))


def test_eval_and_training_agree(trained, capsys):
    folder, _ = trained
    summary = json.loads((folder / "summary.json").read_text())
    code, out, _ = run(capsys, "eval", folder)
    assert code == 0
    assert out.startswith(f"test_loss {summary['test_loss']:.4f} | test_accuracy {summary['test_accuracy']:.4f} | ")
    code, out, _ = run(capsys, "eval", folder, "--split", "valid", "--checkpoint", "best")
    assert code == 0 and "valid_accuracy" in out


def test_predict(trained, capsys):
    folder, _ = trained
    x, y = bp.data.load("digits").test.batch(np.arange(50))
    np.save("samples.npy", x)
    code, out, _ = run(capsys, "predict", folder, "--input", "samples.npy", "--output", "p.npy")
    assert code == 0 and out == "p.npy: float32 of shape (50, 10)\n"
    probabilities = np.load("p.npy")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == y).mean() > 0.6
    code, out, _ = run(capsys, "predict", folder, "--input", "samples.npy")
    assert code == 0 and len(out.splitlines()) == 50
    assert out.splitlines()[0] == f"sample 0 | {probabilities[0].argmax()} | {probabilities[0].max():.4f}"


def test_regression_has_a_loss_and_predicts_in_the_unit_of_the_study(capsys):
    code, out, _ = run(capsys, "train", "diabetes", "--trainer.max_epochs", "20")
    assert code == 0 and "test_loss" in out and "test_accuracy" not in out
    summary = json.loads(Path("runs/diabetes/summary.json").read_text())
    assert summary["test_loss"] < 1 and "test_accuracy" not in summary
    np.save("x.npy", bp.data.load("diabetes").test.batch(np.arange(3))[0])
    code, out, _ = run(capsys, "predict", "runs/diabetes", "--input", "x.npy")
    assert code == 0 and all(25 < float(line.split("|")[1]) < 346 for line in out.splitlines())


def test_config_yaml_trains_the_same_again(trained, capsys):
    folder, _ = trained
    code, _, _ = run(capsys, "train", folder / "config.yaml", "--output-dir", "again")
    assert code == 0
    first, again = (json.loads((f / "summary.json").read_text()) for f in (folder, Path("again")))
    timing = ("seconds", "samples_per_second")
    assert {k: v for k, v in first.items() if k not in timing} == {k: v for k, v in again.items() if k not in timing}


def test_print_config_writes_nothing_and_round_trips(capsys):
    code, out, err = run(capsys, "train", "digits", "--optimizer.lr", "1e-3", "--print-config")
    assert (code, err, files()) == (0, "", [])
    plain = yaml.safe_load(out)
    assert plain["optimizer"]["lr"] == 1e-3 and plain["name"] == "digits"
    Path("mine.yaml").write_text(out)
    assert run(capsys, "train", "mine.yaml", "--print-config")[1] == out


# Output directories and resuming --------------------------------------------------------------------------


def test_default_directories_are_numbered_and_the_latest_is_resumed(capsys):
    short = ["--trainer.max_steps", "4", "--model.hidden", "[4]"]
    for folder in ("runs/digits", "runs/digits-2", "runs/digits-3"):
        code, out, _ = run(capsys, "train", *short)
        assert code == 0 and out.rstrip().endswith(folder)
    before = Path("runs/digits/metrics.jsonl").read_bytes()
    code, out, _ = run(capsys, "train", *short, "--trainer.max_steps", "6", "--resume", "auto")
    assert code == 0 and out.rstrip().endswith("runs/digits-3")
    assert json.loads(Path("runs/digits-3/summary.json").read_text())["steps"] == 6
    code, out, _ = run(capsys, "train", *short, "--trainer.max_steps", "7", "--resume", "runs/digits-2")
    assert code == 0 and out.rstrip().endswith("runs/digits-2")
    assert Path("runs/digits/metrics.jsonl").read_bytes() == before
    assert len(list(Path("runs").iterdir())) == 3


def test_a_resumed_run_ends_where_the_whole_one_does(capsys):
    whole = ["--model.hidden", "[8]", "--schedule.name", "constant"]
    assert run(capsys, "train", *whole, "--trainer.max_steps", "50", "--output-dir", "whole")[0] == 0
    assert run(capsys, "train", *whole, "--trainer.max_steps", "20", "--output-dir", "parts")[0] == 0
    # The folder of a run is a recipe too.
    code, _, _ = run(capsys, "train", "parts", "--trainer.max_steps", "50", "--resume", "auto")
    assert code == 0
    one, two = (Path(f, "checkpoints/last/model.safetensors").read_bytes() for f in ("whole", "parts"))
    assert one == two
    # Nothing is left to do: the figures of the run stay.
    before = Path("parts/summary.json").read_bytes()
    code, out, _ = run(capsys, "train", "parts", "--trainer.max_steps", "50", "--resume", "auto")
    assert code == 0 and "nothing was left to do: 50 steps are done" in out
    assert Path("parts/summary.json").read_bytes() == before


class Interrupt(Callback):
    def on_step_end(self, trainer, *, epoch_ended):
        if trainer.state.step == 7:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_saves_and_gives_130(capsys, monkeypatch):
    original = train_command.make_session

    def with_interrupt(config, *, output_dir, callbacks):
        return original(config, output_dir=output_dir, callbacks=[*callbacks, Interrupt()])

    with monkeypatch.context() as patched:
        patched.setattr(train_command, "make_session", with_interrupt)
        code, out, err = run(capsys, "train", *SHORT)
    assert (code, err) == (130, "bp: interrupted\n")
    assert "interrupted after 7 steps; go on with: --resume runs/digits" in out
    assert not Path("runs/digits/summary.json").exists()
    code, out, _ = run(capsys, "train", *SHORT, "--resume", "auto")
    assert code == 0 and json.loads(Path("runs/digits/summary.json").read_text())["steps"] == 120


# What is refused ------------------------------------------------------------------------------------------

BAD = [
    (["trian"], "no command 'trian'; did you mean 'train'?"),
    (["train", "digit"], "no recipe 'digit'; did you mean 'digits'?"),
    (["train", "none.yaml"], "none.yaml: No such file or directory"),
    (["train", "digits", "more"], "nrecognized arguments: more"),
    (["train", "--trainer.max_epochs"], "argument --trainer.max_epochs: expected one argument"),
    (["train", "-x"], "nrecognized arguments: -x"),
    (["train", "--trainer.max_epoch", "3"], "--trainer.max_epoch: unknown key; did you mean 'trainer.max_epochs'?"),
    (
        ["train", "--trainer.max_epochs", "many"],
        "--trainer.max_epochs: Expected",
    ),
    (["train", "--trainer.precision", "fp16"], "precision 'fp16' is not available on device 'cpu'"),
    (["train", "--device", "tpu"], "device 'tpu' is not one that bp has"),
    (["train", "--optimizer.name", "sgd", "--optimizer.betas", "[0.9,0.99]"], "the optimizer 'sgd' takes lr, momentum"),
    (["train", "--optimizer.lr", "-1"], "AdamW expected a finite lr >= 0, got -1.0"),
    (["train", "--optimizer.betas", "[0.9,1.5]"], "AdamW expected betas[1] in [0, 1), got 1.5"),
    (["train", "--model.dropout", "2"], "Dropout expected a rate in [0, 1), got 2.0"),
    (["train", "--model.hidden", "[0]"], "mlp expected hidden of at least 1"),
    (["train", "--model.name", "resnet20"], "resnet expected images, samples of shape (H, W, C)"),
    (["train", "--loss.name", "mse"], "MSELoss expected"),
    (["train", "mnist-mlp", "--data.root", "nowhere"], "data set 'mnist' needs train-images-idx3-ubyte.gz"),
    (["train", "--resume", "nowhere"], "resume: expected 'auto' or the folder of a run or checkpoint, got 'nowhere'"),
    (["train", "--resume", "empty"], "empty: not a checkpoint: it has no state.json"),
    (["train", "--output-dir", "taken"], "output_dir: taken already holds a run; continue it with --resume auto"),
    (["train", "--output-dir", "file.txt/run"], "file.txt: not a directory"),
    (["train", "list.yaml"], "list.yaml: expected sections"),
    (["train", "empty"], "empty/config.yaml: No such file or directory"),
    (["eval"], "the following arguments are required: DIR; see bp eval --help"),
    (["eval", "empty"], "empty: not the folder of a run: it has no config.yaml"),
    (["eval", "taken"], "taken: the run has no checkpoint 'last'"),
    (["eval", "taken", "--checkpoint", "first"], "argument --checkpoint: invalid choice: 'first'"),
    (["predict", "taken", "--input", "none.npy"], "none.npy"),
    (["predict", "taken", "--input", "file.txt"], "file.txt"),
    (["recipes", "--verbose"], "unrecognized arguments: --verbose; see bp recipes --help"),
    (["check", "digits", "--model.hiden", "3"], "--model.hiden: unknown key; did you mean 'model.hidden'?"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_command_lines(argv, message, capsys, monkeypatch):
    def no_network(*args, **named):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    Path("empty").mkdir()
    Path("file.txt").write_text("not an array")
    Path("list.yaml").write_text("- 1\n")
    Path("taken").mkdir()
    Path("taken/config.yaml").write_text("data: {name: digits}\nmodel: {name: mlp}\n")
    before = files()
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert err.startswith("bp: error: ") and err.count("\n") == 1, err
    assert message in err
    assert not any(line.startswith("step ") for line in out.splitlines())
    # A data set that is sought makes its folder; nothing else may appear.
    assert [name for name in files() if not name.startswith("nowhere")] == before


def test_wrong_samples_are_refused(trained, capsys):
    folder, _ = trained
    for array, message in (
        (np.zeros((2, 63), np.float32), "expected samples of shape (N, 64), got (2, 63)"),
        (np.zeros(64, np.float32), "expected samples of shape (N, 64), got (64,)"),
        (np.full((2, 64), np.nan, np.float32), "expected finite numbers, got nan"),
        (np.zeros((0, 64), np.float32), "empty"),
        (np.array(["a"]), "expected"),
    ):
        np.save("x.npy", array)
        code, _, err = run(capsys, "predict", folder, "--input", "x.npy", "--output", "y.npy")
        assert code == 2 and err.startswith("bp: error: ") and message in err and err.count("\n") == 1, err
        assert not Path("y.npy").exists()


def test_a_damaged_checkpoint_is_refused(trained, capsys, tmp_path):
    import shutil

    shutil.copytree(trained[0], "copy", symlinks=True)
    weights = Path("copy/checkpoints/last/model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:100])
    code, _, err = run(capsys, "eval", "copy")
    assert code == 2 and "model.safetensors: expected a safetensors file" in err
    code, _, err = run(capsys, "eval", trained[0], "--data.root", "elsewhere")
    assert code == 0  # digits come with the package
    Path("copy/config.yaml").write_text(
        Path("copy/config.yaml").read_text().replace("hidden:\n  - 16", "hidden:\n  - 17")
    )
    shutil.copy(next(Path(trained[0]).glob("checkpoints/step-*/model.safetensors")), weights)
    code, _, err = run(capsys, "eval", "copy")
    assert code == 2 and "the weights do not fit the model" in err


# The rest -------------------------------------------------------------------------------------------------


def test_help_version_recipes(capsys):
    code, out, _ = run(capsys)
    assert code == 0 and all(f"  {name}" in out for name in ("train", "eval", "predict", "check", "recipes", "doctor"))
    assert run(capsys, "--version")[1] == f"bp {bp.__version__}\n"
    code, out, _ = run(capsys, "recipes")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == recipes.names()
    assert {"digits", "mnist-mlp", "fashion-cnn", "cifar10-resnet20", "diabetes"} <= set(recipes.names())
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0 and re.search(r"--trainer.max_steps MAX_STEPS\s+\(type: PositiveInt \| null, default: null\)", out)
    code, out, _ = run(capsys, "train", "--help", "--optimizer.name", "sgd")
    assert "--optimizer.momentum" in out and "--optimizer.betas" not in out


@pytest.mark.parametrize("command", ["eval", "predict", "recipes", "doctor", "check"])
def test_every_command_has_help(command, capsys):
    try:
        code = main([command, "--help"])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 0 and f"usage: bp {command}" in capsys.readouterr().out


def test_check(capsys):
    code, out, _ = run(capsys, "check", "digits")
    assert code == 0 and re.search(r"all \d+ derivatives of mlp agree", out)


def test_in_a_process_of_its_own(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(bp.__file__).parent.parent)}
    python = [sys.executable, "-W", "error"]
    done = subprocess.run(
        [*python, "-m", "bp", "train", "--trainer.max_epochs", "x"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"bp: error: --trainer.max_epochs: .*PositiveInt.* x\n", done.stderr)
    # Importing bp alone pulls in none of what only commands need.
    heavy = "{'yaml', 'jsonargparse', 'rich', 'matplotlib', 'safetensors', 'tensorboard', 'cupy', 'bp.cli'}"
    done = subprocess.run(
        [*python, "-c", f"import bp, sys; print(sorted({heavy} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    # The reader of a pipe may leave early.
    done = subprocess.run(
        f"{sys.executable} -m bp train --help | head -1", shell=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith("usage: bp train") and done.stderr == ""
