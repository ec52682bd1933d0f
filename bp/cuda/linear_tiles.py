"""What the rungs have in common that compute a matrix product in tiles of C: their grid, and what each kernel takes."""

from collections.abc import Mapping
from typing import Any

from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import Kernel
from bp.cuda.product import Product
from bp.ops.array import Array


def multiply(
    product: Product,
    kernels: Mapping[str, Kernel],
    rows: int,
    columns: int,
    *,
    blocks: int | None = None,
    longest: int | None = None,
    **axes: str,
) -> None:
    """Compute a product in tiles of rows x columns, with "tn" the sums of A's columns too where they are wanted.

    kernels: by way; axes: what they are specialised by. blocks, longest: of `bp.cuda.choice.cut`, blocks where it is
    not the number of tiles.
    """
    tiles, batch = -(-product.m // rows) * -(-product.n // columns), product.c.batch

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        given = (sums,) if product.way == "tn" else ()
        kernels[product.way](
            (tiles, parts, batch),
            *(product.a.array, product.b.array, *epilogue, *given, *product.arguments(part)),
            **axes,
        )

    in_parts(
        product.a.array,
        tiles * batch if blocks is None else blocks,
        product.k,
        product.destination,
        product.epilogue,
        launch,
        longest,
    )
