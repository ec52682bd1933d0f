"""`bp bench` as a user types it."""

import csv
import json
from pathlib import Path

import pytest

from bp.bench.catalogue import families, load
from bp.bench.results import Limits
from bp.bench.run import Run
from bp.cli import main

PLANTED = str(Path(__file__).parent / "bench_planted.py")


@pytest.fixture(autouse=True)
def without_limits(monkeypatch):
    """Measuring the limits of the machine takes seconds."""
    monkeypatch.setattr(Run, "measure_limits", lambda self: Limits([(8000.0, 1e9)], {"fp32": 1e11}, 1e-6))


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
    assert [line.partition(":")[0] for line in lines] == families()
    assert all(line.partition(": ")[2] for line in lines)


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


def test_a_slower_run_ends_with_1(capsys, tmp_path, shapes):
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
    document["about"]["machine"]["CPU"] = "another"
    path.write_text(json.dumps(document))
    assert "another" in refused(capsys, *command[1:], "--against", str(path))


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
        ([PLANTED, "--against", "nowhere.json"], "nowhere.json"),
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
