"""The rung of mma.sync of the matrix product: tiles on tensor cores in float16, bfloat16 and tf32."""

import sys

from bp.cuda import linear_tiles
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.mma_tiles import SHARED, TILES, VARIANTS, part
from bp.cuda.product import BYTES, FLOPS, WAYS, WIDE_BYTES, Product

_source = Source("linear_mma", least_of={"bfloat16": 80, "float": 80}, T=FLOATS, variants=VARIANTS)
_BYTES = {"nt": BYTES, "nn": BYTES, "tn": WIDE_BYTES}
# With "tn" ldmatrix cannot take floats out of shared memory.
_INSTRUCTIONS = {"nt": ("HMMA", "LDSM"), "nn": ("HMMA", "LDSM"), "tn": ("HMMA",)}
_kernels = {
    way: _source.kernel(f"mma_{way}", flops=FLOPS, bytes=_BYTES[way], shared=SHARED, instructions=_INSTRUCTIONS[way])
    for way in WAYS
}


def multiply(product: Product, variant: str) -> None:
    """Compute a product, floats as tf32, with "tn" the sums of A's columns too where they are wanted."""
    tile, dtype = TILES[variant], product.problem.dtype
    longest = part(variant, product.m, product.n, product.k, product.c.batch, dtype)
    # The cut is this rung's own: there are blocks enough, and `longest` alone decides.
    whole = sys.maxsize
    linear_tiles.multiply(product, _kernels, tile.rows, tile.columns, blocks=whole, longest=longest, variant=variant)
