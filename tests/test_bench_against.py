"""Two runs of benchmarks against one another: what is noise, what is drift, and what is slower."""

import math
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from bp.bench import noise
from bp.bench.against import FALSE_ALARMS, compare
from bp.bench.noise import Change, Residual
from bp.bench.results import About, Entry, Limits, Results, Row, Times
from bp.bench.units import TIMES
from bp.errors import ConfigurationError

VERSIONS = {"bp": "1", "python": "3.11", "numpy": "2.0", "torch": "2.13", "liger-kernel": "0.5"}


def times(median: float, spread: float = 0.02, runs: int = 15) -> Times:
    """Of turns that lie within `spread` of the median."""
    return Times(median, median * (1 - spread), median * (1 + spread), runs)


def row(name: str, *, spread: float = 0.02, runs: int = 15, **seconds: float) -> Row:
    """By contestant, with "_" for "-", and "bp_naive" for another rung of bp."""
    named = {name.replace("bp_naive", "bp linear=naive").replace("_", "-"): value for name, value in seconds.items()}
    entries = [Entry(n, n[:2] == "bp", "timed", times=times(value, spread, runs)) for n, value in named.items()]
    return Row("linear", name, {}, "fp32", 0.0, 0.0, entries)


def run(*rows: Row, limits: Limits | None = None, versions: dict[str, str] | None = None, **about: object) -> Results:
    plain = About("cpu", {"CPU": "a", "cores": "2"}, versions or VERSIONS, "abc", "2026-01-01", "bp bench")
    return Results(replace(plain, **about), limits or Limits(), list(rows))


def only(before: Results, after: Results):
    """The one thing that was compared."""
    (one,) = compare(before, after).compared
    return one


def test_a_run_against_itself_has_not_changed():
    rows = [row(f"r{i}", spread=0.01 * i, bp=1e-3 * (i + 1), numpy=2e-3, torch=5e-4) for i in range(5)]
    rows += [row("alone", bp=1.0), row("once", runs=1, spread=0.0, bp=1.0), row("rungs", bp=1.0, bp_naive=3.0)]
    comparison = compare(run(*rows), run(*rows))
    assert not comparison.regressed and comparison.notes == []
    assert {one.verdict for one in comparison.compared} == {"unchanged"}
    assert all(one.slowdown == 1.0 and one.drift == 1.0 and one.allowed > 0.0 for one in comparison.compared)


def test_a_slower_row_is_found_and_a_faster_one():
    before = run(*(row(f"r{i}", bp=1e-3, numpy=2e-3, torch=5e-4) for i in range(6)))
    after = run(
        *(row(f"r{i}", bp=t, numpy=2e-3, torch=5e-4) for i, t in enumerate([1e-3, 1.4e-3, 1e-3, 5e-4, 1e-3, 1e-3]))
    )
    comparison = compare(before, after)
    assert comparison.regressed
    verdicts = [one.verdict for one in comparison.compared]
    assert verdicts == ["unchanged", "regressed", "unchanged", "improved", "unchanged", "unchanged"]
    slow = comparison.compared[1]
    assert (slow.row, slow.contestant, slow.by) == ("linear r1 fp32", "bp", "peers")
    assert (slow.before, slow.after) == (1e-3, 1.4e-3)
    assert slow.slowdown == pytest.approx(1.4) and slow.drift == 1.0 and 0.0 < slow.allowed < 0.2
    assert not compare(after, after).regressed and not compare(before, run(*after.rows[3:])).regressed


def test_a_refused_row_is_compared_with_nothing():
    before = run(row("r0", bp=1e-3, numpy=2e-3), row("r1", bp=1e-3, numpy=2e-3))
    hot = replace(row("r1", bp=9e-3, numpy=2e-3), refused="too hot")
    for first, second in ((before, run(before.rows[0], hot)), (run(before.rows[0], hot), before)):
        comparison = compare(first, second)
        assert [one.row for one in comparison.compared] == ["linear r0 fp32"] and not comparison.regressed
        assert comparison.notes == ["not compared: 1 row that one of the runs refused"]
        assert (comparison.only_before, comparison.only_after) == ([], [])


def test_all_rows_of_bp_slower_is_not_drift():
    before = run(*(row(f"r{i}", bp=1e-3, numpy=2e-3) for i in range(12)))
    after = run(*(row(f"r{i}", bp=1.4e-3, numpy=2e-3) for i in range(12)))
    assert {one.verdict for one in compare(before, after).compared} == {"regressed"}


def test_a_slower_machine_is_drift():
    before = run(*(row(f"r{i}", bp=1e-3, numpy=2e-3, torch=5e-4) for i in range(6)))
    after = run(*(row(f"r{i}", bp=1.5e-3, numpy=3e-3, torch=7.5e-4) for i in range(6)))
    for one in compare(before, after).compared:
        assert one.verdict == "unchanged" and one.drift == pytest.approx(1.5) and one.slowdown == pytest.approx(1.0)
    hidden = only(run(row("r", bp=1.0, numpy=1.0)), run(row("r", bp=1.0, numpy=0.5)))
    assert hidden.verdict == "regressed" and hidden.slowdown == pytest.approx(2.0)


def test_noise_of_turns_allows_more():
    def allowed(spread: float, runs: int) -> float:
        before = row("r", spread=spread, runs=runs, bp=1.0, numpy=1.0)
        return only(run(before), run(replace(before))).allowed

    assert allowed(0.02, 15) < allowed(0.1, 15) < allowed(0.1, 5)
    assert allowed(0.1, 30) < allowed(0.1, 15)
    # Few turns do not know the error of their median as well, here a little smaller.
    assert allowed(0.05, 5) > allowed(0.42, 200)
    for runs in (1, 2, 5, 1000):
        assert math.isfinite(allowed(0.0 if runs == 1 else 0.9, runs) or 0.0)


def test_more_rows_allow_more():
    few, many = ([row(f"r{i}", bp=1.0, numpy=1.0) for i in range(count)] for count in (2, 200))
    assert compare(run(*few), run(*few)).compared[0].allowed < compare(run(*many), run(*many)).compared[0].allowed


def test_a_peer_that_is_all_noise_does_not_blur_a_steady_one():
    calm = row("r", bp=1.0, numpy=1.0)
    wild = replace(calm, entries=[*calm.entries, Entry("torch", False, "timed", times=Times(1.0, 0.2, 5.0, 15))])
    moved = replace(wild, entries=[*calm.entries, Entry("torch", False, "timed", times=Times(3.0, 0.5, 9.0, 15))])
    assert only(run(wild), run(moved)) == only(run(calm), run(calm))


def test_peers_that_disagree_allow_more():
    def one(torch: float):
        return only(run(row("r", bp=1.0, numpy=1.0, torch=1.0)), run(row("r", bp=1.3, numpy=1.0, torch=torch)))

    assert one(1.0).verdict == "regressed" and one(1.5).verdict == "unchanged"
    assert one(1.5).allowed > 2 * one(1.0).allowed


def test_scatter_between_runs_is_measured_on_peers():
    generator = np.random.default_rng(0)

    def shaken(by: float) -> Results:
        shakes = np.exp(by * generator.standard_normal((40, 2)))
        return run(*(row(f"r{i}", bp=1.0, numpy=one, torch=other) for i, (one, other) in enumerate(shakes)))

    calm, wild = (compare(shaken(by), shaken(by)).compared[0].allowed for by in (0.0, 0.1))
    assert wild > 2 * calm


def test_scatter_of_peers_counts_in_rows_without_bp_too():
    generator = np.random.default_rng(0)

    def allowed(by: float) -> float:
        ratios = np.exp(by * generator.standard_normal(20))
        ours = [row(f"ours {i}", bp=1.0, numpy=1.0) for i in range(3)]
        before = run(*ours, *(row(f"r{i}", numpy=1.0, torch=1.0) for i in range(20)))
        after = run(*ours, *(row(f"r{i}", numpy=1.0, torch=ratio) for i, ratio in enumerate(ratios)))
        return compare(before, after).compared[0].allowed

    assert allowed(0.1) > 2 * allowed(0.0)


def test_rows_that_drift_without_peers_do_not_blur_those_with_peers():
    peered = [row(f"p{i}", bp=1.0, numpy=1.0) for i in range(10)]
    before = run(*peered, *(row(f"r{i}", bp=1.0) for i in range(40)))
    after = run(*peered, *(row(f"r{i}", bp=1.5 if i % 2 else 0.7) for i in range(40)))
    assert compare(before, after).compared[0].allowed < 0.15


def test_rows_without_peers_take_the_drift_of_the_others():
    before = run(row("a", bp=1.0, numpy=1.0), row("b", bp=1.0, torch=1.0), row("c", bp=1.0), row("d", bp=1.0))
    after = run(row("a", bp=1.5, numpy=1.5), row("b", bp=1.5, torch=1.5), row("c", bp=1.5), row("d", bp=3.0))
    compared = compare(before, after).compared
    assert [one.by for one in compared] == ["peers", "peers", "rows", "rows"]
    assert [one.verdict for one in compared] == ["unchanged", "unchanged", "unchanged", "regressed"]
    assert compared[3].slowdown == pytest.approx(2.0)
    assert compared[2].allowed < 1.5 * compared[0].allowed

    uneven = run(row("a", bp=1.2, numpy=1.2), row("b", bp=1.8, torch=1.8), row("c", bp=1.5), row("d", bp=3.0))
    compared = compare(before, uneven).compared
    assert [one.verdict for one in compared] == ["unchanged"] * 4
    assert compared[2].allowed > 4 * compared[0].allowed


def test_without_any_peers_the_limits_tell_the_drift():
    fast = Limits([(1e3, 2e10), (1e9, 1e10)], {"fp32": 3e11}, 1e-6)
    slow = Limits([(1e3, 1e10), (1e6, 1e9), (1e9, 5e9)], {"fp32": 1.5e11, "fp64": 1e11}, 2e-6)
    before = run(row("a", bp=1.0), row("b", bp=1.0), limits=fast)
    comparison = compare(before, run(row("a", bp=2.0), row("b", bp=4.0), limits=slow))
    assert [one.by for one in comparison.compared] == ["limits", "limits"]
    assert [one.slowdown for one in comparison.compared] == pytest.approx([1.0, 2.0])
    assert [one.verdict for one in comparison.compared] == ["unchanged", "regressed"]
    assert comparison.notes == [f"at its limits, the machine now takes 2.00{TIMES} the time"]


def test_where_nothing_tells_the_drift_it_is_called_unknown():
    comparison = compare(run(row("r", bp=1.0)), run(row("r", bp=2.0)))
    assert comparison.regressed and comparison.compared[0].by == "" and f"1.00{TIMES} unknown" in str(comparison)


def test_one_turn_is_judged_by_the_spread_of_others():
    once = [row(f"once {i}", spread=0.0, runs=1, bp=1.0, numpy=1.0) for i in range(2)]
    slow = row("once 0", spread=0.0, runs=1, bp=5.0, numpy=1.0)
    alone = compare(run(*once), run(slow, once[1]))
    assert {one.verdict for one in alone.compared} == {"not compared"} and not alone.regressed
    assert "not compared: 2 (each took one turn, which tells nothing of noise)" in str(alone)

    steady = row("often", bp=1.0, numpy=1.0)
    beside = compare(run(*once, steady), run(slow, once[1], steady)).compared
    assert [one.verdict for one in beside] == ["regressed", "unchanged", "unchanged"]
    assert beside[1].allowed > 2 * beside[2].allowed


def test_many_rows_of_one_turn_are_judged_by_how_they_scatter():
    before = [row(f"r{i}", spread=0.0, runs=1, bp=1.0, numpy=1.0) for i in range(20)]
    after = [row(f"r{i}", spread=0.0, runs=1, bp=1.05 + 0.05 * (-1) ** i, numpy=1.0) for i in range(20)]
    after[7] = row("r7", spread=0.0, runs=1, bp=5.0, numpy=1.0)
    compared = compare(run(*before), run(*after)).compared
    assert [one.row for one in compared if one.verdict == "regressed"] == ["linear r7 fp32"]


@pytest.mark.parametrize(
    ("changed", "unfit"),
    [
        ({"torch": "2.14"}, "torch, torch-compile, liger"),
        ({"numpy": "2.1"}, "numpy"),
        ({"liger-kernel": "0.6"}, "liger"),
        ({"python": "3.12"}, "numpy, torch, torch-compile, liger"),
        ({"CUDA driver": "13"}, "numpy, torch, torch-compile, liger"),
        ({"bp": "2", "native kernels": "no"}, ""),
        ({"torch": "2.14", "numpy": "2.1"}, "numpy, torch, torch-compile, liger"),
    ],
)
def test_peers_whose_versions_changed_are_no_controls(changed, unfit):
    peers = ["numpy", "torch", "torch_compile", "liger"]
    before = run(row("r", bp=1.0, **dict.fromkeys(peers, 1.0)))
    moved = {peer: 9.0 if peer.replace("_", "-") in unfit.split(", ") else 1.0 for peer in peers}
    after = run(row("r", bp=1.0, **moved), versions=VERSIONS | changed)
    comparison = compare(before, after)
    assert comparison.compared[0].verdict == "unchanged" and comparison.compared[0].slowdown == 1.0
    for name, new in changed.items():
        assert f"version {name}: {VERSIONS.get(name, 'not known')} before, {new} now" in comparison.notes
    said = [note for note in comparison.notes if note.startswith("tell nothing")]
    assert said == ([f"tell nothing of the machine's drift, since versions changed: {unfit}"] if unfit else [])


def test_other_rungs_are_listed_and_do_not_count():
    before = run(row("r", bp=1.0, bp_naive=2.0, numpy=1.0))
    comparison = compare(before, run(row("r", bp=1.0, bp_naive=6.0, numpy=1.0)))
    assert [one.verdict for one in comparison.compared] == ["unchanged", "regressed"] and not comparison.regressed
    assert "(regressed)   linear r fp32, bp linear=naive" in str(comparison)
    assert "compared: 1 unchanged" in str(comparison)
    gone = compare(before, run(row("r", bp=1.0, numpy=1.0)))
    assert [(one.verdict, one.reason) for one in gone.compared[1:]] == [
        ("not compared", "bp linear=naive took part in the earlier run only")
    ]


@pytest.mark.parametrize(
    ("before", "after", "verdict", "reason"),
    [
        ("timed", "wrong", "broken", "wrong: why not"),
        ("timed", "failed", "broken", "failed: why not"),
        ("checked", "failed", "broken", "failed: why not"),
        ("wrong", "timed", "mended", ""),
        ("failed", "checked", "mended", ""),
        ("checked", "checked", "not compared", "checked before, checked now"),
        ("failed", "wrong", "not compared", "failed before, wrong now"),
        ("timed", "left out", "not compared", "timed before, left out now"),
        ("timed", None, "not compared", "bp took part in the earlier run only"),
        (None, "failed", "not compared", "bp took part in the later run only"),
    ],
)
def test_what_a_status_says(before, after, verdict, reason):
    def of(status: str | None) -> Results:
        peer = Entry("numpy", False, "timed", times=times(1.0))
        if status is None:
            return run(Row("f", "b", {}, "fp32", 0.0, 0.0, [peer]))
        timed = times(1.0) if status == "timed" else None
        return run(Row("f", "b", {}, "fp32", 0.0, 0.0, [Entry("bp", True, status, "why\nnot", times=timed), peer]))

    comparison = compare(of(before), of(after))
    (one,) = comparison.compared
    assert (one.verdict, one.reason) == (verdict, reason) and one.slowdown is None and one.allowed is None
    assert comparison.regressed == (verdict == "broken")
    shown = {"broken": f"broken: f b fp32: {reason}", "mended": "1 mended"}.get(verdict, f"not compared: 1 ({reason})")
    assert shown in str(comparison)


def test_a_row_where_bp_took_no_part_is_not_listed():
    peers = run(row("r", numpy=1.0))
    assert compare(peers, peers).compared == []


def test_rows_of_one_run_only_are_listed():
    before = run(*(row(f"r{i}", bp=1.0, numpy=1.0) for i in range(8)))
    comparison = compare(before, run(row("new", bp=1.0), row("r7", bp=1.0, numpy=1.0)))
    assert comparison.only_before == [f"linear r{i} fp32" for i in range(7)]
    assert comparison.only_after == ["linear new fp32"] and not comparison.regressed
    text = str(comparison)
    assert "only in the earlier run: linear r0 fp32, linear r1 fp32, linear r2 fp32, linear r3 fp32" in text
    assert "linear r4 fp32, and 2 more\n" in text and "only in the later run: linear new fp32\n" in text


def test_empty_runs():
    empty, full = run(), run(row("r", bp=1.0))
    for before, after in ((empty, empty), (empty, full), (full, empty)):
        comparison = compare(before, after)
        assert comparison.compared == [] and not comparison.regressed
        assert str(comparison).endswith("no row was compared")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"device": "cuda"}, "got device cpu before and cuda now"),
        ({"machine": {"CPU": "b", "cores": "2"}}, "got CPU a before and b now"),
        ({"machine": {"CPU": "b", "cores": "4"}}, "got CPU a before and b now, cores 2 before and 4 now"),
        ({"machine": {"CPU": "a"}}, "got cores 2 before and not known now"),
        ({"machine": {"CPU": "a", "cores": "2", "GPU": "H200"}}, "got GPU not known before and H200 now"),
    ],
)
def test_another_machine_is_refused(about, message):
    with pytest.raises(ConfigurationError, match=f"expected results of the same machine and device, {message}$"):
        compare(run(), run(**about))


def test_what_else_differs_is_noted():
    before = run(settings={"seed": "1", "quick": "yes"})
    notes = compare(before, run(settings={"seed": "2"}, revision="def+", date="2027-01-01")).notes
    assert notes == [  # and not the seed, which is another in every run
        "setting quick: yes before, not known now",
        "revision: abc before, def+ now",
    ]


def test_it_prints_what_changed_worst_first():
    seconds = [5e-9, 1.5e-6, 2e-3, 3.0, 4.0]
    before = run(*(row(f"r{i}", bp=value, numpy=1.0) for i, value in enumerate(seconds)))
    factors = [3.0, 4.0, 0.25, 1.0, 1.0]
    rows = [row(f"r{i}", bp=v * f, numpy=1.0) for i, (v, f) in enumerate(zip(seconds, factors, strict=True))]
    rows[4] = replace(rows[4], entries=[Entry("bp", True, "wrong", "off by [bold]"), *rows[4].entries[1:]])
    comparison = compare(before, run(*rows))
    lines = [" ".join(line.split()) for line in str(comparison).replace(TIMES, "x").splitlines() if line]
    assert lines[0] == "row before after drift change allowed"
    assert lines[2] == "broken linear r4 fp32 4.00 s wrong"
    assert lines[3].startswith("regressed linear r1 fp32 1.50 µs 6.00 µs 1.00x +300.0 % +")
    assert lines[4].startswith("regressed linear r0 fp32 5.00 ns 15.0 ns 1.00x +200.0 % +")
    assert lines[5].startswith("improved linear r2 fp32 2.00 ms 500 µs 1.00x -75.0 % +")
    assert lines[6] == "broken: linear r4 fp32: wrong: off by [bold]"
    end = r"compared: 1 broken, 2 regressed, 1 improved, 1 unchanged; half of them would show a change of \+\d+\.\d %"
    assert re.fullmatch(end, lines[7])
    colored = StringIO()
    Console(file=colored, force_terminal=True, color_system="standard", width=100).print(comparison)
    narrow = StringIO()
    Console(file=narrow, width=70).print(comparison)
    assert "r1" in narrow.getvalue() and "\N{HORIZONTAL ELLIPSIS}" not in narrow.getvalue()  # rows are never cut off
    assert "\x1b[31mregressed" in colored.getvalue() and "\x1b[32mimproved" in colored.getvalue()


def test_rows_too_noisy_to_tell_are_said_to_be():
    noisy = [row(f"noisy {i}", spread=0.9, runs=5, bp=1.0, numpy=1.0) for i in range(2)]
    calm = [row(f"calm {i}", bp=1.0, numpy=1.0) for i in range(3)]
    text = str(compare(run(*noisy, *calm), run(*noisy, *calm)))
    assert "so noisy that twice the time would not show: 2 of the rows" in text
    assert "compared: 5 unchanged; half of them would show a change of +" in text
    text = str(compare(run(*noisy), run(*noisy)))
    assert "twice the time would not show: 2 of the rows" in text and text.endswith("compared: 2 unchanged")


# Quantiles of Student's t at 0.0005 and 0.005, as tables have them.
@pytest.mark.parametrize(
    ("freedom", "rare", "often"), [(6, 5.959, 3.707), (10, 4.587, 3.169), (math.inf, 3.291, 2.576)]
)
def test_a_bound_is_a_quantile_of_student(freedom, rare, often):
    assert noise.bound(4.0, freedom, 0.0005) == pytest.approx(2 * rare, rel=0.015)
    assert noise.bound(4.0, freedom, 0.005) == pytest.approx(2 * often, rel=0.015)


def residuals_of(turns: np.ndarray, added: float = 0.0, factor: float = 1.0) -> list[Residual]:
    """Differences of two contestants, of which `turns` are the errors that their turns show."""
    errors = np.hypot(math.sqrt(factor) * turns, math.sqrt(2.0) * added)
    drawn = errors * np.random.default_rng(0).standard_normal(len(turns))
    return [Residual(difference, error**2, 2.0) for difference, error in zip(drawn, turns, strict=True)]


def test_what_runs_add_is_recovered():
    turns = np.exp(np.random.default_rng(1).uniform(math.log(0.01), math.log(0.2), 2000))
    found = noise.excess(residuals_of(turns, added=0.05))
    assert math.sqrt(found.variance) == pytest.approx(0.05, rel=0.1) and found.factor < 1.2
    changed = [replace(one, difference=1.0) for one in residuals_of(turns[::10])]
    found = noise.excess([*residuals_of(turns, added=0.05), *changed])
    assert math.sqrt(found.variance) == pytest.approx(0.05, rel=0.25) and found.factor < 1.5
    found = noise.excess(residuals_of(turns))
    assert math.sqrt(found.variance) < 0.015 and found.factor < 1.1
    assert noise.excess(residuals_of(turns, factor=9.0)).factor == pytest.approx(9.0, rel=0.2)


def test_few_residuals_tell_more_noise_rather_than_less():
    generator = np.random.default_rng(0)
    draws = 0.05 * math.sqrt(2.0) * generator.standard_normal((200, 10))
    found = [noise.excess([Residual(d, 0.0, 2.0) for d in drawn]).variance for drawn in draws]
    assert np.mean(np.array(found) > 0.05**2) > 0.75
    assert noise.excess([]) == noise.excess(residuals_of(np.ones(7), added=9.0)) == noise.Excess(1.0, noise.LAYOUT**2)
    assert noise.excess([Residual(50.0, 0.0, 1.0)] * 9).variance > 1000.0


def test_excess_is_part_of_the_error():
    assert noise.Excess(2.0, 5.0).on(Change(0.3, 1.0, 4.0)) == Change(0.3, 7.0, pytest.approx(49.0))


def test_the_spread_of_turns_is_that_of_a_normal_distribution():
    generator = np.random.default_rng(0)
    for runs in (5, 15, 101):
        turns = np.exp(0.1 * generator.standard_normal((2000, runs)))
        low, median, high = np.quantile(turns, [0.2, 0.5, 0.8], axis=1)
        found = [Times(m, a, b, runs) for m, a, b in zip(median, low, high, strict=True)]
        assert np.mean([math.sqrt(noise.usual_variance([one])) for one in found]) == pytest.approx(0.1, rel=0.07)
        # The error of a median, from one run to another of two.
        changes = [noise.change(one, other, None) for one, other in zip(found[::2], found[1::2], strict=True)]
        error = math.sqrt(np.mean([change.variance for change in changes]))
        assert 0.93 < error / np.std([change.log for change in changes]) < 1.25
    assert noise.usual_variance([times(1.0, 0.0, 1)]) is None


def test_errors_of_a_sum_add():
    sum_of = Change(0.3, 3.0, 5.0).plus(4.0, math.inf)
    assert (sum_of.log, sum_of.variance, sum_of.freedom) == (0.3, 7.0, pytest.approx(49.0 / (9.0 / 5.0)))
    assert Change(0.0, 0.0, 2.5).plus(0.0, 2.0).freedom == math.inf


def simulated(generator: np.random.Generator, base: np.ndarray, spreads: np.ndarray, slow: dict[int, float]) -> Results:
    """A run with drift from run to run and row to row, and log-normal turns. base: seconds by row and contestant."""
    rows = []
    run_drift = generator.normal(0.0, 0.1)
    for index, (seconds, spread) in enumerate(zip(base, spreads, strict=True)):
        drift = run_drift + generator.normal(0.0, 0.1)
        turns = np.exp(generator.normal(drift, spread, (len(seconds), 15))) * seconds[:, None]
        turns[0] *= slow.get(index, 1.0)
        low, median, high = np.quantile(turns, [0.2, 0.5, 0.8], axis=1)
        names = ["bp", "numpy", "torch"][: len(seconds)]
        found = [Times(m, a, b, 15) for m, a, b in zip(median, low, high, strict=True)]
        entries = [Entry(n, n == "bp", "timed", times=t) for n, t in zip(names, found, strict=True)]
        rows.append(Row("f", f"b{index}", {}, "fp32", 0.0, 0.0, entries))
    return run(*rows)


def test_simulated_runs_give_few_false_alarms_and_find_what_is_slow():
    generator = np.random.default_rng(0)
    alarms, found, tables, rows = 0, 0, 20, 100
    for _ in range(tables):
        base = np.exp(generator.normal(-8.0, 1.0, (rows, 3)))
        spreads = np.exp(generator.uniform(math.log(0.03), math.log(0.2), rows))
        spreads[7] = 0.05
        before = simulated(generator, base, spreads, {})
        alarms += compare(before, simulated(generator, base, spreads, {})).regressed
        found += compare(before, simulated(generator, base, spreads, {7: 1.3})).compared[7].verdict == "regressed"
    assert alarms <= 2 * FALSE_ALARMS * tables + 1 and found >= 0.9 * tables
