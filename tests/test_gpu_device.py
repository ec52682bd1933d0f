"""The device "cuda" on a stand-in for CuPy: what it hands to CuPy, and in which order. No GPU is needed, none is shown.

The whole table runs that way too: BP_TEST_DEVICE=cuda python -m pytest -p stand_in_cupy tests/test_cuda_norm.py
"""

from types import SimpleNamespace

import numpy as np
import pytest
import stand_in_cupy

import bp
import bp.ops.activation as ops
import bp.ops.loss as loss_ops
from bp.cuda import gpu, requirements
from bp.ops.array import known_dtype
from bp.ops.device import new_control


@pytest.fixture
def device(monkeypatch):
    stand_in_cupy.install(monkeypatch)
    return gpu.GPUDevice()


@pytest.fixture
def log(device, monkeypatch):
    entries = []
    monkeypatch.setattr(stand_in_cupy, "log", entries)
    return entries


def test_arguments_are_scalars_of_exactly_the_declared_size(device, log):
    x = device.from_host(np.arange(-3.0, 3.0, dtype=np.float32))
    del log[:]
    y = ops.leaky_relu(x, 0.5)
    ((_, name, _, arguments),) = log
    assert name == "leaky_relu_forward"
    assert [type(a) for a in arguments] == [np.uint64, np.uint64, np.int64, np.float32]
    assert arguments[0] == device.pointer(x)
    np.testing.assert_array_equal(device.to_host(y), np.where(np.arange(-3, 3) < 0, 0.5, 1) * np.arange(-3, 3))


def test_an_absent_array_is_a_null_pointer(device, log):
    logits, labels = device.from_host(np.zeros((2, 3), np.float32)), device.from_host(np.array([0, 2]))
    loss_ops.softmax_cross_entropy(logits, labels, None, new_control(device), -100, 0.0, False)
    arguments = next(entry[3] for entry in log if entry[0] == "launch" and "cross_entropy" in entry[1])
    assert sum(type(a) is np.uint64 and a == 0 for a in arguments) == 2  # no weights, no gradient


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3)])
def test_arrays_go_there_and_back(device, shape, dtype):
    host = np.ones(shape, known_dtype(dtype))
    there = device.from_host(host)
    assert there.shape == shape and there.dtype == host.dtype
    back = device.to_host(there)
    assert back.dtype == host.dtype and back.shape == shape
    np.testing.assert_array_equal(back, host)


def test_what_a_kernel_declares_counts_against_its_dynamic_shared_memory(device):
    """50,304 columns of float32 take both; asking for all of a block's would be refused."""
    logits, labels = device.zeros((1, 50304), np.float32), device.from_host(np.array([3]))
    losses, _ = loss_ops.softmax_cross_entropy(logits, labels, None, new_control(device), -100, 0.0, True)
    assert device.to_host(losses)[0] == pytest.approx(np.log(50304))
    (function,) = (f for f in stand_in_cupy._functions if f.name == "softmax_cross_entropy_by_large_block")
    assert function.dynamic_shared == stand_in_cupy.MOST_SHARED - stand_in_cupy.STATIC_SHARED


def test_a_captured_graph_runs_when_it_is_replayed_and_not_before(device):
    x = device.from_host(np.arange(4, dtype=np.float32))
    with device.running("fp32"):
        with device.recording() as ledger:
            y = ops.add(x, x)
        device.fill(y, 0)
        replay = device.replay(ledger)
        np.testing.assert_array_equal(device.to_host(y), np.zeros(4))
        device.fill(x, 3)
        replay()
        np.testing.assert_array_equal(device.to_host(y), np.full(4, 6))
    with pytest.raises(RuntimeError, match="default"):
        device.replay(ledger)


def test_an_array_that_cupy_makes_itself_within_a_step_is_noted(device):
    x = device.zeros((3,), np.float32)
    with device.recording() as ledger:
        ops.relu(x)
        with device.recording() as inner:  # of a user, within that of the graph
            pass
    assert ledger.transfer is None and inner.transfer is None
    with device.recording() as ledger:
        device.cupy.empty((3,), np.float32)
    assert ledger.transfer == "CuPy made an array of its own"


def test_a_batch_is_staged_in_order(device, log):
    with device.running("fp32"):
        place = device.stage((2, 3), np.float32)
        assert log == [("record", place._read, device.stream)]  # not before what uses that memory now
        del log[:]
        for value in (1.0, 2.0):
            place.put(np.full((2, 3), value, np.float32))
            assert [entry[:-1] if entry[0] == "launch" else entry for entry in log] == [
                ("synchronize", place._whole),
                ("wait", place._read, place._copies),
                ("set", place._staging, place._copies),
                ("record", place._whole, place._copies),
                ("wait", place._whole, device.stream),
                ("launch", "copy_bytes", device.stream),
                ("record", place._read, device.stream),
            ]
            np.testing.assert_array_equal(device.to_host(place.static), np.full((2, 3), value))
            del log[:]
        device.stage((0, 3), np.float32).put(np.zeros((0, 3), np.float32))
        assert place._copies.non_blocking and not device.stream.non_blocking
        whole = place._whole
        del log[:], place
        assert log == [("synchronize", whole)]  # before its pinned memory serves another


def test_a_training_run_is_that_of_the_emulator(device):
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    data, weights = bp.Loader(bp.ArrayDataset(x, (x[:, 0] > 0).astype(np.int64)), 32), []
    for where in (device, "emulator"):
        model = bp.Sequential(bp.Linear(6, 9), bp.ReLU(), bp.Dropout(0.1), bp.Linear(9, 2))
        settings = {"device": where, "precision": "bf16", "cuda_graph": "on", "progress": False}
        trainer = bp.Trainer(model, bp.CrossEntropyLoss(), bp.Adagrad(initial_accumulator_value=0.1), **settings)
        trainer.fit(data, max_steps=8)
        assert trainer._graph.replaying
        weights.append(bp.checkpoint.model_arrays(model))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)


def test_cupy_that_finds_no_gpu_is_one_line(device, monkeypatch):
    monkeypatch.setattr(device.cupy.cuda, "is_available", lambda: False)
    assert str(gpu.problem()) == (
        "CuPy is installed and cannot be used (it finds no GPU that it can use): see bp doctor, or install it again"
    )

    def fails():
        raise RuntimeError("CUDA driver version\n is insufficient")

    monkeypatch.setattr(device.cupy.cuda, "is_available", fails)
    assert "(CUDA driver version is insufficient)" in str(gpu.problem())
    monkeypatch.setattr(requirements, "problem", lambda: requirements.Problem("no driver", "install it"))
    gpu.device.cache_clear()
    with pytest.raises(bp.errors.ConfigurationError, match="device 'cuda' cannot be used; no driver: install it"):
        gpu.device()


def test_what_the_gpu_is_called_and_how_many_multiprocessors_it_has(device, monkeypatch):
    runtime = SimpleNamespace(getDeviceProperties=lambda number: {"name": [b"another", b"NVIDIA H200"][number]})
    here = SimpleNamespace(id=1, attributes={"MultiProcessorCount": 132})
    monkeypatch.setattr(device.cupy.cuda, "runtime", runtime, raising=False)
    monkeypatch.setattr(device.cupy.cuda, "Device", lambda: here)
    assert (device.model, device.multiprocessors) == ("NVIDIA H200", 132)
