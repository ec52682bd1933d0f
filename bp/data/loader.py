"""Loader: batches of a data set in a reproducible order, fetched ahead by a background thread where asked."""

from collections import deque
from collections.abc import Generator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bp.data.dataset import Batch, Dataset, Transform
from bp.errors import ConfigurationError, DataError
from bp.ops.array import Shape

if TYPE_CHECKING:
    from concurrent.futures import Future


class Loader:
    """Batches of `dataset`; a batch is a pure function of (seed, epoch, index of the batch).

    No state of a random number generator outlives a call: the order of an epoch is drawn from a Philox generator keyed
    by (seed, epoch), the random numbers of a transform from one keyed by (seed, epoch, batch). So `epoch(e, b)`
    continues a run at batch b of epoch e bit by bit, whatever ran before.

    batch_size: samples a batch, at least 1; the last batch of an epoch holds what is left, unless drop_last.
    shuffle: a new order each epoch. weights: (N,) non-negative; an epoch is then N draws with replacement, each sample
    with probability weight / sum(weights). transform: see `bp.data.augment`. prefetch: how many batches a
    background thread fetches ahead; 0 fetches when asked. Results do not depend on it.
    Raises ConfigurationError or DataError for settings and weights that cannot be honoured.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
        weights: np.ndarray | None = None,
        prefetch: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"expected batch_size of at least 1, got {batch_size}")
        if prefetch < 0:
            raise ConfigurationError(f"expected prefetch of at least 0, got {prefetch}")
        if not 0 <= seed < 2**64:
            raise ConfigurationError(f"expected seed in 0..2^64 - 1, got {seed}")
        if len(dataset) == 0:
            raise DataError("expected at least one sample, got an empty data set")
        if drop_last and len(dataset) < batch_size:
            raise ConfigurationError(f"drop_last leaves no batch of {batch_size} in {len(dataset)} samples")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = int(seed)
        self.transform = transform
        self.prefetch = prefetch
        self._cumulative = None if weights is None else _cumulative(np.asarray(weights, np.float64), len(dataset))
        self._next_epoch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.num_samples // self.batch_size)

    @property
    def weighted(self) -> bool:
        """Whether samples are drawn by weight."""
        return self._cumulative is not None

    @property
    def num_samples(self) -> int:
        """Samples an epoch."""
        count = len(self.dataset)
        return count - count % self.batch_size if self.drop_last else count

    @cached_property
    def sample_shape(self) -> Shape:
        """The shape of one input after the transform, without the batch; fetches the first sample."""
        return self._fetch(np.zeros(1, np.int64), 0, 0)[0].shape[1:]

    def __iter__(self) -> Generator[Batch]:
        """Epoch 0 at the first call, epoch 1 at the second, and so on."""
        self._next_epoch += 1
        return self.epoch(self._next_epoch - 1)

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch]:
        """The batches (x, y) of an epoch from `start_batch` on; close it, or let go of it, to stop early."""
        if not 0 <= epoch < 2**64:
            raise ConfigurationError(f"expected epoch of at least 0, got {epoch}")
        if not 0 <= start_batch <= len(self):
            raise ConfigurationError(f"expected start_batch in 0..{len(self)}, got {start_batch}")
        return self._batches(self._order(epoch), epoch, start_batch)

    def in_order(self) -> Generator[Batch]:
        """Every sample once, in stored order, whatever shuffle, weights and drop_last say; for predictions."""
        return self._batches(np.arange(len(self.dataset)), 0, 0)

    def _batches(self, order: np.ndarray, epoch: int, start_batch: int) -> Generator[Batch]:
        indices = range(start_batch, -(-len(order) // self.batch_size))
        return (self._fetched_ahead if self.prefetch else self._fetched)(order, epoch, indices)

    def _fetched(self, order: np.ndarray, epoch: int, indices: range) -> Generator[Batch]:
        for index in indices:
            yield self._fetch(order, epoch, index)

    def _fetched_ahead(self, order: np.ndarray, epoch: int, indices: range) -> Generator[Batch]:
        from concurrent.futures import ThreadPoolExecutor

        # One thread keeps the transform free of races with itself; futures keep the order and carry exceptions.
        pool = ThreadPoolExecutor(1, thread_name_prefix="bp-loader")
        pending: deque[Future[Batch]] = deque()
        try:
            for index in indices:
                pending.append(pool.submit(self._fetch, order, epoch, index))
                if len(pending) > self.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _fetch(self, order: np.ndarray, epoch: int, index: int) -> Batch:
        start = index * self.batch_size
        x, y = self.dataset.batch(order[start : start + self.batch_size])
        if self.transform is None:
            return x, y
        return self.transform(x, y, self._generator(epoch, index + 1))

    def _order(self, epoch: int) -> np.ndarray:
        count = len(self.dataset)
        if self._cumulative is not None:
            order = self._cumulative.searchsorted(self._generator(epoch, 0).random(count), side="right")
        else:
            order = self._generator(epoch, 0).permutation(count) if self.shuffle else np.arange(count)
        return order[: self.num_samples]

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        # The top word of Philox's counter tells the streams of an epoch apart: they are 2^192 blocks from each other.
        # Both are given as one integer each, since a list of integers above 2^63 goes through float64.
        return np.random.Generator(np.random.Philox(key=self.seed | int(epoch) << 64, counter=stream << 192))


def _cumulative(weights: np.ndarray, count: int) -> np.ndarray:
    """Cumulative probabilities (N,) that end at exactly 1, so that every draw in [0, 1) finds a sample."""
    if weights.shape != (count,):
        raise DataError(f"expected weights of shape ({count},), one a sample, got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
        raise DataError("expected finite, non-negative weights that are not all zero")
    cumulative = (weights / weights.max()).cumsum()
    cumulative /= cumulative[-1]
    return cumulative
