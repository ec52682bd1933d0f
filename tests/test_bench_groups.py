"""Rows that belong together: one figure for each contestant, in the document and on the terminal."""

import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from bp.bench import units
from bp.bench.catalogue import load
from bp.bench.groups import groups_of
from bp.bench.results import About, Entry, Limits, Results, Row, Times
from bp.bench.run import Plan, Run
from bp.bench.terminal import Printer

X = units.TIMES


def entry(name, seconds):
    times = None if seconds is None else Times(seconds, seconds, seconds, 5)
    return Entry(name, name.partition(" ")[0] == "bp", "left out" if times is None else "timed", times=times)


def row(n, benchmark="linear", group="GPT-2", **seconds):
    """Seconds by contestant, with _ for what stands between words."""
    names = {"bp_mma": "bp linear=mma", "bp_unfused": "bp unfused", "torch": "torch", "cupy": "cupy", "bp": "bp"}
    entries = [entry(names[name], value) for name, value in seconds.items()]
    return Row("linear", benchmark, {"n": n}, "bf16", 1e9, 1e3, entries, limit_seconds=1.0, group=group)


ROWS = [
    row(1, bp=2.0, bp_mma=8.0, bp_unfused=4.0, torch=2.0, cupy=4.0),
    row(2, bp=2.0, bp_mma=None, bp_unfused=4.0, torch=8.0, cupy=None),
    row(3, bp=2.0, bp_mma=8.0, bp_unfused=4.0, torch=1.0, cupy=2.0),
    row(4, group="", bp=1.0, torch=100.0),
    replace(row(5, bp=1.0, torch=100.0), refused="hot"),
]


def figures(groups, contestant, beside):
    (one,) = (g for g in groups if (g.benchmark, g.contestant, g.beside) == ("linear", contestant, beside))
    return one.rows, one.mean, one.median, one.least, one.worst, one.percent


def test_bp_beside_the_fastest_peer_of_each_row_and_beside_every_other():
    groups = groups_of(ROWS)
    assert figures(groups, "bp", "") == (3, pytest.approx(math.cbrt(1.0 * 4.0 * 0.5)), 1.0, 0.5, "3", 50.0)
    assert figures(groups, "bp", "cupy") == (2, pytest.approx(math.sqrt(2.0 * 1.0)), 1.5, 1.0, "3", 50.0)
    assert figures(groups, "bp", "bp unfused")[:3] == (3, pytest.approx(2.0), 2.0)
    assert figures(groups, "bp linear=mma", "")[:4] == (2, pytest.approx(math.sqrt(0.25 * 0.125)), 0.1875, 0.125)
    assert {g.group for g in groups} == {"GPT-2"} and "" not in {g.benchmark for g in groups}


def test_a_group_of_several_benchmarks_has_a_figure_of_all():
    groups = groups_of([*ROWS, row(1, "linear input gradient", bp=1.0, torch=1.0)])
    (whole,) = (g for g in groups if (g.benchmark, g.contestant, g.beside) == ("", "bp", ""))
    assert (whole.rows, whole.mean, whole.worst) == (4, pytest.approx(2.0**0.25), "linear 3")


def test_the_terminal_says_it_in_a_line():
    console = Console(file=StringIO(), width=200, color_system=None)
    about = About("cuda", {"CPU": "Fast"}, {}, "abc", "2026-01-01", "bp bench")
    Printer(console).end(Results(about, Limits(), ROWS, groups=groups_of(ROWS)))
    (line,) = (line for line in console.file.getvalue().splitlines() if line.startswith("GPT-2"))
    assert line == (
        f"GPT-2: linear bf16, 3 rows: fastest peer 1.26{X}, 0.50{X} at 3, 1.00{X} at the median; 50% of the limit; "
        f"unfused 2.00{X}; torch 1.26{X}; cupy 1.41{X}; linear=mma reaches 0.18{X}"
    )


def test_a_refused_row_shows_its_time_and_why():
    console = Console(file=StringIO(), width=120, color_system=None)
    Printer(console).row(replace(row(5, bp=1.0, torch=100.0), refused="too hot"))
    shown = console.file.getvalue()
    assert "1.00 s" in shown and "    refused: too hot\n" in shown and "torch" not in shown


def test_a_part_of_the_work_is_timed_and_compared_with_nothing(monkeypatch):
    sizes = {"LinearActivation": [{"m": 4, "n": 5, "k": 6, "function": "gelu_tanh"}]}
    plan = Plan(["linear"], "cpu", peers=[], sizes=sizes, repeats=1, seconds=0.1, limits=Limits())
    (found,) = Run(plan).results("").rows
    product, unfused = found.entry("bp product"), found.entry("bp unfused")
    assert (product.status, product.error, product.ours) == ("timed", None, True)
    assert unfused.status == "timed" and unfused.error <= 1.0
    assert (found.ratio, found.best_peer) == (None, "")


def test_the_groups_of_a_run_are_in_its_results(tmp_path):
    sizes = {"Skinny": [{"m": 2, "n": 3, "k": 4, "cache": "warm"}]}
    plan = Plan(["linear"], "cpu", peers=["numpy"], sizes=sizes, repeats=1, seconds=0.1, limits=Limits())
    groups = Run(plan).results("").groups
    assert {(g.group, g.contestant, g.beside) for g in groups} >= {
        ("skinny, warm", "bp", ""),
        ("skinny, warm", "bp", "numpy"),
    }


def test_the_cases_that_figures_are_wanted_of_belong_to_a_group():
    cases = [kind(**sizes) for family in ("linear", "conv") for kind in load(family) for sizes in kind.sizes.cuda]
    groups = {case.group for case in cases if case.worth("bf16")}
    assert groups == {
        *("squares", "GPT-2 124M", "skinny, cold", "skinny, warm", "with gelu_tanh", "with relu", ""),
        *("ResNet-20", "ResNet-50", "depthwise", "fused convolutions"),
    }
    assert {case.m for case in cases if case.group == ""} == {128}  # decoding, fused
    assert [case.worth("tf32") for case in cases if case.name == "product"] == [True] * 3 + [False] * 3


def test_json_has_the_groups(tmp_path):
    from bp.bench.reading import read_json
    from bp.bench.results import write_json

    about = About("cuda", {}, {}, "", "", "")
    write_json(Results(about, Limits(), ROWS, groups=groups_of(ROWS)), tmp_path / "r.json")
    assert read_json(tmp_path / "r.json").groups == groups_of(ROWS)
    assert json.loads((tmp_path / "r.json").read_text())["groups"][0]["beside"] == ""
