"""Who takes part in a row of benchmarks, and that a rung which was asked for is the one that runs."""

from pathlib import Path

import pytest

from bp.bench import Benchmark, only_on
from bp.bench.contestants import known_peers, parse_use, players
from bp.bench.results import Row
from bp.bench.run import Plan, Run
from bp.cpu import native
from bp.cuda.choice import RUNGS
from bp.errors import ConfigurationError

OF_RUNGS = str(Path(__file__).parent / "bench_rungs.py")


class Everybody(Benchmark):
    """A method for every library; what they do does not matter here."""

    name = "everybody"

    def bp(self): ...
    def cupy(self): ...
    def liger(self): ...
    def numpy(self): ...
    def numpy_threads(self): ...
    def torch(self): ...
    def torch_nchw(self): ...
    def triton(self): ...

    @only_on("cuda", "emulator")
    def bp_graph(self): ...

    @only_on("cuda")
    def torch_cublaslt(self): ...


class Uncompiled(Everybody):
    compiles = False


class OnLadder(Everybody):
    ladder = "linear"


class Alone(Benchmark):
    name = "alone"

    def bp(self): ...


class WithoutOurs(Benchmark):
    name = "without ours"

    def torch(self): ...


def names(kind, device, uses=(), peers=None, compile=True):
    return [player.name for player in players(kind, device, uses, peers, compile)]


# Every rung but the library, which is a peer already, and what rounds further than the precision of a row.
LADDER = [f"bp linear={rung.name}" for rung in RUNGS["linear"] if rung.name not in ("cublas", "fp8")]
ON_GPU = ["cupy", "liger", "torch", "torch-compile", "torch-cublaslt", "torch-nchw", "triton"]


@pytest.mark.parametrize(
    ("kind", "device", "expected"),
    [
        (Everybody, "cpu", ["bp", "bp cpu=numpy", "numpy", "numpy-threads", "torch", "torch-compile", "torch-nchw"]),
        (Everybody, "cuda", ["bp", "bp graph", *ON_GPU]),
        (Everybody, "emulator", ["bp", "bp graph"]),
        (Uncompiled, "cpu", ["bp", "bp cpu=numpy", "numpy", "numpy-threads", "torch", "torch-nchw"]),
        (OnLadder, "cpu", ["bp", "bp cpu=numpy", "numpy", "numpy-threads", "torch", "torch-compile", "torch-nchw"]),
        (OnLadder, "cuda", ["bp", *LADDER, "bp graph", *ON_GPU]),
        (OnLadder, "emulator", ["bp", *LADDER, "bp graph"]),
        (Alone, "cpu", ["bp", "bp cpu=numpy"]),
        (Alone, "cuda", ["bp"]),
        (WithoutOurs, "cuda", ["torch", "torch-compile"]),
    ],
)
def test_who_takes_part(kind, device, expected):
    assert names(kind, device) == expected


def test_nothing_is_compiled_where_nobody_asks():
    assert "torch-compile" not in names(Everybody, "cuda", compile=False)


def test_peers_are_chosen_and_bp_always_takes_part():
    assert names(OnLadder, "cuda", peers=["cupy", "torch-compile"]) == [
        "bp",
        *LADDER,
        "bp graph",
        "cupy",
        "torch-compile",
    ]
    assert names(Everybody, "cpu", peers=["torch"]) == ["bp", "bp cpu=numpy", "torch"]
    assert names(Everybody, "cpu", peers=[]) == ["bp", "bp cpu=numpy"]


def test_peers_have_the_names_that_rows_show():
    assert known_peers([Everybody, Alone]) == [*ON_GPU[:2], "numpy", "numpy-threads", *ON_GPU[2:]]
    assert "bp-graph" not in known_peers([Everybody])


def test_each_use_makes_one_contestant_of_its_own_environment():
    found = {player.name: dict(player.environment) for player in players(Alone, "cuda", USES, None, True)}
    assert found == {
        "bp": {},
        "bp linear=naive": {"BP_LINEAR": "naive"},
        "bp linear=naive,conv=direct": {"BP_LINEAR": "naive", "BP_CONV": "direct"},
        "bp conv=tiled": {"BP_CONV": "tiled"},
    }


USES = ["linear=naive", "linear=naive,conv=direct", "conv=tiled"]


def test_on_a_ladder_only_its_own_rungs_take_part():
    ours = [name for name in names(OnLadder, "cuda", USES, peers=[]) if "=" in name]
    asked = ["bp linear=naive", "bp linear=naive,conv=direct"]
    assert ours == [*asked, *(name for name in LADDER if name not in asked)]
    ours = [name for name in names(OnLadder, "cuda", ["linear=cublas"], peers=[]) if "=" in name]
    assert ours == ["bp linear=cublas", *LADDER]


def test_the_rungs_of_the_cpu():
    assert names(Alone, "cpu", ["cpu=native", "cpu=numpy"]) == ["bp", "bp cpu=native", "bp cpu=numpy"]
    assert parse_use("cpu=native", "cpu") == {"BP_NATIVE": "1"}
    assert parse_use("cpu=numpy", "cpu") == {"BP_NATIVE": "0"}


@pytest.mark.parametrize(
    ("use", "device", "reason"),
    [
        ("linear=fast", "cuda", r"linear=cublas\|.*naive.*; conv=.*direct.*\), got 'linear=fast'"),
        ("norm=naive", "emulator", "got 'norm=naive'"),
        ("linear", "cuda", "got 'linear'"),
        ("", "cuda", "got ''"),
        ("linear=naive,", "cuda", "got ''"),
        ("linear=naive", "cpu", r"on device 'cpu' cpu=numpy\|native\), got 'linear=naive'"),
        ("cpu=numpy", "cuda", "on device 'cuda' .* got 'cpu=numpy'"),
        ("linear=naive,linear=tiled", "cuda", "one rung of 'linear' .* got 'linear=naive,linear=tiled'"),
    ],
)
def test_a_rung_that_there_is_not_is_refused(use, device, reason):
    with pytest.raises(ConfigurationError, match=f"^--use expected .*{reason}"):
        parse_use(use, device)


def facts(name: str, device: str, uses: list[str]) -> dict[str, dict[str, float]]:
    """By contestant, what the first row of a benchmark in bench_rungs.py tells of its kernels."""
    plan = Plan([OF_RUNGS], device, uses=uses, sizes={name: [{"n": 5}]}, repeats=1, seconds=1.0)
    (row,) = Run(plan).results("").rows
    assert isinstance(row, Row)
    assert {entry.status for entry in row.entries} <= {"checked", "timed", "left out"}
    for entry in row.entries:
        if entry.status == "left out":
            assert f"BP_LINEAR={entry.contestant.rpartition('=')[2]} cannot compute " in entry.reason
    return {entry.contestant: entry.facts for entry in row.entries if entry.status != "left out"}


def test_the_rungs_of_a_ladder_run_and_those_that_cannot_are_left_out():
    found = facts("Product", "emulator", [])
    assert found["bp linear=naive"] == {"gemm_naive": 1.0}
    assert found["bp linear=tiled"] == {"gemm_nt": 1.0}
    assert "bp linear=wgmma" not in found  # of float32


def test_a_rung_that_was_asked_for_runs_in_whatever_it_matters_to():
    assert facts("Both", "emulator", ["linear=naive", "linear=naive,conv=tiled"]) == {
        "bp": {"gemm_nt": 1.0, "direct_forward": 1.0},
        "bp linear=naive": {"gemm_naive": 1.0, "direct_forward": 1.0},
        "bp linear=naive,conv=tiled": {"gemm_naive": 1.0, "conv_forward": 1.0},
    }


def test_numpy_is_the_rung_below_the_native_kernels(monkeypatch):
    monkeypatch.setattr(Run, "measure_limits", lambda self: self.limits)  # takes seconds
    built = float(native.kernels is not None)
    assert facts("Product", "cpu", []) == {
        "bp": {"native kernels": built},
        "bp cpu=numpy": {"native kernels": 0.0},
    }
