"""Matrix products by cuBLAS, called through CuPy, as contestants of their own."""

from bp.cuda.epilogue import Epilogue
from bp.cuda.gpu import library_product
from bp.cuda.product import WAYS, Matrices, Product


def product(a, b, c, *, transpose_a=False, transpose_b=False, accumulate=False):
    """Work that computes C = op(A) op(B), or C += op(A) op(B), and returns c; op transposes, or leaves as it is.

    a, b, c: row-major matrices of CuPy, a and b of one dtype, c of that or float32. Sums run in float32. At most one of
    a and b is transposed.
    """
    way = next(way for way, transposed in WAYS.items() if transposed == (transpose_a, transpose_b))
    matrices = (Matrices.of(matrix) for matrix in (a, b, c))
    compute = library_product(Product(way, *matrices, Epilogue(beta=float(accumulate))))

    def work():
        compute()
        return c

    return work
