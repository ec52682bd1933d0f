"""The rung of plain multiply-adds of the matrix product: large tiles of float32, without tensor cores."""

from bp.cuda import linear_tiles
from bp.cuda.kernel import Source
from bp.cuda.product import BYTES, FLOPS, WAYS, WIDE_BYTES, Product
from bp.cuda.simt_tiles import LONGEST, TILES

_source = Source("linear_simt", T=("float",), variants=TILES)
_BYTES = {"nt": BYTES, "nn": BYTES, "tn": WIDE_BYTES}
_kernels = {way: _source.kernel(f"simt_{way}", flops=FLOPS, bytes=_BYTES[way]) for way in WAYS}


def multiply(product: Product, variant: str) -> None:
    """Compute a product, with "tn" the sums of A's columns too where they are wanted."""
    tile = TILES[variant]
    linear_tiles.multiply(product, _kernels, tile["ROWS"], tile["COLUMNS"], longest=LONGEST, variant=variant)
