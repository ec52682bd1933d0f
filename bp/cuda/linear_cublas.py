"""Rung 0 of the matrix product: the vendor's library, cuBLAS, which the other rungs are measured against."""

from bp.cuda.device import CudaDevice, device_of, empty
from bp.cuda.epilogue import add
from bp.cuda.gpu import library_product
from bp.cuda.product import Matrices, Product
from bp.errors import ShapeError

MOST = 2**31 - 1  # of its int


def multiply(product: Product, variant: str) -> None:
    """Compute a product; its sums, if any, are not this rung's.

    cuBLAS writes C itself where the epilogue is plain; else it writes the sums in float32, and one launch of
    `add_parts` applies the epilogue to them. Raises ShapeError where rows lie further apart than cuBLAS can say.
    """
    for name, matrices in (("a", product.a), ("b", product.b), ("c", product.c)):
        if matrices.stride > MOST:
            raise ShapeError(
                f"cuBLAS expected at most {MOST} elements from row to row of {name}, got {matrices.stride}: take "
                "another rung (BP_LINEAR), or no tuned table (BP_TUNING=off)"
            )
    device = device_of(product.a.array)
    if product.k and product.epilogue.plain:
        _run(product, device)
        return
    to = product.destination
    sums = empty(product.a.array, (to.batch, to.rows, to.columns), "float32")
    if product.k:
        _run(Product(product.way, product.a, product.b, Matrices.of(sums)), device)
    else:
        device.fill(sums, 0.0)
    add(product.a.array, sums, 1, to, product.epilogue)


def _run(product: Product, device: CudaDevice) -> None:
    device.note_transfer("cuBLAS, which CuPy cannot record, computes a product")
    if device.name != "plan":
        library_product(product)()
