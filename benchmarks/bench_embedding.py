"""Embedding: rows of a table gathered by index, and the gradient of the table: rows summed by index."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import embedding


@dataclass(frozen=True)
class Table(Benchmark):
    """positions: indices, such as the tokens of a batch; rows, columns: of the table."""

    axis = "positions"
    sizes = Sizes(
        cuda=grid(positions=[1 << 14, 1 << 18], rows=[50257], columns=[1024]),
        cpu=grid(positions=[1 << 11, 1 << 14], rows=[256, 10_000], columns=[128]),
        quick=grid(positions=[1000], rows=[500], columns=[32]),
    )
    positions: int
    rows: int
    columns: int


class Embedding(Table):
    name = "embedding"
    sizes = Table.sizes._replace(cuda=grid(positions=[1 << 14, 1 << 16], rows=[50257], columns=[1024]))
    sampled = ("indices",)

    def draw(self, draw):
        return {"indices": draw.integers(self.rows, self.positions), "table": draw.normal(self.rows, self.columns)}

    def nbytes(self, itemsize):
        """Of the table, the rows that random indices name, each once."""
        read = round(self.rows * (1 - (1 - 1 / self.rows) ** self.positions))
        return 8 * self.positions + (read + self.positions) * self.columns * itemsize

    def bp(self, indices, table):
        return lambda: embedding.embedding(indices, table, None)

    def numpy(self, indices, table):
        return lambda: table[indices]

    def cupy(self, indices, table):
        return lambda: table.take(indices, axis=0)

    def torch(self, indices, table):
        from torch.nn import functional

        return lambda: functional.embedding(indices, table)


class EmbeddingBackward(Table):
    """A dense gradient, as both libraries have it; rows that no index names are zero."""

    name = "embedding backward"
    target = 70
    compiles = False

    def draw(self, draw):
        dtable = draw.zeros(self.rows, self.columns, wide=True)
        indices = draw.integers(self.rows, self.positions)
        return {"indices": indices, "dy": draw.normal(self.positions, self.columns), "dtable": dtable}

    def nbytes(self, itemsize):
        return self.positions * (8 + self.columns * itemsize) + self.rows * self.columns * max(itemsize, 4)

    def length(self):
        return max(1, 4 * self.positions // self.rows)

    def bp(self, indices, dy, dtable):
        backward = embedding.embedding_backward_parameters
        return lambda: backward(dy, indices, dtable, None, False) or dtable

    def numpy(self, indices, dy, dtable):
        def backward():
            dtable[...] = 0
            np.add.at(dtable, indices, dy)
            return dtable

        return backward

    def torch(self, indices, dy, dtable):
        from torch.ops import aten

        return lambda: aten.embedding_dense_backward(dy, indices, self.rows, -1, False)
