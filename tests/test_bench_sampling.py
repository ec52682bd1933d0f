"""What is too large for float64 on the host is checked in part: both ends of rows, or of another axis."""

import importlib

import numpy as np
import pytest

from bp.bench import check
from bp.bench.benchmark import case_sizes
from bp.bench.catalogue import families, load
from bp.bench.drawing import Draw
from bp.bench.libraries import open_library
from bp.bench.worker import Case, Worker

SAMPLED = [
    pytest.param(family, kind, sizes, id=f"{family}-{kind.__name__}-{number}")
    for family in families()
    for kind in load(family)
    for number, sizes in enumerate(kind.sizes.quick)
    if kind(**sizes).sampled
]


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(check, "WHOLE", 0)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize(("family", "kind", "sizes"), SAMPLED)
def test_a_part_of_the_work_gives_that_part_of_the_outputs(tmp_path, family, kind, sizes):
    case = kind(**sizes)
    worker = Worker(open_library("bp", "cpu"))
    worker.begin(Case(family, kind.__name__, case_sizes(case), "fp32", 1))
    path = str(tmp_path / "reference.npz")
    worker.reference(path)
    with np.load(path) as file:
        assert file["ends"] > 0
        assert set(file) > {"count", "ends"}, "nothing would be checked"
    assert worker.prepare("bp", "", path).error <= 1.0


@pytest.mark.parametrize(("most", "ends"), [(2 * 8**3 - 1, check.ROWS), (2 * 8**3, 0)])
def test_much_work_on_small_arrays_is_checked_in_part_too(monkeypatch, tmp_path, most, ends):
    monkeypatch.setattr(check, "FLOPS", most)
    worker = Worker(open_library("bp", "cpu"))
    worker.begin(Case("linear", "Linear", {"m": 8, "n": 8, "k": 8}, "fp32", 1))
    path = str(tmp_path / "reference.npz")
    worker.reference(path)
    with np.load(path) as file:
        assert file["ends"] == ends
        assert len(file["0"]) == (2 * ends or 8)
    assert worker.prepare("bp", "", path).error <= 1.0


@pytest.mark.parametrize("shape", [(10,), (7, 3), (1, 4), (5, 2, 3)])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_ends_along_an_axis_are_those_of_the_whole(shape, axis, count):
    axis %= len(shape)
    drawn = Draw(0, "fp32").normal(*shape)
    places = shape[axis]
    picked = np.r_[0 : min(count, places), max(places - count, 0) : places]
    np.testing.assert_array_equal(drawn.ends(count, axis), np.take(drawn.whole(), picked, axis))


def test_bytes_are_those_that_have_to_move():
    kinds = {kind.__name__: kind for family in ("conv", "embedding") for kind in load(family)}
    strided = {"batch": 2, "side": 7, "channels": 3, "outputs": 5, "kernel": 1, "stride": 2}
    pixels = 2 * 4 * 4  # every other one is read, and as many are written
    assert kinds["Convolution"](**strided).nbytes(2) == 2 * (pixels * 3 + 15 + pixels * 5)
    assert kinds["ConvolutionParameterGradients"](**strided).nbytes(2) == 2 * pixels * (3 + 5) + 4 * (15 + 5)
    assert kinds["ConvolutionInputGradient"](**strided).nbytes(2) == 2 * (2 * 49 * 3 + 15 + pixels * 5)
    overlapping = kinds["Convolution"](**strided | {"kernel": 3})
    assert overlapping.nbytes(4) == 4 * (2 * 49 * 3 + 9 * 15 + pixels * 5)
    embedding = kinds["Embedding"](positions=3, rows=1, columns=8)
    assert embedding.nbytes(4) == 8 * 3 + (1 + 3) * 8 * 4
    drawn = np.unique(np.random.default_rng(0).integers(10_000, size=16_384)).size
    named = kinds["Embedding"](positions=16_384, rows=10_000, columns=1).nbytes(1) - 9 * 16_384
    assert abs(named - drawn) < 100


@pytest.mark.parametrize("kind", ["Dropout", "DropoutBackward"])
def test_a_peer_that_drops_nothing_is_wrong(kind):
    case = {one.__name__: one for one in load("dropout")}[kind](n=4096)
    x, rng = np.random.default_rng(0).standard_normal(4096), np.random.default_rng(1)
    rate = importlib.import_module("bp.benchmarks.bench_dropout").RATE
    scale = 1 / (1 - rate)
    dropped = np.where(rng.random(4096) >= rate, scale * x, 0)
    for y, right in ((dropped, True), (scale * x, False), (x, False), (0 * x, False)):
        error = check.error([y], [case.expected_of_peer(y, x=x, control=None)], "fp32", 1)
        assert (error <= 1) == right
