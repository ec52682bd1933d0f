"""The tiles of kernels/include/simt_tile.cuh, which one is for a product, and where they gain on those of 64 x 64."""


def _tile(rows: int, columns: int, alignment: int) -> dict[str, int]:
    """Of rows x columns elements of C for matrices of that alignment (16 or 4 bytes).

    BLOCKS: that a multiprocessor has registers for, of which a thread takes 255 for 128 sums, 168 for 64.
    """
    blocks = 2 if rows == columns else 3
    return {"ROWS": rows, "COLUMNS": columns, "ALIGNMENT": alignment, "THREADS": 128, "BLOCKS": blocks}


TILES = {
    "128x128": _tile(128, 128, 16),
    "128x64": _tile(128, 64, 16),
    "64x128": _tile(64, 128, 16),
    "128x128 of 4": _tile(128, 128, 4),
}

# Of the depth that one sum in registers runs over; a longer one is cut, as one is that has too few tiles. The sums of n
# equal terms may nearly all be rounded to the same side: of 200,000 values the worst was off by n / 8 units of the
# machine precision, which is within the 8 sqrt(n) of `bp.checking.tolerance` up to here.
LONGEST = 4096

# The share of a multiprocessor's multiply-adds that the inner loop allows: the instructions of simt_tile.cuh, and the
# reads of shared memory of gemm_tile.cuh, 6 cycles for 16 multiply-adds of each of 4 warps.
_LIMITS = {"128x128": 0.9, "128x64": 0.83, "64x128": 0.83, "128x128 of 4": 0.76}
_TILED, _TILED_LIMIT = 64, 0.67


def whole_vectors(way: str, m: int, n: int, k: int) -> bool:
    """Whether the rows of both operands of a matrix product are whole vectors of 4 elements."""
    lengths = {"nt": (k,), "nn": (k, n), "tn": (m, n)}[way]
    return all(length % 4 == 0 for length in lengths)


def possible(aligned: bool) -> tuple[str, ...]:
    """The tiles that can compute a product. aligned: whether its rows are whole vectors of 16 bytes."""
    return tuple(name for name, tile in TILES.items() if aligned or tile["ALIGNMENT"] == 4)


def best(m: int, n: int, aligned: bool) -> str:
    """The tile of a product: of those for its alignment, the one that computes the most of C in a given time."""
    alignment = 16 if aligned else 4
    return max((name for name in TILES if TILES[name]["ALIGNMENT"] == alignment), key=lambda name: _speed(name, m, n))


def gains(m: int, n: int, name: str) -> bool:
    """Whether the limit of a tile is above that of the tiles of 64 x 64."""
    return _speed(name, m, n) > _TILED_LIMIT * _filled(_TILED, _TILED, m, n)


def blocks(m: int, n: int, name: str) -> int:
    """Tiles of C."""
    tile = TILES[name]
    return -(-m // tile["ROWS"]) * -(-n // tile["COLUMNS"])


def _speed(name: str, m: int, n: int) -> float:
    return _LIMITS[name] * _filled(TILES[name]["ROWS"], TILES[name]["COLUMNS"], m, n)


def _filled(rows: int, columns: int, m: int, n: int) -> float:
    """The share of the tiles that is part of C; 0 where C is empty."""
    return m * n / max(-(-m // rows) * rows * -(-n // columns) * columns, 1)
