"""benchmarks/gpu.sh where there is no GPU: it says so in a line, rehearses on the emulator, and stops what hangs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bp.cuda import requirements

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import run as script

ROOT = script.ROOT


def gpu_sh(*arguments):
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
        timeout=240,
    )


def test_without_a_gpu_it_says_what_is_missing(tmp_path):
    if requirements.problem() is None:
        pytest.skip("this machine has a GPU")
    done = gpu_sh(tmp_path / "results.json")
    assert done.returncode == 1
    assert f"device 'cuda' cannot be used; {requirements.problem()}" in done.stdout
    assert json.loads((tmp_path / "results.json").read_text())["environment"]["ok"] is False


def test_a_rehearsal_records_no_figures(tmp_path):
    done = gpu_sh(tmp_path / "results.json", "--device", "emulator", "--quick", "--only", "golden", "training")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["environment", "golden", "training"]
    assert results["environment"]["about"]["device"] == "emulator"
    assert "the emulator agrees" in results["golden"]["output"] and results["training"]["problems"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]  # what the emulator returns is not golden


def test_a_command_that_hangs_is_stopped_with_its_children_and_what_it_said_is_kept(tmp_path):
    run = script.Run("emulator", True, tmp_path / "results.json")
    begun = time.monotonic()
    done = run.command(["bash", "-c", "echo begun; sleep 60 & sleep 60"], 1)
    assert time.monotonic() - begun < 20
    assert done["exit"] == "stopped after 1 s" and done["output"] == "begun\n"
