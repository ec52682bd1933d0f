"""The rung of mma.sync of the matrix product: tiles on tensor cores in float16, bfloat16 and tf32."""

import sys
from typing import Any

from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.mma_tiles import SHARED, TILES, VARIANTS, part
from bp.cuda.product import BYTES, FLOPS, WAYS, WIDE_BYTES, Product
from bp.ops.array import Array

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
    problem, tile = product.problem, TILES[variant]
    tiles = -(-product.m // tile.rows) * -(-product.n // tile.columns)
    longest = part(variant, product.m, product.n, product.k, product.c.batch, problem.dtype)

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        given = (sums,) if product.way == "tn" else ()
        _kernels[product.way](
            (tiles, parts, product.c.batch),
            *(product.a.array, product.b.array, *epilogue, *given, *product.arguments(part)),
            variant=variant,
        )

    # The cut is this rung's own: there are blocks enough, and `longest` alone decides.
    in_parts(product.a.array, sys.maxsize, product.k, product.destination, product.epilogue, launch, longest)
