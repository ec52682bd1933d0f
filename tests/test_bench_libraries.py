"""What each library of the benchmarks has to offer: arrays there and back, poison, addresses, a clock."""

import importlib.resources
import importlib.util
import time
from unittest import mock

import numpy as np
import pytest
import stand_in_cupy

from bp.bench.drawing import Draw, Drawn
from bp.bench.libraries import LIBRARIES, library, open_library
from bp.cuda import gpu
from bp.errors import ConfigurationError


@pytest.fixture(params=["bp on cpu", "numpy on cpu", "torch on cpu", "bp on emulator", "bp on cuda"])
def opened(request, monkeypatch):
    """A library on a device; CUDA is a stand-in for CuPy on the emulator."""
    name, _, device = request.param.split()
    if name == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    monkeypatch.setattr(library.DeviceClock, "FLUSH_BYTES", 4096)
    if device == "cuda":
        stand_in_cupy.install(monkeypatch)
        own = gpu.GPUDevice()
        monkeypatch.setattr("bp.bench.libraries.ours.find_device", lambda name: own)
        monkeypatch.setattr("bp.bench.libraries.with_cupy.versions", lambda: {"cupy": "a stand-in"})
        pool = mock.Mock(total_bytes=mock.Mock(return_value=4096))
        monkeypatch.setattr(own.cupy, "get_default_memory_pool", lambda: pool, raising=False)
    found = open_library(name, device)
    with found.running("fp32"):
        yield found


def test_arrays_go_there_and_back(opened):
    drawn = Draw(0, "fp32").normal(7, 3)
    there = opened.place(drawn)
    assert tuple(there.shape) == (7, 3)
    back = opened.host(there, None)
    assert back.dtype == np.float64
    np.testing.assert_array_equal(back, drawn.whole())
    np.testing.assert_array_equal(opened.host(there, 2), drawn.ends(2))
    np.testing.assert_array_equal(opened.host(there, 4), drawn.whole())


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 17])
def test_a_block_is_repeated_to_the_whole(opened, rows):
    drawn = Drawn(np.arange(3, dtype=np.float32), (rows, 2))
    np.testing.assert_array_equal(opened.host(opened.place(drawn), None), np.resize([0.0, 1.0, 2.0], (rows, 2)))


def test_arrays_of_integers_and_without_elements(opened):
    draw = Draw(0, "fp32")
    labels, empty = draw.integers(10, 6), draw.normal(0, 3)
    np.testing.assert_array_equal(opened.host(opened.place(labels), None), labels.whole())
    assert opened.host(opened.place(empty), None).shape == (0, 3)


def test_two_placings_share_no_memory(opened):
    drawn = Draw(0, "fp32").normal(64)
    first, second = opened.place(drawn), opened.place(drawn)
    (a, b), (c, d) = opened.span(first), opened.span(second)
    assert b - a == d - c == 256
    assert b <= c or d <= a
    assert opened.span(first[16:32])[0] < b and opened.span(first[16:32])[1] > a
    opened.poison(first)
    np.testing.assert_array_equal(opened.host(second, None), drawn.whole())


def test_poison_is_no_result(opened):
    draw = Draw(0, "fp32")
    floats, integers = opened.place(draw.normal(5)), opened.place(draw.integers(3, 5))
    opened.poison(floats)
    opened.poison(integers)
    assert np.isnan(opened.host(floats, None)).all()
    assert (opened.host(integers, None) < 0).all()


@pytest.mark.parametrize("cold", [True, False])
def test_the_clock_counts_the_runs(opened, cold, monkeypatch):
    monkeypatch.setattr(library, "WARM_UP", 0.0)
    calls = []
    assert opened.seconds(lambda: calls.append(1), 5, cold) > 0
    # Where caches cannot be emptied, and where they shall not be, a first run warms them.
    assert len(calls) in (5, 6, 7)


def test_a_graph_launches_its_works_and_only_a_gpu_has_one(opened):
    calls = []
    if opened.device != "cuda":
        with pytest.raises(ConfigurationError, match=f"device '{opened.device}' has no graphs of launches"):
            opened.graph([lambda: calls.append(1)])
        return
    x = opened.place(Draw(0, "fp32").zeros(4))
    replay = opened.graph([lambda: opened.own.fill(x, 1.0), lambda: opened.own.fill(x[:2], 2.0)])
    np.testing.assert_array_equal(opened.host(x, None), np.zeros(4))  # what is captured has not run
    replay()
    np.testing.assert_array_equal(opened.host(x, None), [2, 2, 1, 1])


def test_threads_are_awake_before_the_clock_starts(monkeypatch):
    monkeypatch.setattr(library, "WARM_UP", 0.01)
    begun, calls = time.perf_counter(), []
    open_library("numpy", "cpu").seconds(lambda: calls.append(time.perf_counter() - begun), 3, False)
    assert len(calls) > 3
    assert calls[-3] >= 0.01


def test_memory_can_be_watched(opened):
    opened.start_peak()
    kept = opened.place(Draw(0, "fp32").normal(1000))
    peak = opened.peak_bytes()
    assert peak is None or peak >= 0
    del kept


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("numpy", "cuda", "NumPy computes on the CPU"),
        ("cupy", "cpu", "CuPy computes on a GPU"),
        ("triton", "cpu", "Triton compiles for GPUs"),
        ("liger", "cpu", "for GPUs"),
        ("torch", "emulator", "does not run on the emulator|not installed"),
    ],
)
def test_what_cannot_take_part_says_why(name, device, expected):
    with pytest.raises(ConfigurationError, match=expected):
        open_library(name, device)


def test_the_table_knows_every_file():
    files = {entrant.file for entrant in LIBRARIES.values()}
    here = {path.stem for path in importlib.resources.files("bp.bench.libraries").iterdir() if path.suffix == ".py"}
    assert here == files | {"__init__", "library"}


def test_every_case_of_a_benchmark_is_compiled(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    library, compiled, compile = open_library("torch", "cpu"), [], torch.compile

    def backend(graph, example):
        compiled.append(example)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda work, **settings: compile(work, backend=backend, **settings))

    def work_on(x):
        return lambda: x.exp()

    for n in range(1, 13):  # beyond what PyTorch compiles of one function
        library.release()
        library.compiled(work_on(torch.zeros(n)))()
    assert len(compiled) == 12
