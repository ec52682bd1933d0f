"""The tiles of products on tensor cores by mma.sync, and which one, in how many parts, a shape gets.

The choice is a small model of the time that a GPU of 132 multiprocessors takes, by shape alone: so it is the same on
every GPU, and so are the results. Its constants are limits of the hardware, not measured yet.
"""

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """rows x columns of C that a block computes, cut among down x across warps; see TileShape in mma_tile.cuh.

    slice: bytes of the depth in one of the stages, in which slices lie in shared memory; blocks: that a multiprocessor
    should hold at once; alignment: bytes that the rows of both factors begin at a multiple of.
    """

    rows: int
    columns: int
    down: int
    across: int
    slice: int
    stages: int
    blocks: int
    alignment: int = 16

    @property
    def macros(self) -> dict[str, int]:
        """For the kernels."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DOWN": self.down,
            "ACROSS": self.across,
            "SLICE": self.slice,
            "STAGES": self.stages,
            "ALIGNMENT": self.alignment,
            "THREADS": 32 * self.down * self.across,
            "BLOCKS": self.blocks,
        }

    @functools.cached_property
    def cycles(self) -> float:
        """Of a multiprocessor for 64 bytes of the depth, where it has other blocks to run meanwhile.

        Whichever takes longest: its tensor cores (1024 products of 16-bit elements a cycle, 512 of tf32), its shared
        memory (128 bytes a cycle: each chunk is written once, and each fragment of 16 lines read by every warp that
        takes it), or the way from the L2 cache (48 bytes a cycle).
        """
        lines = self.rows + self.columns
        fragments = self.down * self.across * (self.rows / self.down + self.columns / self.across) / 16
        return max(self.rows * self.columns / 32, fragments * 8 + lines / 2, lines * 64 / 48)


TILES = {
    "128x128": Tile(128, 128, 2, 2, slice=64, stages=3, blocks=2),
    "128x64": Tile(128, 64, 2, 2, slice=64, stages=4, blocks=3),
    "64x128": Tile(64, 128, 2, 2, slice=64, stages=4, blocks=3),
    "64x64": Tile(64, 64, 2, 2, slice=64, stages=4, blocks=4),
    "32x32": Tile(32, 32, 2, 2, slice=64, stages=4, blocks=6),
    # For few rows and a large B, which comes from memory: more bytes of it on their way.
    "16x128": Tile(16, 128, 1, 4, slice=128, stages=3, blocks=4),
    "32x128": Tile(32, 128, 1, 4, slice=128, stages=3, blocks=3),
    "128x64 of 4": Tile(128, 64, 2, 2, slice=64, stages=4, blocks=2, alignment=4),
    "32x32 of 4": Tile(32, 32, 2, 2, slice=64, stages=4, blocks=4, alignment=4),
}
# As macros of a kernel, and its dynamic shared memory.
VARIANTS = {name: tile.macros for name, tile in TILES.items()}
SHARED = "STAGES * (ROWS + COLUMNS) * SLICE"

_MULTIPROCESSORS = 132  # of an H100 or H200
_STEP = 64  # of the depth; parts are multiples of it
_SHORTEST = 4  # steps of a part: below, writing and reading its sums costs more than the part
_ALONE = 150  # cycles in which a block waits in each slice: for the others at the barrier, and for its fragments
_BEFORE_AND_AFTER = 1500  # cycles until the first slice has come, and for the results
_SECOND_PASS = 4000  # cycles of the launch that adds the parts
_MEMORY = 2500  # bytes a cycle, 4.3 TB/s

# Of the depth that one sum in registers runs over: 1024 additions, in each of which an mma adds 32 bytes of the depth.
_LONGEST = {"float16": 16 * 1024, "bfloat16": 16 * 1024, "tf32": 8 * 1024}


def possible(alignment: int) -> tuple[str, ...]:
    """The tiles for factors whose rows begin at multiples of so many bytes."""
    return tuple(name for name, tile in TILES.items() if tile.alignment == min(alignment, 16))


def tile(m: int, n: int, k: int, batch: int, dtype: str, alignment: int) -> str:
    """The name of the tile for `batch` products C (m, n) = A B of depth k; of equal ones the first in the table.

    dtype: of the factors, "tf32" for floats.
    """
    return min(possible(alignment), key=lambda name: _cut(name, m, n, k, batch, dtype)[0])


def part(name: str, m: int, n: int, k: int, batch: int, dtype: str) -> int:
    """The depth of a part at most, a multiple of 64, where a product is computed in that tile."""
    return _cut(name, m, n, k, batch, dtype)[1]


@functools.lru_cache(maxsize=4096)
def _cut(name: str, m: int, n: int, k: int, batch: int, dtype: str) -> tuple[float, int]:
    """(cycles, depth of a part) of the best cut of the depth."""
    shape = TILES[name]
    tiles = max(batch * -(-m // shape.rows) * -(-n // shape.columns), 1)
    steps, slices = max(-(-k // _STEP), 1), 4 if dtype == "tf32" else 2  # of 64 bytes in a step
    least = -(-steps * _STEP // _LONGEST[dtype])  # parts
    most = max(least, min(steps // _SHORTEST, 2 * _MULTIPROCESSORS * shape.blocks // tiles))

    def cycles(parts: int) -> float:
        of_part = -(-steps // parts)
        blocks = tiles * -(-steps // of_part)
        busy = -(-blocks // _MULTIPROCESSORS) * of_part * slices * shape.cycles
        rounds = -(-blocks // (_MULTIPROCESSORS * shape.blocks))
        alone = rounds * (of_part * slices * (shape.cycles + _ALONE) + _BEFORE_AND_AFTER)
        second_pass = _SECOND_PASS + 8 * batch * m * n * parts / _MEMORY if parts > 1 else 0
        return max(busy, alone) + second_pass

    parts = min(range(least, most + 1), key=cycles)
    return cycles(parts), -(-steps // parts) * _STEP
