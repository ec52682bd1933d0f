"""The first rung of the matrix product: a thread for each element."""

from bp.cuda.kernel import FLOATS, Source, blocks
from bp.cuda.product import BYTES, FLOPS, WAYS, Product

_gemm = Source("linear_naive", T=FLOATS).kernel("gemm_naive", flops=FLOPS, bytes=BYTES)


def multiply(product: Product, variant: str) -> None:
    """Compute a product; its sums, if any, are not this rung's."""
    to = product.destination
    elements = to.batch * to.rows * to.columns
    epilogue = product.epilogue.arguments(to.y, to.wide)
    ways = WAYS[product.way]
    _gemm(blocks(elements), product.a.array, product.b.array, *epilogue, *product.arguments(max(product.k, 1)), *ways)
