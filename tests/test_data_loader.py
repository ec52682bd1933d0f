"""Loader: order, resume, weights and prefetch."""

import threading
import time
from itertools import chain

import numpy as np
import pytest

from bp.data import ArrayDataset, Compose, Loader, RandomCrop, RandomHorizontalFlip
from bp.errors import ConfigurationError, DataError


def numbered(count):
    return ArrayDataset(np.arange(count, dtype="float32")[:, None], np.arange(count))


def images(count=13):
    return ArrayDataset(np.random.default_rng(0).integers(0, 256, (count, 6, 5, 3)).astype("uint8"), np.arange(count))


AUGMENT = Compose(RandomCrop(padding=2), RandomHorizontalFlip())


def labels(batches):
    return [y.tolist() for _, y in batches]


def same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("bp-loader")]


@pytest.mark.parametrize("count", [1, 4, 7, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_holds_every_sample_once(count, batch_size, shuffle):
    loader = Loader(numbered(count), batch_size, shuffle=shuffle)
    batches = labels(loader.epoch(3))
    assert len(batches) == len(loader) and sorted(chain(*batches)) == list(range(count))
    assert {len(b) for b in batches[:-1]} <= {batch_size} and loader.num_samples == count
    if not shuffle:
        assert list(chain(*batches)) == list(range(count))


def test_drop_last():
    loader = Loader(numbered(7), 3, drop_last=True)
    assert labels(loader.epoch(0)) == [[0, 1, 2], [3, 4, 5]] and len(loader) == 2 and loader.num_samples == 6
    assert labels(loader.in_order()) == [[0, 1, 2], [3, 4, 5], [6]]


def test_epochs_and_seeds_differ_and_repeat():
    orders = {
        (seed, epoch): str(labels(Loader(numbered(50), 8, shuffle=True, seed=seed).epoch(epoch)))
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 6
    assert orders[0, 1] == str(labels(Loader(numbered(50), 8, shuffle=True).epoch(1)))


def test_iterating_counts_epochs():
    loader = Loader(numbered(20), 8, shuffle=True)
    first, second = labels(loader), labels(loader)
    assert (first, second) == (labels(loader.epoch(0)), labels(loader.epoch(1)))


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize(
    "settings", [{"shuffle": True}, {"weights": np.arange(13)}, {"shuffle": True, "drop_last": True}]
)
def test_resuming_at_any_batch_equals_the_whole_epoch(settings, prefetch):
    whole = list(Loader(images(), 4, transform=AUGMENT, seed=5, **settings).epoch(2))
    for start in range(len(whole) + 1):
        loader = Loader(images(), 4, transform=AUGMENT, seed=5, prefetch=prefetch, **settings)
        same(loader.epoch(2, start), whole[start:])


@pytest.mark.parametrize("prefetch", [1, 2, 7])
def test_prefetching_changes_nothing(prefetch):
    made = [Loader(images(), 2, shuffle=True, transform=AUGMENT, prefetch=p) for p in (0, prefetch)]
    for epoch in range(2):
        same(made[0].epoch(epoch), made[1].epoch(epoch))
    assert not loader_threads()


def test_transforms_of_two_batches_draw_different_numbers():
    drawn = []

    def record(x, y, generator):
        drawn.append(generator.integers(2**62))
        return x, y

    loader = Loader(numbered(8), 2, transform=record)
    for epoch in (0, 1):
        list(loader.epoch(epoch))
    assert len(set(drawn)) == 8


def test_weights_set_the_frequencies():
    weights = np.array([0.0, 1.0, 2.0, 5.0, 0.0])
    loader = Loader(numbered(5), 5, weights=weights)
    epochs = 2000
    counts = np.bincount(np.concatenate([y for e in range(epochs) for _, y in loader.epoch(e)]), minlength=5)
    expected = epochs * 5 * weights / weights.sum()
    assert counts[0] == counts[4] == 0
    # Five standard deviations of a binomial count.
    np.testing.assert_array_less(np.abs(counts - expected)[1:4], 5 * np.sqrt(expected[1:4]))


@pytest.mark.parametrize("huge", [1e308, 5e-324])
def test_extreme_weights(huge):
    loader = Loader(numbered(3), 2, weights=np.array([huge, 0, huge]))
    assert set(chain(*labels(loader.epoch(0)))) <= {0, 2}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"weights of shape \(5,\), one a sample, got \(4,\)"),
        (np.ones((5, 1)), r"got \(5, 1\)"),
        (np.zeros(5), "not all zero"),
        (np.array([1, 1, -1, 1, 1]), "non-negative"),
        (np.array([1, 1, np.nan, 1, 1]), "finite"),
        (np.array([1, 1, np.inf, 1, 1]), "finite"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(DataError, match=message):
        Loader(numbered(5), weights=weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"batch_size": -3}, "got -3"),
        ({"prefetch": -1}, "expected prefetch of at least 0, got -1"),
        ({"seed": -1}, "expected seed in"),
        ({"seed": 2**64}, "expected seed in"),
        ({"batch_size": 6, "drop_last": True}, "drop_last leaves no batch of 6 in 5 samples"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Loader(numbered(5), **settings)


def test_bad_positions_are_refused_at_the_call():
    loader = Loader(numbered(5), 2)
    with pytest.raises(ConfigurationError, match=r"start_batch in 0\.\.3, got 4"):
        loader.epoch(0, 4)
    with pytest.raises(ConfigurationError, match="epoch of at least 0, got -1"):
        loader.epoch(-1)


def test_a_data_set_of_ones_own_needs_length_and_batch():
    class Squares:
        def __len__(self):
            return 5

        def batch(self, indices):
            return indices[:, None] ** 2, indices

    assert labels(Loader(Squares(), 2).epoch(0)) == [[0, 1], [2, 3], [4]]

    class Empty(Squares):
        def __len__(self):
            return 0

    with pytest.raises(DataError, match="empty data set"):
        Loader(Empty())


def test_sample_shape_is_that_after_the_transform():
    assert Loader(images()).sample_shape == (6, 5, 3)
    assert Loader(images(), transform=RandomCrop((4, 3))).sample_shape == (4, 3, 3)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_stopping_early_leaves_no_thread(prefetch):
    loader = Loader(numbered(1000), 1, prefetch=prefetch)
    batches = loader.epoch(0)
    next(batches)
    assert len(loader_threads()) == (prefetch > 0)
    batches.close()
    assert not loader_threads()
    for _ in loader:
        break
    assert not loader_threads()
    del batches
    loader.epoch(0)  # never started
    assert not loader_threads()


def test_prefetch_runs_ahead_by_that_many_and_no_further():
    fetched = []

    def record(x, y, generator):
        fetched.append(int(y[0]))
        return x, y

    batches = Loader(numbered(100), 1, transform=record, prefetch=2).epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(fetched) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.01)
    assert fetched == [0, 1, 2]
    batches.close()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_error_comes_at_its_batch_and_ends_the_thread(prefetch):
    def fail(x, y, generator):
        if y[0] == 4:
            raise DataError("sample 4 is bad")
        return x, y

    got = []
    with pytest.raises(DataError, match="sample 4 is bad"):
        for _, y in Loader(numbered(10), 2, transform=fail, prefetch=prefetch).epoch(0):
            got.append(y.tolist())
    assert got == [[0, 1], [2, 3]] and not loader_threads()


def test_two_epochs_at_once_do_not_disturb_each_other():
    loader = Loader(numbered(9), 2, shuffle=True, prefetch=2)
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    same((a for a, _ in pairs), loader.epoch(0))
    same((b for _, b in pairs), loader.epoch(1))
