"""The last rung of the matrix product: 16-bit factors turned into 8 bits, which Hopper multiplies at twice the rate.

A result has the precision of its factors, 3 bits of mantissa (2 of a gradient), so no rule takes this rung: only who
asks for it by BP_LINEAR=fp8. Each factor has one scale, a power of two, by its largest element.
Source: Micikevicius et al., FP8 Formats for Deep Learning (2022).
"""

from typing import Any

from bp.cuda import linear_tiled
from bp.cuda.device import device_of, empty
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import C_NAMES, Source
from bp.cuda.product import FLOPS, WAYS, Matrices, Product
from bp.cuda.tensor_map import tiled
from bp.cuda.wgmma_tiles import MOST, SHARED, TILES, VARIANTS
from bp.ops.array import Array

_TYPES = ("float16", "bfloat16")
_VARIANT = "128x128"
_SLICE = 128
_ALIGNMENT = 16  # of the rows of bytes: what the copy engine takes
_MOST_BLOCKS = 256  # that look for the largest element: the threads of a block of fp8_quantize, which looks at theirs
_TILE = 64 * 128  # elements that a block of fp8_quantize has at a time

_quantizer = Source("linear_fp8_quantize", least=89, T=_TYPES)
_largest = _quantizer.kernel("fp8_largest", flops="rows * columns", bytes="rows * columns * T")
_quantize = _quantizer.kernel("fp8_quantize", flops="rows * columns", bytes="rows * columns * (T + 1)")
_source = Source("linear_fp8", only=90, T=_TYPES, variants={_VARIANT: VARIANTS[_VARIANT]})
_products = {
    name: _source.kernel(
        f"fp8_{name}",
        flops=FLOPS,
        bytes="m * k + n * k + (m * n * (1 + given(beta) + given(kept, residual, before)) + given(bias) * n) * T",
        shared=SHARED,
        instructions=("QGMMA", "UTMALDG"),
    )
    for name in ("forward", "backward")
}


def multiply(product: Product, variant: str) -> None:
    """Compute a product, from factors that it makes of 8 bits; sums, if any, are not this rung's.

    Several products at a time, nothing to add up (k = 0), or sizes that the copy engine cannot count, is left to the
    rung "tiled".
    """
    tile = TILES[_VARIANT]
    tiles = -(-product.m // tile.rows) * -(-product.n // tile.columns)
    if product.c.batch > 1 or not product.k or max(product.m, product.n, product.k, tiles) > MOST:
        linear_tiled.multiply(product, "")
        return
    transpose_a, transpose_b = WAYS[product.way]
    forward = product.way == "nt"
    # Both with the depth along their rows: op(A) as it is, op(B) transposed.
    a, scale_a = quantize(product.a, transposed=transpose_a, gradient=not forward)
    b, scale_b = quantize(product.b, transposed=not transpose_b, gradient=False)
    maps = _map(a, product.m, product.k, tile.rows), _map(b, product.n, product.k, tile.columns)
    like, blocks = product.a.array, device_of(product.a.array).multiprocessors

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        _products["forward" if forward else "backward"](
            min(tiles * parts, blocks),
            *(*maps, scale_a, scale_b, *epilogue, *product.arguments(part), parts),
            variant=variant,
            T=C_NAMES[like.dtype.name],
        )

    in_parts(like, tiles, product.k, product.destination, product.epilogue, launch, step=_SLICE)


def quantize(matrix: Matrices, *, transposed: bool, gradient: bool) -> tuple[Array, Array]:
    """(bytes of a matrix or of its transpose, what they are multiplied by).

    gradient: in e5m2, otherwise e4m3. Returns uint8 (rows, columns rounded up to 16), of which the last are not used,
    and float32 (1,). Two launches: the largest element, then the bytes.
    """
    rows, columns = (matrix.columns, matrix.rows) if transposed else (matrix.rows, matrix.columns)
    pitch = -(-columns // _ALIGNMENT) * _ALIGNMENT
    result, scale = empty(matrix.array, (rows, pitch), "uint8"), empty(matrix.array, (1,), "float32")
    elements = matrix.rows * matrix.columns
    largest = empty(matrix.array, (min(-(-elements // _TILE), _MOST_BLOCKS),), "float32")
    sizes = matrix.rows, matrix.columns, matrix.stride
    _largest(largest.size, matrix.array, largest, *sizes)
    copies, pitches = ((None, result), (0, pitch)) if transposed else ((result, None), (pitch, 0))
    tiles = -(-matrix.rows // 64) * -(-matrix.columns // 128)
    _quantize(tiles, matrix.array, largest, *copies, scale, *sizes, *pitches, largest.size, gradient)
    return result, scale


def _map(matrix: Array, rows: int, columns: int, box: int) -> bytes:
    """The map of a matrix of bytes, in boxes of so many rows of a slice."""
    pitch = matrix.shape[1]
    return tiled(matrix, (columns, rows, 1), (pitch, pitch), (_SLICE, box, 1))
