"""The rung of plain multiply-adds of the matrix product: large tiles of float32, without tensor cores."""

from typing import Any

from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import Source
from bp.cuda.product import BYTES, FLOPS, WAYS, WIDE_BYTES, Product
from bp.cuda.simt_tiles import LONGEST, TILES, blocks
from bp.ops.array import Array

_source = Source("linear_simt", T=("float",), variants=TILES)
_BYTES = {"nt": BYTES, "nn": BYTES, "tn": WIDE_BYTES}
_kernels = {way: _source.kernel(f"simt_{way}", flops=FLOPS, bytes=_BYTES[way]) for way in WAYS}


def multiply(product: Product, variant: str) -> None:
    """Compute a product, with "tn" the sums of A's columns too where they are wanted."""
    tiles = blocks(product.m, product.n, variant)

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        given = (sums,) if product.way == "tn" else ()
        _kernels[product.way](
            (tiles, parts, product.c.batch),
            *(product.a.array, product.b.array, *epilogue, *given, *product.arguments(part)),
            variant=variant,
        )

    to = product.destination
    in_parts(product.a.array, tiles * product.c.batch, product.k, to, product.epilogue, launch, LONGEST)
