"""The rung of wgmma of the matrix product: tiles on Hopper's tensor cores in float16, bfloat16 and, where both factors
have the depth along their rows, tf32."""

import sys
from typing import Any

from bp.cuda import linear_tiled
from bp.cuda.device import device_of
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import C_NAMES, Source
from bp.cuda.product import BYTES, FLOPS, WAYS, WIDE_BYTES, Matrices, Product
from bp.cuda.tensor_map import BYTES as MAP_BYTES
from bp.cuda.tensor_map import tiled
from bp.cuda.wgmma_tiles import MOST, SHARED, TILES, VARIANTS, part, slice_of
from bp.ops.array import Array

# Rows of the boxes in which a warp stores results; lines of a box whose rows run across the depth.
_STORED_ROWS, _LINES = 16, 64

_source = Source("linear_wgmma", only=90, T=("float16", "bfloat16"), variants=VARIANTS)
_BYTES = {"nt": BYTES, "nn": BYTES, "tn": WIDE_BYTES}
_kernels = {
    way: _source.kernel(
        f"wgmma_{way}",
        flops=FLOPS,
        bytes=_BYTES[way],
        shared=SHARED,
        instructions=("HGMMA", "UTMALDG", "UTMASTG"),
    )
    for way in WAYS
}
_tf32_source = Source("linear_wgmma_tf32", only=90, T=("float",), variants=VARIANTS)
_tf32_nt = _tf32_source.kernel(
    "wgmma_tf32_nt",
    flops=FLOPS,
    bytes=BYTES,
    shared=SHARED,
    instructions=("HGMMA", "UTMALDG"),
)


def multiply(product: Product, variant: str) -> None:
    """Compute a product, floats ("nt" alone) as tf32, with "tn" the sums of A's columns too where they are wanted.

    Nothing to add up (k = 0), or sizes that the copy engine cannot count, is left to the rung "tiled".
    """
    a, b, c, tile = product.a, product.b, product.c, TILES[variant]
    itemsize: int = a.array.itemsize
    tiles = c.batch * -(-product.m // tile.rows) * -(-product.n // tile.columns)
    longest = part(variant, product.m, product.n, product.k, c.batch, c.array.dtype == "float32", itemsize)
    if not product.k or max(product.m, product.n, product.k, tiles * -(-product.k // longest)) > MOST:
        linear_tiled.multiply(product, "")
        return
    # Rows of A that run along the depth come in one box of the tile's height, others 64 at a time; B likewise.
    transpose_a, transpose_b = WAYS[product.way]
    maps = _map(a, _LINES if transpose_a else tile.rows), _map(b, tile.columns if transpose_b else _LINES)
    like, blocks = a.array, device_of(a.array).multiprocessors

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        grid, sizes = min(tiles * parts, blocks), (*product.arguments(part), parts)
        if product.tf32:
            _tf32_nt(grid, *maps, *epilogue, *sizes, variant=variant)
            return
        boxes = parts == 1 and _leaves_in_boxes(product)
        given = (sums,) if product.way == "tn" else ()
        _kernels[product.way](
            grid,
            *(*maps, _map(c, _STORED_ROWS) if boxes else bytes(MAP_BYTES)),
            *(*epilogue, *given, *sizes, boxes),
            variant=variant,
            T=C_NAMES[like.dtype.name],
        )

    # The cut is this rung's own: there are blocks enough, and `longest` alone decides.
    in_parts(like, sys.maxsize, product.k, product.destination, product.epilogue, launch, longest, slice_of(itemsize))


def _map(matrices: Matrices, rows: int) -> bytes:
    """The map of matrices as they lie in memory, in boxes of so many rows of 128 bytes; it rounds floats to tf32.

    What all products have in common, at a distance of 0, is a map of one matrix.
    """
    pitch, itemsize = matrices.stride * matrices.array.itemsize, matrices.array.itemsize
    several = matrices.batch > 1 and matrices.batch_stride
    return tiled(
        matrices.array,
        (matrices.columns, matrices.rows, matrices.batch if several else 1),
        (pitch, matrices.batch_stride * itemsize if several else pitch),
        (slice_of(itemsize), rows, 1),
        tf32=itemsize == 4,
    )


def _leaves_in_boxes(product: Product) -> bool:
    """Whether the copy engine can store C: what it stores is of 16 bits, and depends on the sums and the bias alone."""
    epilogue, c = product.epilogue, product.c
    beside = (epilogue.before, epilogue.kept, epilogue.residual, epilogue.mask)
    return (
        c.array.dtype == product.a.array.dtype
        and c.alignment == 16
        and epilogue.beta == 0
        and epilogue.activation in ("identity", "relu")
        and all(array is None for array in beside)
    )
