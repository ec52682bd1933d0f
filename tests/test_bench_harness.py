"""The harness of the benchmarks: what is right is timed, and whatever is not is reported, not timed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bp.bench import check, contest
from bp.bench.contestants import players
from bp.bench.drawing import BLOCK, Draw
from bp.bench.libraries import LIBRARIES
from bp.bench.processes import Failed, Pool, Process
from bp.bench.results import Limits, Results, Row
from bp.bench.run import Plan, Run, judged
from bp.bench.worker import Case

PLANTED = str(Path(__file__).parent / "bench_planted.py")
SIZES = {
    "Known": 1000,
    "Faulty": 1000,
    "Crashing": 1000,
    "InPlace": 1000,
    "Large": 20,
    "Broken": 1000,
    "Unreferenced": 1000,
}


def run(monkeypatch: pytest.MonkeyPatch, name: str, **settings: object) -> Results:
    """One planted benchmark on the CPU, without the limits of the machine, which take seconds."""
    monkeypatch.setattr(Run, "measure_limits", lambda self: Limits([(8000.0, 1e9)]))
    sizes = {name: [{"n": SIZES[name]}]}
    plan = Plan([PLANTED], "cpu", sizes=sizes, repeats=3, seconds=1.0, seed=1)
    return Run(dataclasses.replace(plan, **settings)).results("")


def only_row(results: Results) -> Row:
    (row,) = results.rows
    return row


def test_a_known_duration_and_known_bytes(monkeypatch):
    row = only_row(run(monkeypatch, "Known"))
    ours, theirs = row.entry("bp"), row.entry("numpy")
    # Never shorter than the work itself; how much longer depends on what else this machine does.
    assert ours.times.low >= 0.004
    assert theirs.times.low >= 0.012
    assert ours.times.low <= ours.times.median <= ours.times.high
    assert ours.times.runs == 3
    assert ours.facts == {"launches": 7.0}
    assert row.nbytes == 8000
    assert row.limit_seconds == pytest.approx(8000 / 1e9)
    assert row.percent == pytest.approx(100 * 8e-6 / ours.times.median)
    assert row.ratio == pytest.approx(theirs.times.median / ours.times.median)
    assert (row.best_peer, row.bound) == ("numpy", "memory")


def test_what_is_wrong_is_reported_and_not_timed(monkeypatch):
    row = only_row(run(monkeypatch, "Faulty"))
    status = {entry.contestant: entry.status for entry in row.entries}
    assert status == {
        "bp": "timed",
        "bp cpu=numpy": "timed",
        "numpy": "timed",
        "numpy-wrong": "wrong",
        "numpy-nan": "wrong",
        "numpy-short": "wrong",
        "numpy-silent": "wrong",
        "numpy-none": "wrong",
        "numpy-raises": "failed",
    }
    for entry in row.entries:
        assert (entry.times is not None) == (entry.status == "timed"), entry.contestant
        assert (entry.reason != "") == (entry.status != "timed"), entry.contestant
    assert row.entry("numpy-raises").reason == "RuntimeError: out of cheese"
    assert row.entry("numpy-wrong").error > 1 > row.entry("numpy").error
    assert row.best_peer == "numpy"


def test_what_crashes_takes_nobody_along(monkeypatch):
    monkeypatch.setattr(contest, "PREPARE_SECONDS", 5.0)
    results = run(monkeypatch, "Crashing", repeats=5)
    row = only_row(results)
    status = {entry.contestant: entry.status for entry in row.entries}
    assert status == {
        "bp": "timed",
        "bp cpu=numpy": "timed",
        "numpy": "timed",
        "numpy-exits": "failed",
        "numpy-faults": "failed",
        "numpy-hangs": "failed",
        "numpy-later": "failed",
    }
    assert row.entry("numpy-exits").reason == "its process ended with code 3"
    assert "SIGSEGV" in row.entry("numpy-faults").reason
    assert row.entry("numpy-hangs").reason == "took longer than 5 s"
    assert "code 4" in row.entry("numpy-later").reason


def test_a_library_that_does_not_start_takes_nobody_along(monkeypatch):
    entrant = LIBRARIES["numpy"]._replace(first="bp\n    raise OSError('no such library')")
    monkeypatch.setitem(LIBRARIES, "numpy", entrant)
    results = run(monkeypatch, "Known")
    entry = only_row(results).entry("numpy")
    assert (entry.status, entry.times) == ("not installed", None)
    assert entry.reason == "its process ended with code 1: OSError: no such library"
    assert results.missing == {"numpy": entry.reason}
    assert only_row(results).ours.status == "timed"


def test_a_device_that_failed_begins_anew(monkeypatch):
    row = only_row(run(monkeypatch, "Broken"))
    status = {entry.contestant: entry.status for entry in row.entries}
    assert status == {"bp": "timed", "bp cpu=numpy": "timed", "numpy": "timed", "numpy-breaks": "failed"}
    assert row.entry("numpy-breaks").reason == "RuntimeError: wrong access"


def test_a_reference_that_crashes_fails_its_row_alone(monkeypatch):
    (row,) = run(monkeypatch, "Unreferenced").rows
    assert {entry.status for entry in row.entries} == {"failed"}
    assert row.ours.reason == "the float64 reference: its process ended with code 5"


def test_memory_is_given_back_after_a_row(tmp_path):
    case = Case(PLANTED, "Known", {"n": 1000}, "fp32", 1)
    with Pool("cpu", tmp_path) as pool:
        alone = contest.Contest(pool, case, players(case.make().__class__, "cpu", (), (), False)[:1], False, "")
        alone.prepare()
        alone.end()
        with pytest.raises(Failed, match="KeyError"):
            pool.get(("bp", ())).ask("turn", 60.0, name="bp", cold=False)


def test_an_interrupted_start_leaves_no_process(monkeypatch, tmp_path):
    started = []

    def interrupted(self):
        started.append(self._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(Process, "wait_until_ready", interrupted)
    with pytest.raises(KeyboardInterrupt), Pool("cpu", tmp_path) as pool:
        pool.get(("numpy", ()))
    assert started[0].returncode is not None


def test_work_in_place_is_checked_too(monkeypatch):
    row = only_row(run(monkeypatch, "InPlace"))
    status = {entry.contestant: entry.status for entry in row.entries}
    assert status == {"bp": "timed", "bp cpu=numpy": "timed", "numpy": "timed", "numpy-silent": "wrong"}


def test_a_large_array_is_checked_at_both_ends(monkeypatch):
    row = only_row(run(monkeypatch, "Large", sizes={"Large": [{"n": check.WHOLE // 3 + 1}]}, repeats=1))
    status = {entry.contestant: entry.status for entry in row.entries}
    assert status == {"bp": "timed", "bp cpu=numpy": "timed", "numpy": "timed", "numpy-wrong": "wrong"}


# Arrays ---------------------------------------------------------------------------------------------------


def test_every_process_draws_the_same_arrays():
    first, second, other = (Draw(seed, "fp32").normal(3, 5).whole() for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(10,), (7, 3), (1, 4), (5, 2, 3)])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_ends_are_those_of_the_whole(shape, count):
    drawn = Draw(0, "fp32").normal(*shape)
    whole = drawn.whole()
    picked = np.r_[0 : min(count, len(whole)), max(len(whole) - count, 0) : len(whole)]
    np.testing.assert_array_equal(drawn.ends(count), whole[picked])


def test_a_large_array_repeats_its_block():
    drawn = Draw(0, "fp32").normal(BLOCK // 2 + 1, 3)
    whole = drawn.whole()
    assert drawn.block.size == BLOCK
    np.testing.assert_array_equal(whole.reshape(-1)[BLOCK:], drawn.block[: whole.size - BLOCK])
    np.testing.assert_array_equal(drawn.ends(3), whole[[0, 1, 2, -3, -2, -1]])


def test_empty_arrays_can_be_drawn():
    assert Draw(0, "fp32").normal(0, 3).whole().shape == (0, 3)


def test_sixteen_bits_are_rounded_before_the_reference_sees_them():
    pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 without ml_dtypes")
    draw = Draw(0, "bf16")
    assert str(draw.normal(4).block.dtype) == "bfloat16"
    assert draw.normal(4, wide=True).block.dtype == np.float32


# Right or wrong -------------------------------------------------------------------------------------------


def test_an_error_is_in_units_of_what_is_allowed():
    expected = np.linspace(1, 2, 100)
    inside = expected * (1 + 0.9 * check.allowed("fp32", 1))
    assert check.error([inside], [expected], "fp32", 1) == pytest.approx(0.9)
    assert check.error([expected], [expected], "fp32", 1) == 0
    assert check.error([expected[:-1]], [expected], "fp32", 1) == np.inf
    assert check.error([], [expected], "fp32", 1) == np.inf
    assert check.error([expected, -expected], [expected, None], "fp32", 1) == 0


def test_what_is_not_finite_has_to_be_where_it_is_expected():
    expected = np.array([1.0, np.nan, np.inf])
    assert check.error([np.array([1.0, np.nan, np.inf])], [expected], "fp32", 1) == 0
    assert check.error([np.array([1.0, 2.0, np.inf])], [expected], "fp32", 1) == np.inf
    assert check.error([np.array([np.nan, np.nan, np.inf])], [expected], "fp32", 1) == np.inf


def test_coarser_precisions_allow_more():
    allowed = [check.allowed(precision, 64) for precision in ("fp64", "fp32", "tf32", "fp16", "bf16")]
    assert allowed == sorted(allowed)


# Limits ---------------------------------------------------------------------------------------------------


def row_of(flops: float, nbytes: float) -> Row:
    return Row("f", "b", {"n": 1}, "fp32", flops, nbytes, [])


def test_the_tighter_limit_binds():
    limits = Limits([(1e3, 4e9), (1e6, 1e9)], {"fp32": 1e12})
    assert limits.seconds(1e9, 1e6, "fp32") == (1e-3, "memory")
    assert limits.seconds(1e10, 1e6, "fp32") == (1e-2, "compute")
    assert limits.seconds(1e10, 0, "bf16") == (None, "")
    assert limits.bandwidth(10) == 4e9  # in a cache
    assert limits.bandwidth(1e9) == 1e9  # beyond what was measured


def test_a_row_without_times_has_no_figures():
    row = judged(row_of(0, 1e6), Limits([(1e6, 1e9)]))
    assert (row.limit_seconds, row.bound, row.percent, row.ratio) == (1e-3, "memory", None, None)
    assert judged(row_of(0, 0), Limits()).limit_seconds is None


def test_no_row_begins_after_the_time_is_up(monkeypatch):
    row = only_row(run(monkeypatch, "Known", budget=0.0))
    assert {(entry.status, entry.reason) for entry in row.entries} == {("left out", "no time was left")}
    assert row.nbytes == 8000
