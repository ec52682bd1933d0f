"""The second rung of the matrix product: tiles of 64 x 64 in shared memory."""

from typing import Any

from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.product import BYTES, FLOPS, WAYS, WIDE_BYTES, Product
from bp.ops.array import Array

TILE = 64  # rows and columns of C that a block computes

_source = Source("linear_tiled", T=FLOATS)
_BYTES = {"nt": BYTES, "nn": BYTES, "tn": WIDE_BYTES}
_kernels = {way: _source.kernel(f"gemm_{way}", flops=FLOPS, bytes=_BYTES[way]) for way in WAYS}


def multiply(product: Product, variant: str) -> None:
    """Compute a product, with "tn" the sums of A's columns too where they are wanted."""
    tiles = -(-product.m // TILE) * -(-product.n // TILE)

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        given = (sums,) if product.way == "tn" else ()
        _kernels[product.way](
            (tiles, parts, product.c.batch),
            *(product.a.array, product.b.array, *epilogue, *given, *product.arguments(part)),
        )

    in_parts(product.a.array, tiles * product.c.batch, product.k, product.destination, product.epilogue, launch)
