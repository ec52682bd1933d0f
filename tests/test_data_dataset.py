"""Datasets: batches by index, arrays on disk, and what is refused."""

import numpy as np
import pytest

from bp.data import ArrayDataset, Subset
from bp.errors import DataError, DtypeError


def arrays(count=7, dtype="float32"):
    return np.arange(count * 3).reshape(count, 3).astype(dtype), np.arange(count)


def test_batch_fetches_rows_as_fresh_arrays():
    x, y = arrays()
    data = ArrayDataset(x, y)
    bx, by = data.batch(np.array([5, 0, 5]))
    np.testing.assert_array_equal(bx, x[[5, 0, 5]])
    np.testing.assert_array_equal(by, [5, 0, 5])
    assert len(data) == 7 and bx.flags.c_contiguous and not np.shares_memory(bx, x)
    assert data.batch(np.empty(0, np.int64))[0].shape == (0, 3)


@pytest.mark.parametrize(
    "change",
    [np.asfortranarray, lambda x: x[::-1][::-1], lambda x: x.astype(">f4"), lambda x: x.T.copy().T],
    ids=["fortran", "strided", "big-endian", "transposed"],
)
def test_any_memory_order_gives_native_contiguous_batches(change):
    x, y = arrays()
    bx, _ = ArrayDataset(change(x), y).batch(np.array([3, 1]))
    np.testing.assert_array_equal(bx, x[[3, 1]])
    assert bx.flags.c_contiguous and bx.dtype == np.float32 and bx.dtype.isnative


def test_a_memory_map_stays_on_disk(tmp_path):
    x, y = arrays()
    x[4, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = ArrayDataset(mapped, y)  # looking for NaN would read it all
    assert np.shares_memory(data.x, mapped) and type(data.batch(np.array([1]))[0]) is np.ndarray
    with pytest.raises(DataError, match=r"inputs expected finite numbers, got nan at index \(4, 1\)"):
        ArrayDataset(mapped, y, check=True)


def test_the_first_bad_number_is_found_across_chunks(monkeypatch):
    monkeypatch.setattr("bp.data.dataset.CHECK_ELEMENTS", 6)
    x, y = arrays()
    x[5, 2], x[6, 0] = np.inf, np.nan
    with pytest.raises(DataError, match=r"got inf at index \(5, 2\)"):
        ArrayDataset(x, y)
    ArrayDataset(x, y, check=False)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (np.zeros((3, 2)), np.zeros(4), DataError, "got 3 inputs and 4 targets"),
        (np.zeros((0, 2)), np.zeros(0), DataError, "got an empty data set"),
        (
            np.zeros((2, 2)),
            np.array([0.0, np.nan]),
            DataError,
            r"targets expected finite numbers, got nan at index \(1,\)",
        ),
        (np.float32(1), np.zeros(1), DataError, "inputs expected one row a sample, got a scalar"),
        (np.array(["a"]), np.zeros(1), DtypeError, "inputs expected numbers, got dtype <U1"),
        (np.zeros(1), np.array([None]), DtypeError, "targets expected numbers, got dtype object"),
        (np.zeros(1, complex), np.zeros(1), DtypeError, "got dtype complex128"),
    ],
)
def test_unusable_arrays(x, y, error, message):
    with pytest.raises(error, match=message):
        ArrayDataset(x, y)


def test_samples_without_elements_are_allowed():
    assert ArrayDataset(np.zeros((3, 0), "float32"), np.zeros(3)).batch(np.array([1]))[0].shape == (1, 0)


def test_subset_of_a_subset():
    data = Subset(Subset(ArrayDataset(*arrays()), np.array([6, 4, 2])), np.array([2, 0]))
    np.testing.assert_array_equal(data.batch(np.array([0, 1, 0]))[1], [2, 6, 2])
    assert len(data) == 2


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 7], DataError, r"expected indices in 0\.\.6, got 7"),
        ([-1], DataError, r"got -1"),
        ([], DataError, "at least one index"),
        ([[0]], DataError, r"got shape \(1, 1\)"),
        ([0.0], DtypeError, "expected integer indices, got float64"),
    ],
)
def test_bad_subsets(indices, error, message):
    with pytest.raises(error, match=message):
        Subset(ArrayDataset(*arrays()), np.array(indices))
