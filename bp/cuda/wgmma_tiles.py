"""The tiles of products on Hopper's tensor cores (wgmma), and which one, in how many parts, a shape gets.

The choice is a small model of the time that a GPU of 132 multiprocessors takes, by shape alone: so it is the same on
every GPU, and so are the results. Its constants are limits of the hardware, not measured yet.
"""

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """rows x columns of C that a block computes at a time; stages: slices of the depth in shared memory, each 128 bytes
    of a row.
    """

    rows: int
    columns: int
    stages: int

    def cycles(self, m: int, n: int) -> float:
        """Of a slice, whichever takes longer: 4096 operations a cycle (in tf32 half as many, and a slice has half as
        many), or 48 bytes a cycle of the L2 cache.
        """
        return max(self.rows * self.columns / 32, (min(self.rows, m) + min(self.columns, n)) * 128 / 48)


# Up to 194 KB of stages; 32 KB beside them are for results.
TILES = {
    "128x256": Tile(128, 256, 4),
    "256x128": Tile(256, 128, 4),
    "128x128": Tile(128, 128, 6),
    "64x256": Tile(64, 256, 4),
    "128x64": Tile(128, 64, 8),
    "64x128": Tile(64, 128, 8),
}
# As macros of a kernel, and its dynamic shared memory.
VARIANTS = {name: {"ROWS": t.rows, "COLUMNS": t.columns, "STAGES": t.stages} for name, t in TILES.items()}
SHARED = "STAGES * (ROWS + COLUMNS) * 128 + 32768"

# Rows, columns, steps of the depth, or tiles: a kernel counts in int, and tiles go beyond the edges.
MOST = 2**31 - 256
MULTIPROCESSORS = 132  # of an H100 or H200
_SLICE = 128  # bytes of the depth
_MOST_PARTS = 12  # of a depth whose tiles are enough for all multiprocessors, or nearly
# Cycles in which the tensor cores wait for the results of a tile. Assumed for boxes: 690 to 970 instructions of a warp,
# of which 1024 cycles are hidden. Floats, and epilogues with more than a bias and relu, are 2300 and more, and wait
# longer (wgmma_tile.cuh); how long, and whether that favours other tiles, has to be measured.
_BETWEEN_TILES = 500
_SECOND_PASS = 4000  # cycles of the launch that adds the parts
_MEMORY = 2500  # bytes a cycle, 4.3 TB/s

# Slices that one sum in registers runs over where C is float32: 1024 instructions. The rounding of a C of 16 bits is
# larger than the error of any depth.
_LONGEST = 256


def slice_of(itemsize: int) -> int:
    """Elements of the depth in a slice."""
    return _SLICE // itemsize


def tile(m: int, n: int, k: int, batch: int, wide: bool, itemsize: int = 2) -> str:
    """The name of the tile for `batch` products C (m, n) = A B of depth k; of equal ones the first in the table.

    wide: whether C is float32. itemsize: bytes of an element of the factors.
    """
    return min(TILES, key=lambda name: _cut(name, m, n, k, batch, wide, itemsize)[0])


def part(name: str, m: int, n: int, k: int, batch: int, wide: bool, itemsize: int = 2) -> int:
    """The depth of a part at most, in whole slices, where a product is computed in that tile."""
    return _cut(name, m, n, k, batch, wide, itemsize)[1]


@functools.lru_cache(maxsize=4096)
def _cut(name: str, m: int, n: int, k: int, batch: int, wide: bool, itemsize: int) -> tuple[float, int]:
    """(cycles, depth of a part) of the best cut of the depth."""
    shape = TILES[name]
    tiles = max(batch * -(-m // shape.rows) * -(-n // shape.columns), 1)
    slices = max(-(-k // slice_of(itemsize)), 1)
    least = -(-slices // _LONGEST) if wide else 1
    most = min(max(MULTIPROCESSORS // tiles, _MOST_PARTS, least), slices)

    def cycles(parts: int) -> float:
        of_part = -(-slices // parts)
        rounds = -(-tiles * -(-slices // of_part) // MULTIPROCESSORS)
        second_pass = _SECOND_PASS + 8 * batch * m * n * parts / _MEMORY if parts > 1 else 0
        return rounds * (of_part * shape.cycles(m, n) + _BETWEEN_TILES) + second_pass

    parts = min(range(least, most + 1), key=cycles)
    return cycles(parts), -(-slices // parts) * slice_of(itemsize)
