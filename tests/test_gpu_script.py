"""benchmarks/gpu.sh where there is no GPU: it says so in a line, rehearses on the emulator, and stops what hangs."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bp.cuda import requirements
from bp.cuda.choice import RUNGS, Problem, find
from bp.ops.device import find_device

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import every_rung
import run as script
import verdict

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


def test_a_command_that_is_interrupted_may_keep_what_it_has(tmp_path):
    run = script.Run("emulator", True, tmp_path / "results.json")
    # A process that was started in the background ignores the signal unless it says otherwise.
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "try: time.sleep(60)\nexcept KeyboardInterrupt: print('kept')"
    assert run.command([sys.executable, "-c", code], 2)["output"] == "kept\n"


def answering(monkeypatch, answers):
    """The commands that a run is asked for, answered by what is in them; the rest succeed and say nothing."""
    asked = []

    def command(self, arguments, limit, **environment):
        line = " ".join(map(str, arguments))
        asked.append(line)
        found = next((answer for words, answer in answers.items() if all(word in line for word in words.split())), {})
        return {"exit": 0, "seconds": 1.0, "output": ""} | found

    monkeypatch.setattr(script.Run, "command", command)
    return asked


RUNG_LIST = {"output": json.dumps([["linear", "mma", True], ["linear", "wgmma", False], ["conv", "tiled", True]])}


def test_what_no_gpu_has_run_yet_comes_first_and_what_hangs_takes_nothing_along(monkeypatch, tmp_path):
    hangs = {"exit": "stopped after 60 s", "output": "begun"}
    right = {"output": json.dumps({"version": "1", "cases": 3, "problems": []})}
    asked = answering(monkeypatch, {"--list": RUNG_LIST, "wgmma": hangs, "--rung": right})
    run = script.Run("cuda", False, tmp_path / "results.json")
    found = script.products(run)
    assert [line.partition("--rung ")[2].partition(" ")[0] for line in asked][:2] == ["", "wgmma"]
    assert (found["ok"], found["linear wgmma"]["ok"], found["linear mma"]["cases"]) == (False, False, 3)
    assert "wgmma hung or crashed" in script.tune(run)["skipped"]
    monkeypatch.setattr(script, "OPERATIONS", ["test_cuda_linear.py", "test_cuda_linear_wgmma.py"])
    script.correctness(run)
    tests = next(line for line in asked if "test_cuda_linear.py" in line)
    assert "test_cuda_linear_wgmma" not in tests


def test_a_rung_that_is_wrong_is_not_tried_by_tests_and_does_not_keep_others_from_being_tuned(monkeypatch, tmp_path):
    asked = answering(monkeypatch, {"--list": RUNG_LIST, "wgmma": {"exit": 1}})
    run = script.Run("cuda", False, tmp_path / "results.json")
    script.products(run)
    table = tmp_path / "sm_90.json"
    table.write_text('{"entries": []}')
    answering(monkeypatch, {"tuned.py": {"output": f"linear ...\n{table}\n"}})
    assert script.tune(run)["table"] == {"entries": []}
    assert (tmp_path / "tuning.json").read_text() == '{"entries": []}'
    assert asked


def test_benchmarks_measure_the_limits_once_and_keep_no_file(monkeypatch, tmp_path):
    run, asked = script.Run("cuda", False, tmp_path / "results.json"), []
    document = {"limits": {"peak": {"bf16": 8e14}}, "rows": [row(1.1, 1.0)]}

    def command(self, arguments, limit, **environment):
        asked.append(" ".join(map(str, arguments)))
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(document))
        return {"exit": 0, "seconds": 1.0, "output": "table"}

    monkeypatch.setattr(script.Run, "command", command)
    first, second = (script.STAGES[name](run) for name in ("linear", "conv"))
    assert "--limits" not in asked[0] and asked[1].endswith(f"--limits {tmp_path / 'limits.json'}")
    assert [path.name for path in tmp_path.iterdir()] == ["limits.json"]
    assert first["losses"] == second["losses"] and first["losses"][0]["peer"] == "torch"


# Rungs, by themselves ---------------------------------------------------------------------------------------


@pytest.fixture
def emulator(monkeypatch):
    """With products that it computes at once."""
    monkeypatch.setattr(every_rung, "ERRORS", [(16, 8, 128)])
    monkeypatch.setattr(every_rung, "SIZES", (1, 7, 9))
    monkeypatch.setattr(every_rung, "DEPTHS", (1, 8, 33))
    return find_device("emulator")


def on(device, rung, count=40):
    """What comes of some cases of linear, and of its errors."""
    found = every_rung.Found()
    every_rung.linear_errors(device, device.precisions, rung, found, 1)
    for number, case in zip(
        range(count), every_rung.linear_cases(device.precisions, find("linear", rung), 9), strict=False
    ):
        every_rung.check_linear(device, case, rung, found, number)
    return found


def test_a_right_rung_holds(emulator):
    found = on(emulator, "tiled")
    assert (found.problems, found.wrong) == ([], 0) and found.cases > 30
    assert all(error["error"] <= error["allowed"] for error in found.errors.values()) and len(found.errors) == 12


def test_a_rung_that_computes_one_way_of_a_precision_is_tried_in_that(emulator):
    found, rung = every_rung.Found(), find("linear", "wgmma")
    every_rung.linear_errors(emulator, ("tf32",), "wgmma", found, 1)
    for number, case in enumerate(itertools.islice(every_rung.linear_cases(("tf32",), rung, 9), 12)):
        every_rung.check_linear(emulator, case, "wgmma", found, number)
    assert (found.problems, found.wrong, found.cases, len(found.tiles)) == ([], 0, 72, 6)
    assert {key.split(" ", 1)[1] for key in found.errors} == {"nt tf32"}
    assert found.left_out == {rung.lacks(Problem("linear", "nn", 1, 1, 1, 1, "tf32", 16)): 2}  # the errors of nn and tn
    drawn = list(itertools.islice(every_rung.linear_cases(("tf32", "bf16"), rung, 9), 28))
    assert {case.way for case in drawn if case.precision == "tf32"} == {"nt"}
    assert {case.way for case in drawn if case.precision == "bf16"} == {"nt", "nn", "tn"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"alpha": 1 + 2.0**-12}, "an error of"),
        ({"alpha": 2.0}, "wrong, the first at"),
        ({"bias": None}, "bias: "),
        ({"before": None}, "gelu_tanh"),
    ],
)
def test_what_is_wrong_is_found(emulator, monkeypatch, damage, said):
    gemm = every_rung.gemm

    def wrong(a, b, c, *, epilogue=None, **settings):
        gemm(a, b, c, epilogue=dataclasses.replace(epilogue or every_rung.Epilogue(), **damage), **settings)

    monkeypatch.setattr(every_rung, "gemm", wrong)
    found = on(emulator, "tiled")
    assert found.wrong and any(said in problem for problem in found.problems)


def test_what_is_written_between_the_rows_is_found(emulator, monkeypatch):
    gemm = every_rung.gemm

    def spills(a, b, c, **settings):
        emulator.fill(c.array, 0.0)
        gemm(a, b, c, **settings)

    monkeypatch.setattr(every_rung, "gemm", spills)
    assert any("gaps between the rows" in problem for problem in on(emulator, "tiled").problems)


def test_a_wrong_sum_of_columns_and_a_wrong_convolution_are_found(emulator, monkeypatch):
    backward = every_rung.linear.linear_backward_parameters

    def gradients(dy, x, dweight, dbias, accumulate):
        backward(dy, x, dweight, dbias, accumulate)
        emulator.fill(dbias, 0.0)

    monkeypatch.setattr(every_rung.linear, "linear_backward_parameters", gradients)
    assert any(problem.endswith("db is wrong") for problem in on(emulator, "tiled", 120).problems)
    found, image, convolve = every_rung.Found(), (5, 2, 2, 2, 1, 0, 1, 1), every_rung.conv.convolve
    every_rung.check_conv(emulator, image, "forward", "fp32", "direct", found)
    assert (found.cases, found.wrong) == (2, 0) and len(found.errors) == 1
    monkeypatch.setattr(every_rung.conv, "convolve", lambda task: convolve(task) or emulator.fill(task.c, 1.0))
    every_rung.check_conv(emulator, image, "forward", "fp32", "direct", found)
    assert found.wrong == 2


def test_what_a_rung_does_not_compute_is_counted(emulator, monkeypatch):
    monkeypatch.setattr(emulator, "capability", 80, raising=False)
    found = every_rung.Found()
    every_rung.check_linear(emulator, every_rung.Case("nt", "fp32", 16, 7, 9, 8, "plain"), "mma", found, 0)
    assert (found.cases, len(found.left_out)) == (0, 1)
    assert every_rung.run(emulator, "linear", "cublas", 1.0, True).cases == 0
    assert every_rung.run(emulator, "linear", "wgmma", 1.0, True).left_out == {"not for compute capability 8.0": 1}
    assert {rung.name for rung in RUNGS["linear"]} >= {"cublas", "naive", "tiled"}


# What came of it --------------------------------------------------------------------------------------------


def row(torch, bp, *, rung=None, sizes=None, benchmark="product", group="squares", refused="", precision="bf16"):
    """A row of a result file: seconds of PyTorch, of bp, and of its rung mma."""

    def entry(name, seconds):
        times = None if seconds is None else {"median": seconds, "low": seconds, "high": seconds, "runs": 5}
        return {"contestant": name, "ours": name.startswith("bp"), "times": times}

    others = [entry("bp unfused", 1e-9), entry("bp linear=fp8", 0.1 * bp), entry("torch", torch)]
    entries = [entry("bp", bp), entry("bp linear=mma", rung), *others]
    sizes = {"m": 4096, "n": 4096, "k": 4096, "way": "nt"} if sizes is None else sizes
    known = {"benchmark": benchmark, "group": group, "precision": precision, "sizes": sizes, "refused": refused}
    return known | {"flops": 1.4e11, "limit_seconds": 0.5, "entries": entries}


def test_which_rung_lost_to_whom():
    worst, *rest = verdict.losses(
        [row(1.0, 0.5), row(1.0, 2.0, rung=1.25), row(None, 1.0), row(1.0, 1.0, refused="hot")]
    )
    assert [one["ratio"] for one in rest] == [2.0]
    assert (worst["row"], worst["rung"], worst["peer"]) == ("product 4096x4096x4096 nt bf16", "bp linear=mma", "torch")
    assert (worst["ratio"], worst["rungs"]) == (0.8, {"bp linear=mma": 0.8, "bp": 0.5})
    assert worst["coarse"] == {"bp linear=fp8": 5.0}
    assert (worst["flops_per_second"], worst["of_limit"]) == (1.4e11 / 1.25, 0.4)


def test_which_figures_were_reached():
    layers = [
        row(1.0, 0.5, benchmark="linear", group="GPT-2 124M"),
        row(1.0, 2.0, benchmark="linear", group="GPT-2 124M"),
    ]
    found = {
        gate["what"]: gate for gate in verdict.gates([row(1.0, 2.0, rung=1.25), *layers, row(1.0, 9.0, refused="hot")])
    }
    squares = found["squares product nt bf16, least over 1 rows beside the fastest peer"]
    assert (squares["bp"], squares["fastest_rung"], squares["gate"], squares["stretch"]) == (0.5, 0.8, 1.0, 1.05)
    assert found["GPT-2 124M linear bf16, mean over 2 rows beside the fastest peer"]["bp"] == pytest.approx(1.0)
    assert found["GPT-2 124M linear bf16, least over 2 rows beside the fastest peer"]["bp"] == 0.5
    said = list(verdict.lines([row(1.0, 2.0, rung=1.25), row(1.0, 9.0, refused="hot")]))
    assert said[0].startswith("0.50 by bp, 0.80 by its fastest rung; wanted 1.00, then 1.05, NOT reached: squares")
    assert said[1].startswith(
        "0.80 product 4096x4096x4096 nt bf16: beside torch, 1000000.0 us; linear=mma 0.80, bp 0.50, linear=fp8 5.00;"
    )
    assert said[2] == "refused product 4096x4096x4096 nt bf16: hot"


def test_a_median_of_an_even_number_lies_between():
    rows = [row(t, 1.0, benchmark="convolution", group="ResNet-20", sizes={"n": t}) for t in (1.0, 2.0, 4.0, 8.0)]
    (gate,) = verdict.gates(rows)
    assert gate["bp"] == 3.0


def test_every_gate_is_of_rows_that_there_are():
    from bp.bench.catalogue import load

    there = set()
    for kind in (kind for family in ("linear", "conv") for kind in load(family)):
        for sizes in kind.sizes.cuda:
            case = kind(**sizes)
            there |= {(case.name, case.group, p) for p in kind.precisions if case.worth(p)}
    missing = [gate for gate in verdict.GATES if (gate.benchmark, gate.group, gate.precision) not in there]
    assert missing == []
