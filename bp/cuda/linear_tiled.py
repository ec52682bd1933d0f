"""The second rung of the matrix product: tiles of 64 x 64 in shared memory."""

from bp.cuda import linear_tiles
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.product import BYTES, FLOPS, WAYS, WIDE_BYTES, Product

TILE = 64  # rows and columns of C that a block computes

_source = Source("linear_tiled", T=FLOATS)
_BYTES = {"nt": BYTES, "nn": BYTES, "tn": WIDE_BYTES}
_kernels = {way: _source.kernel(f"gemm_{way}", flops=FLOPS, bytes=_BYTES[way]) for way in WAYS}


def multiply(product: Product, variant: str) -> None:
    """Compute a product, with "tn" the sums of A's columns too where they are wanted."""
    linear_tiles.multiply(product, _kernels, TILE, TILE)
