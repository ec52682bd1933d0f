"""Which cases of a benchmark run at all: those that the memory holds, on devices it has something to say of."""

import math
from pathlib import Path

import pytest

from bp.bench import machine, run
from bp.bench.results import Limits, Results
from bp.bench.run import Plan, Run

PLANTED = str(Path(__file__).parent / "bench_planted.py")


def results(monkeypatch: pytest.MonkeyPatch, share: float) -> Results:
    """Of the planted benchmark that is right: 4000 bytes for each of three contestants."""
    monkeypatch.setattr(Run, "measure_limits", lambda self: Limits())
    monkeypatch.setattr(machine, "memory", lambda device: 12_000.0)
    monkeypatch.setattr(run, "MEMORY_SHARE", share)
    return Run(Plan([PLANTED], "cpu", sizes={"Known": [{"n": 1000}]}, repeats=1, seed=1)).results("")


def test_what_the_memory_does_not_hold_is_left_out_for_all(monkeypatch):
    (row,) = (row for row in results(monkeypatch, 0.99).rows if row.benchmark == "known")
    assert [entry.contestant for entry in row.entries] == ["bp", "bp cpu=numpy", "numpy"]
    assert {entry.status for entry in row.entries} == {"left out"}
    assert row.ours.reason == "no room: the arrays of all contestants take 11.72 KiB, and may take 11.6 KiB"
    assert (row.ours.times, row.ratio, row.percent) == (None, None, None)


def test_what_the_memory_just_holds_runs(monkeypatch):
    (row,) = (row for row in results(monkeypatch, 1.0).rows if row.benchmark == "known")
    assert {entry.status for entry in row.entries} == {"timed"}


def test_the_memory_of_this_machine_is_known():
    assert 1e8 < machine.memory("cpu") < math.inf
    assert machine.memory("emulator") == machine.memory("cpu")


def test_a_benchmark_of_the_host_has_no_rows_elsewhere():
    assert Run(Plan(["data"], "emulator", quick=True)).results("").rows == []
