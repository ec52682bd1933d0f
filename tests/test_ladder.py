"""docs/kernels.md: its generated sections are those of the table of rungs, and of what was measured."""

import importlib
from pathlib import Path

import pytest

from bp.bench.results import About, Entry, Limits, Results, Row, Times
from bp.cuda import choice

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ladder(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ladder")


def test_the_page_is_up_to_date(ladder):
    page = (ROOT / "docs" / "kernels.md").read_text()
    assert ladder.written(page) == page, "run: python benchmarks/ladder.py"


def test_every_rung_is_described(ladder):
    for family, rungs in choice.RUNGS.items():
        assert {rung.name for rung in rungs} <= ladder.RUNGS[family].keys()


def results():
    """Two rows: cuBLAS is behind in the first, ahead in the second."""

    def timed(name, seconds):
        return Entry(name, name.startswith("bp"), "timed", times=Times(seconds, seconds, seconds, 5))

    def row(size, **seconds):
        entries = [timed(name.replace("_", " ").replace(" is ", "="), taken) for name, taken in seconds.items()]
        return Row("linear", "linear", {"m": size}, "bf16", 2e12, 1e6, entries, best_peer="cupy")

    rows = [row(1, bp=0.01, bp_linear_is_naive=1.0, cupy=0.02), row(2, bp=0.02, bp_linear_is_naive=1.0, cupy=0.01)]
    machine = {"CPU": "a CPU", "cores": "2", "GPU": "a GPU"}
    return Results(About("cuda", machine, {}, "unknown", "2026-01-02T00:00:00", "bp bench", {}), Limits(), rows)


def test_what_was_measured(ladder, monkeypatch):
    monkeypatch.setattr(ladder, "measured", lambda name: [results()])
    heads, _, first, second, _, note = ladder.figures().splitlines()
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[:2] == ["linear 1 bf16", "200 TFLOP/s"] and cells[-1] == "100 TFLOP/s cupy"
    naive = [head.strip() for head in heads.split("|")[1:-1]].index("linear=naive")
    assert cells[naive] == "2.00 TFLOP/s" and second.count("TFLOP/s") == 3
    assert note.startswith("a GPU, ") and note.endswith("2026-01-02.")
    assert ladder.gaps().startswith("- linear 2 bf16: bp at 0.50") and ladder.gaps().count("\n") == 0


def test_what_was_not_measured(ladder, monkeypatch):
    monkeypatch.setattr(ladder, "measured", lambda name: [])
    assert ladder.figures().startswith("Not measured yet.") and ladder.gaps() == "None measured yet."
