"""What is too large for float64 on the host is checked in part: both ends of rows, or of another axis."""

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
