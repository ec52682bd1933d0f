"""`bp bench` as a user types it."""

import csv
import json
import os
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bp.bench import machine, units
from bp.bench.catalogue import families, load
from bp.bench.results import About, Entry, Limits, Results, Row, Times
from bp.bench.run import Run
from bp.bench.terminal import Printer
from bp.cli import main

PLANTED = str(Path(__file__).parent / "bench_planted.py")


@pytest.fixture(autouse=True)
def without_limits(monkeypatch):
    """Measuring the limits of the machine takes seconds."""
    monkeypatch.setattr(Run, "measure_limits", lambda self: Limits([(8000.0, 1e9)], {"fp32": 1e11}, 1e-6))


@pytest.fixture
def made_row():
    entries = [Entry("bp", True, "timed", times=Times(2e-3, 1.9e-3, 2.2e-3, 5))]
    entries.append(Entry("torch", False, "timed", times=Times(3e-3, 2.9e-3, 3.2e-3, 5)))
    sizes = {"rows": 8192, "columns": 1024}
    return Row("norm", "layer norm", sizes, "fp32", 0.0, 1e6, entries, percent=50.0, ratio=1.5, best_peer="torch")


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes.yaml"
    path.write_text("known:\n  - {n: [10, 20]}\n")
    return path


def refused(capsys, *arguments: str) -> str:
    """The line on stderr of a command that is refused."""
    assert main(["bench", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_every_family_lists_its_benchmarks(capsys):
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == families()
    assert "  layer norm: rows, columns" in lines and "  linear parameter gradients, added: m, n, k" in lines


def test_every_benchmark_says_what_it_needs():
    for family in families():
        names = [kind.name for kind in load(family)]
        assert len(names) == len(set(names)), family
        for kind in load(family):
            for cases in kind.sizes:
                for sizes in cases:
                    case = kind(**sizes)
                    assert case.nbytes(4) >= 0 and case.flops() >= 0 and case.length() >= 1


def test_a_file_of_benchmarks_is_short():
    for path in (Path(__file__).parent.parent / "benchmarks").glob("bench_*.py"):
        assert len(path.read_text().splitlines()) < 120, path.name


def test_results_are_written_and_read(capsys, tmp_path, shapes):
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "csv", "html")}
    options = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    assert main(["bench", PLANTED, "--device", "cpu", "--quick", "--shapes", str(shapes), *options]) == 0
    out = capsys.readouterr().out
    assert "known" in out and "faulty" not in out
    document = json.loads(files["json"].read_text())
    assert [row["sizes"] for row in document["rows"]] == [{"n": 10}, {"n": 20}]
    assert document["about"]["machine"]["CPU"]
    assert document["about"]["versions"]["numpy"]
    with files["csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3
    assert {line["contestant"] for line in lines} == {"bp", "bp cpu=numpy", "numpy"}
    assert all(line["machine"] and line["versions"] and line["revision"] and line["clocks"] for line in lines)
    assert "known" in files["html"].read_text()
    page = tmp_path / "again.html"
    assert main(["bench", "report", str(files["json"]), "--html", str(page)]) == 0
    assert page.read_text() == files["html"].read_text()


def test_a_slower_run_ends_with_1(capsys, monkeypatch, tmp_path, shapes):
    path = tmp_path / "before.json"
    command = ["bench", PLANTED, "--device", "cpu", "--quick", "--shapes", str(shapes)]
    assert main([*command, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    for row in document["rows"]:
        for entry in row["entries"]:
            if entry["contestant"] == "bp":  # as if it had been twenty times as fast
                entry["times"] |= {key: entry["times"][key] / 20 for key in ("median", "low", "high")}
    path.write_text(json.dumps(document))
    with pytest.raises(SystemExit) as ended:
        main([*command, "--against", str(path)])
    assert ended.value.code == 1
    assert any("regressed" in line and "known 10 fp32" in line for line in capsys.readouterr().out.splitlines())
    document["about"]["machine"]["CPU"] = "another"
    path.write_text(json.dumps(document))
    # Refused before anything runs: no row is printed.
    monkeypatch.setattr(Run, "results", None)
    assert "another" in refused(capsys, *command[1:], "--against", str(path))


def test_limits_are_taken_from_a_run_of_this_machine(capsys, monkeypatch, tmp_path, shapes):
    path, again = tmp_path / "first.json", tmp_path / "again.json"
    command = ["bench", PLANTED, "--device", "cpu", "--quick", "--shapes", str(shapes)]
    assert main([*command, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    document["limits"]["peak"] = {"fp32": 7e11}
    path.write_text(json.dumps(document))
    monkeypatch.setattr(Run, "measure_limits", None)
    assert main([*command, "--limits", str(path), "--json", str(again)]) == 0
    assert json.loads(again.read_text())["limits"] == document["limits"]
    assert "fp32 700 GFLOP/s" in capsys.readouterr().out
    document["about"]["machine"]["CPU"] = "another"
    path.write_text(json.dumps(document))
    assert "another" in refused(capsys, *command[1:], "--limits", str(path))


def test_the_emulator_checks_and_shows_no_times(capsys, tmp_path):
    path = tmp_path / "r.json"
    assert main(["bench", "norm", "--device", "emulator", "--dtype", "fp32", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    entries = [entry for row in document["rows"] for entry in row["entries"]]
    assert {entry["status"] for entry in entries} == {"checked"}
    assert all(entry["error"] <= 1 and entry["times"] is None for entry in entries)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nrom"], "no benchmarks 'nrom'"),
        (["nowhere/bench_x.py"], "no file of benchmarks"),
        ([PLANTED, "--device", "tpu"], "expected a device of auto, cpu, cuda, emulator"),
        ([PLANTED, "--peer", "jax"], "expected a peer of"),
        ([PLANTED, "--dtype", "int8"], "expected a precision of fp32"),
        ([PLANTED, "--dtype", "bf16", "--device", "cpu"], "precision 'bf16' is not available on device 'cpu'"),
        ([PLANTED, "--use", "linear=fast"], "--use expected NAME=RUNG"),
        ([PLANTED, "--json", "nowhere/r.json"], "no folder nowhere"),
        ([PLANTED, "--html", "."], "expected a file, got a folder"),
        ([PLANTED, "--seconds", "0"], "--seconds expected more than 0, got 0"),
        ([PLANTED, "--seconds", "nan"], "--seconds expected more than 0, got nan"),
        (["--quick", "roofline", "digits"], "'roofline' comes first"),
        ([PLANTED, "--against", "nowhere.json"], "nowhere.json"),
        ([PLANTED, "--limits", "nowhere.json"], "nowhere.json"),
        ([PLANTED, "--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_what_there_is_not_is_refused(capsys, arguments, expected):
    assert expected in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected benchmarks with their sizes"),
        ("- 1", "expected benchmarks with their sizes, got list"),
        ("{", "shapes.yaml"),
        ("unknown: [{n: 1}]", "no benchmark 'unknown'"),
        ("known: {n: 1}", "expected a list of sizes"),
        ("known: [{m: 1}]", "expected the sizes n (int)"),
        ("known: [{}]", "'n' is missing"),
        ("known: [{n: 1.5}]", "'n' expected int, got 1.5"),
        ("known: [{n: true}]", "'n' expected int, got True"),
        ("known: [{n: -1}]", "'n' expected int, got -1"),
    ],
)
def test_wrong_shapes_are_refused(capsys, tmp_path, text, expected):
    path = tmp_path / "shapes.yaml"
    path.write_text(text)
    assert expected in refused(capsys, PLANTED, "--shapes", str(path))


@pytest.mark.parametrize("command", [["norm"], ["roofline"], ["accuracy"]])
def test_a_folder_that_may_not_be_written_is_refused_at_once(capsys, monkeypatch, tmp_path, command):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert "no permission to write" in refused(capsys, *command, "--device", "cpu", "--json", str(tmp_path / "r.json"))


@pytest.mark.parametrize("command", [["roofline"], ["accuracy"]])
def test_a_file_that_cannot_be_written_is_refused_at_once(capsys, tmp_path, command):
    arguments = [*command, "digits", "--device", "cpu", "--json"]
    assert "no folder" in refused(capsys, *arguments, str(tmp_path / "nowhere" / "r.json"))
    assert "got a folder" in refused(capsys, *arguments, str(tmp_path))


def test_the_example_of_the_documentation_runs(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text()
    mine, found = tmp_path / "bench_mine.py", tmp_path / "r.json"
    mine.write_text(text.partition("```python\n")[2].partition("```")[0])
    assert main(["bench", str(mine), "--device", "cpu", "--quick", "--peer", "numpy", "--json", str(found)]) == 0
    (row,) = json.loads(found.read_text())["rows"]
    assert [entry["status"] for entry in row["entries"]] == ["timed"] * 3


def test_a_narrow_terminal_goes_without_the_spread(made_row):
    def printed(width: int) -> str:
        console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
        Printer(console).row(made_row)
        return console.file.getvalue()

    assert "20 % to 80 %" in printed(120) and "1.90 ms to 2.20 ms" in printed(120)
    assert "20 %" not in printed(80) and "2.00 ms" in printed(80)
    made_row.entries.append(Entry("bp cpu=numpy", True, "timed", times=Times(1.0, 1.0, 1.0, 5)))
    *_, first, second = printed(80).splitlines()
    assert first.endswith(f"torch 1.50{units.TIMES}") and second.strip() == f"cpu=numpy 500{units.TIMES}"
    assert max(map(len, printed(80).splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("no_python", "def f(:", "bench_no_python.py: invalid syntax"),
        ("missing", "import no_such_library", "bench_missing.py: No module named 'no_such_library'"),
        ("empty", "x = 1", "expected classes of bp.bench.Benchmark with a name"),
    ],
)
def test_a_file_that_is_none_of_benchmarks_is_refused(capsys, tmp_path, name, text, expected):
    path = tmp_path / f"bench_{name}.py"
    path.write_text(text)
    assert expected in refused(capsys, str(path), "--device", "cpu")


def test_a_run_of_nothing_says_so(capsys):
    assert main(["bench", "transfer", "--device", "cpu", "--quick"]) == 0
    assert "no rows: what was asked for has no cases for device 'cpu'" in capsys.readouterr().out


def test_the_last_lines_count_and_name(made_row):
    console = Console(file=StringIO(), width=120, color_system=None)
    about = About("cpu", {"CPU": "Fast", "cores": "3"}, {"bp": "0.1.0"}, "abc", "2026-01-01", "bp bench")
    Printer(console).end(Results(about, Limits(), [made_row], {"torch": "pip install torch"}, 3.0))
    said = console.file.getvalue().split("\n")
    assert (
        said[1] == f"norm: 1 row, the best peer takes 1.50{units.TIMES} the time of bp, 50% of the limit at the median"
    )
    assert said[2:4] == ["no torch: pip install torch", "Fast, 3 cores; bp 0.1.0 (abc); 3 s"]


def test_the_revision_is_that_of_bp_and_of_no_project_around_it(monkeypatch, tmp_path):
    def git(*arguments: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    installed = tmp_path / "environment" / "machine.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(machine, "__file__", str(installed))
    monkeypatch.delenv("BP_REVISION", raising=False)
    git("init")
    git("commit", "--allow-empty", "-m", "a project")
    assert machine.revision() == "unknown"
    git("add", "-f", str(installed))
    git("commit", "-m", "bp itself")
    assert len(machine.revision()) == 12


def test_what_was_measured_before_an_interrupt_is_kept(capsys, monkeypatch, tmp_path, shapes):
    def interrupted(printer: Printer, row: Row) -> None:
        if row.sizes == {"n": 20}:
            raise KeyboardInterrupt

    monkeypatch.setattr(Printer, "row", interrupted)
    path = tmp_path / "r.json"
    command = ["bench", PLANTED, "--device", "cpu", "--quick", "--shapes", str(shapes), "--json", str(path)]
    assert main(command) == 130
    document = json.loads(path.read_text())
    assert [row["sizes"] for row in document["rows"]] == [{"n": 10}]
    assert document["about"]["settings"]["interrupted"] == "yes"
