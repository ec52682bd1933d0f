"""Whole training steps in the benchmarks: right in bp and in PyTorch, and found out where they are not."""

import importlib

import numpy as np
import pytest

import bp
from bp.bench import check
from bp.bench.catalogue import load
from bp.bench.contestants import players
from bp.bench.libraries import open_library
from bp.bench.results import Limits
from bp.bench.run import Plan, Run
from bp.bench.worker import Case, Worker
from bp.errors import ConfigurationError
from bp.models import MODELS
from bp.ops import linear
from bp.ops.device import find_device

KINDS = {kind.__name__: (family, kind) for family in ("steps", "scaling") for kind in load(family)}
steps = importlib.import_module("bp.benchmarks.steps")
bench_steps = importlib.import_module("bp.benchmarks.bench_steps")

SMALL = {"network": "mlp-64-64-10", "batch": 32}
CASES = [
    ("VectorStep", SMALL),
    ("VectorStep", {"network": "mlp-784-512-512-10", "batch": 3}),
    ("VectorStep", {"network": "mlp-5-3", "batch": 1}),
    ("ImageStep", {"network": "cnn", "batch": 4}),
    ("ImageStep", {"network": "resnet20", "batch": 2}),
    ("StepByBatch", {"batch": 2}),
    ("StepByWidth", {"width": 17}),
    ("StepByDepth", {"depth": 4}),
]


class Prepared:
    """A case, its float64 reference computed; contestants are made in this process."""

    def __init__(self, path: str, name: str, sizes: dict, precision: str = "fp32") -> None:
        self.path, family = path, KINDS[name][0]
        self.case = Case(family, name, sizes, precision, seed=7)
        worker = self.worker("bp", "cpu")
        worker.reference(path)

    def worker(self, library: str, device: str) -> Worker:
        worker = Worker(open_library(library, device))
        worker.begin(self.case)
        return worker

    def contestant(self, method: str = "bp", device: str = "cpu"):
        return self.worker(method.partition("_")[0], device).prepare(method, "", self.path)


@pytest.fixture
def path(tmp_path, monkeypatch) -> str:
    """Of the reference; nobody measures memory, for which everything is made twice."""
    monkeypatch.setattr(bench_steps.Step, "measures_memory", False)
    return str(tmp_path / "reference.npz")


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_steps_are_those_of_float64(path, name, sizes):
    made = Prepared(path, name, sizes).contestant()
    assert made.error < 0.5
    assert made.facts["samples"] == KINDS[name][1](**sizes).batch
    assert "launches" not in made.facts


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_steps_of_pytorch_are_the_same(path, name, sizes):
    pytest.importorskip("torch", reason="PyTorch is the peer")
    prepared = Prepared(path, name, sizes)
    for method in ("torch", "torch_nchw"):
        if hasattr(KINDS[name][1], method):
            assert prepared.contestant(method).error < 0.5


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_twin_of_a_large_network(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    twin = importlib.import_module("bp.benchmarks.torch_steps").twin
    model, shape = MODELS.get(name)((33, 32, 3), classes=5, width=8), (33, 32, 3)
    model.build(shape, dtype="float64", seed=3)
    parameters = np.concatenate([parameter.value.ravel() for _, parameter in model.named_parameters()])
    x = np.random.default_rng(0).standard_normal((3, *shape))
    expected = model.forward(x, bp.Context(training=True))
    made = twin(model, shape, torch.from_numpy(parameters))
    actual = made(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_no_twin_for_what_pytorch_has_under_another_name():
    torch = pytest.importorskip("torch", reason="PyTorch is the peer")
    module = importlib.import_module("bp.benchmarks.torch_steps").module
    assert isinstance(module(bp.Sequential(bp.ReLU())), torch.nn.Sequential)
    with pytest.raises(TypeError, match="GELU"):
        module(bp.Sequential(bp.GELU()))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("method", ["bp", "bp_eager"])
def test_steps_on_the_emulator(path, method, precision):
    made = Prepared(path, "VectorStep", SMALL, precision).contestant(method, "emulator")
    assert made.error < 0.5
    assert made.facts["launches"] > 5


def test_a_replayed_image_step_on_the_emulator(path):
    made = Prepared(path, "ImageStep", {"network": "cnn", "batch": 2}).contestant("bp", "emulator")
    assert made.error < 0.5


def test_a_large_step_is_checked_with_fewer_samples(path, monkeypatch):
    large = KINDS["ImageStep"][1](network="resnet50", batch=128)
    assert large.checked() == KINDS["ImageStep"][1](network="resnet50", batch=2)
    assert KINDS["ImageStep"][1](network="resnet20", batch=64).checked().batch == 64
    monkeypatch.setattr(bench_steps, "CHECKED_FLOPS", 0.0)
    prepared = Prepared(path, "ImageStep", {"network": "cnn", "batch": 3})
    right = prepared.contestant()
    assert right.error < 0.5 and right.facts["samples"] == 3
    monkeypatch.setattr(bp.AdamW, "step", nothing)
    assert prepared.contestant().error > 1


def nothing(*_: object) -> None:
    """Instead of a method."""


linear_backward_parameters = linear.linear_backward_parameters


def half_of_the_weight(dy: np.ndarray, x: np.ndarray, dweight: np.ndarray, dbias: np.ndarray, accumulate: bool) -> None:
    linear_backward_parameters(dy, x, dweight, dbias, accumulate)
    dweight[:, : dweight.shape[1] // 2] = 0


FAULTS = {
    "no optimizer step": (bp.AdamW, "step", nothing),
    "half of a gradient": (linear, "linear_backward_parameters", half_of_the_weight),
    "another learning rate": (steps, "LR", 2 * steps.LR),
    "another decay": (steps, "DECAY", 100.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_step_is_found(path, monkeypatch, fault):
    prepared = Prepared(path, "VectorStep", SMALL)
    monkeypatch.setattr(*FAULTS[fault])
    assert prepared.contestant().error > 1


def test_a_step_that_changes_nothing_is_found_however_coarse_the_precision(path, monkeypatch):
    prepared = Prepared(path, "VectorStep", SMALL)
    monkeypatch.setattr(check, "allowed", lambda precision, length: 1.0)
    assert prepared.contestant().error < 1
    monkeypatch.setattr(bp.AdamW, "step", nothing)
    assert prepared.contestant().error > 1


def test_a_graph_that_does_nothing_is_found(path, monkeypatch):
    prepared = Prepared(path, "VectorStep", SMALL)
    monkeypatch.setattr(type(find_device("emulator")), "replay", lambda device, ledger: nothing)
    assert prepared.contestant("bp", "emulator").error > 1


def test_who_takes_part():
    def names(kind: str, device: str, compile: bool = True) -> list[str]:
        return [player.name for player in players(KINDS[kind][1], device, [], None, compile)]

    assert names("VectorStep", "cpu") == ["bp", "bp cpu=numpy", "torch", "torch-compile"]
    assert names("VectorStep", "cpu", compile=False) == ["bp", "bp cpu=numpy", "torch"]
    assert names("ImageStep", "cuda") == ["bp", "bp eager", "torch", "torch-compile", "torch-graph", "torch-nchw"]
    assert names("StepByDepth", "emulator") == ["bp", "bp eager"]


def test_a_step_is_priced_by_its_launches():
    case = KINDS["VectorStep"][1](network="mlp-784-512-512-10", batch=128)
    forward = 2.0 * 128 * (784 * 512 + 512 * 512 + 512 * 10)
    products = 3 * forward - 2.0 * 128 * 784 * 512  # the first layer has no gradient of its input
    assert products < case.flops() < 1.05 * products
    weights = 4 * (784 * 512 + 512 * 512 + 512 * 10)
    assert 10 * weights < case.nbytes(4) < 20 * weights
    assert case.nbytes(2) < case.nbytes(4) < case.nbytes(8)


def test_the_peak_of_memory_is_that_of_the_plan(monkeypatch):
    monkeypatch.setattr(Run, "measure_limits", lambda self: Limits())
    sizes = {"network": "mlp-784-512-512-10", "batch": 128}
    (row,) = Run(Plan(["steps"], "cpu", peers=[], sizes={"VectorStep": [sizes]}, repeats=1)).results("").rows
    if "peak_bytes" not in row.ours.facts:
        pytest.skip("this system does not tell the peak of memory")
    planned = bp.memory_plan(steps.network(sizes["network"])[0], (128, 784)).total
    assert 0.7 * planned < row.ours.facts["peak_bytes"] < 1.5 * planned


@pytest.mark.parametrize("name", ["mlp", "mlp-10", "mlp-ten-10", "mlp-3--10", "resnet", ""])
def test_an_unknown_network(name):
    with pytest.raises(ConfigurationError, match="expected a network"):
        steps.network(name)
