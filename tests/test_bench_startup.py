"""Benchmarks of fresh processes: they run, nothing is compared, and one that fails says so."""

import importlib

import numpy as np
import pytest

from bp.bench.catalogue import load
from bp.bench.contestants import players
from bp.bench.libraries import open_library
from bp.bench.worker import Case, Worker

KINDS = {kind.__name__: kind for kind in load("startup")}
startup = importlib.import_module("bp.benchmarks.bench_startup")


def contestant(path, name: str, method: str, **sizes: str):
    worker = Worker(open_library("bp", "cpu"))
    worker.begin(Case("startup", name, sizes, "fp32", seed=0))
    assert worker.reference(str(path)) == 0
    return worker.prepare(method, "", str(path))


@pytest.mark.parametrize(("name", "method"), [("Interpreter", "bp"), ("Import", "bp"), ("Import", "numpy")])
def test_processes_run_and_nothing_is_compared(tmp_path, name, method):
    path = tmp_path / "reference.npz"
    np.savez(path, count=1, ends=0)  # what the case before has left
    made = contestant(path, name, method)
    assert made.error is None
    assert not path.exists()
    assert made.run() is None


def test_a_first_step(tmp_path):
    assert contestant(tmp_path / "none", "FirstStep", "bp", device="cpu", caches="warm").run() is None


def test_a_first_step_without_compiled_kernels_has_an_empty_cache_each_time(monkeypatch):
    caches = []

    def process(code: str, **environment: str) -> None:
        assert 'device="emulator"' in code
        caches.append(environment.get("BP_CACHE_DIR"))

    monkeypatch.setattr(startup, "process", process)
    cold = KINDS["FirstStep"](device="emulator", caches="cold").bp()
    cold(), cold()
    KINDS["FirstStep"](device="emulator", caches="warm").bp()()
    assert caches[0] != caches[1] and None not in caches[:2]
    assert caches[2] is None


def test_pytorch_takes_part_where_it_has_something_to_do(monkeypatch):
    codes = []
    monkeypatch.setattr(startup, "process", codes.append)
    step = KINDS["FirstStep"]
    assert step(device="emulator", caches="warm").torch() is None
    assert step(device="cuda", caches="cold").torch() is None
    step(device="cpu", caches="warm").torch()()
    assert 'device="cpu"' in codes[0]
    assert [player.name for player in players(KINDS["Import"], "cpu", [], None, True)] == [
        "bp",
        "bp cpu=numpy",
        "numpy",
        "torch",
    ]


def test_a_first_step_of_pytorch():
    pytest.importorskip("torch", reason="PyTorch is the peer")
    assert KINDS["FirstStep"](device="cpu", caches="warm").torch()() is None


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: division by zero$"):
        startup.process("1 / 0")
    with pytest.raises(RuntimeError, match="exit code 3"):
        startup.process("import os; os._exit(3)")
