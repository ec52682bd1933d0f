"""bp warmup: it finds every unit that a run launches, so that a run after it compiles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bp.cli import main, warmup
from bp.config import resolve
from bp.cuda import nvrtc
from bp.cuda.emulator.device import device as emulator
from bp.cuda.plan import device as plan
from bp.ops.device import resolve_precision

SMALL = ["--model.hidden", "[16]", "--data.batch_size", "64"]
TRAIN = ["--trainer.max_steps", "30", "--output-dir", "run"]  # 22 whole batches and a partial one are an epoch


@pytest.fixture
def bp_in(tmp_path):
    """Runs a command line in a process of its own, with an empty cache; gives what it printed."""

    def run(*argv):
        environment = os.environ | {"BP_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "bp", *argv]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def cached(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder, "cache").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "settings",
    [
        ["--device", "emulator"],
        ["--device", "emulator", "--trainer.precision", "bf16", "--trainer.ema_decay", "0.9"],
        ["--device", "emulator", "--trainer.precision", "fp16", "--trainer.accumulate_grad_batches", "3"],
    ],
    ids=["auto", "bf16 with an average", "fp16 in parts"],
)
def test_a_run_after_it_compiles_nothing(bp_in, tmp_path, settings):
    assert "units ready for the emulator" in bp_in("warmup", "digits", *SMALL, *settings)
    before = cached(tmp_path)
    bp_in("train", "digits", *SMALL, *settings, *TRAIN)
    bp_in("eval", "run")
    assert cached(tmp_path) == before
    precision = settings[3] if len(settings) > 2 else "fp32"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["precision"] == precision


def units(*settings, capability=80):
    config = resolve("digits", [*SMALL, *settings], device=plan)
    with warmup.planning_for(capability):
        return {str(unit) for unit in warmup.needed(config)}


def test_the_units_are_those_of_forward_backward_and_optimizer_and_no_others():
    narrow = units("--trainer.precision", "bf16")
    for family in ("linear", "loss", "optimizer", "transfer"):
        assert any(unit.startswith(family) for unit in narrow), family
    assert not any(unit.startswith(("activation", "dropout")) for unit in narrow)  # parts of the products
    alone = units("--trainer.precision", "bf16", "--trainer.fuse", "false")
    assert any(unit.startswith("activation[bfloat16") for unit in alone)
    assert any(unit.startswith("dropout[bfloat16") for unit in alone)
    assert any(unit.startswith("linear") and "bfloat16" in unit for unit in narrow)
    assert not any("float16" in unit.replace("bfloat16", "") for unit in narrow)
    assert not any(unit.startswith(("conv", "embedding", "pool", "norm")) for unit in narrow)
    assert not any("bfloat16" in unit for unit in units("--trainer.precision", "fp32"))


def test_auto_is_what_the_device_takes_and_the_plan_is_left_as_it_was(capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(warmup, "compile_for_emulator", lambda path, defines, detector: compiled.append(defines))
    before = plan.capability
    assert main(["warmup", "digits", *SMALL, "--device", "emulator"]) == 0
    assert resolve_precision("auto", emulator) == "fp32" and plan.capability == before
    assert {defines["T"] for defines in compiled if "T" in defines} == {"float"}
    assert f"digits: {len(compiled)} units ready for the emulator" in capsys.readouterr().out


def test_for_an_architecture_that_is_not_here(tmp_path, monkeypatch, capsys):
    if nvrtc.find() is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
    monkeypatch.setenv("BP_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["warmup", "digits", *SMALL, "--arch", "sm_75"]) == 0
    printed = capsys.readouterr().out
    files = list((tmp_path / "cache").rglob("*.cubin"))
    assert f"{len(files)} units ready for sm_75" in printed and files
    before = cached(tmp_path)
    assert main(["warmup", "digits", *SMALL, "--arch=sm_75"]) == 0
    assert cached(tmp_path) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--arch"], "--arch expected an architecture, such as sm_90a"),
        (["--arch", "hopper"], "hopper"),
        (["--arch", "sm_75", "--trainer.precision", "bf16"], "bf16 needs compute capability 8.0"),
        (["--device", "emulator", "--trainer.precision", "fp64"], "float64 is for the CPU"),
    ],
)
def test_what_it_refuses(capsys, argv, message):
    assert main(["warmup", "digits", *argv]) != 0
    assert message in capsys.readouterr().err


def test_its_help(capsys):
    assert main(["warmup", "--help"]) == 0
    assert "--arch sm_90a" in capsys.readouterr().out
