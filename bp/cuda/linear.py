"""Linear on the CUDA device: `gemm`, C = epilogue(op(A) op(B)), and the layer's three products made of it."""

import math
from collections.abc import Callable
from dataclasses import replace

from bp.cuda import linear_cublas, linear_fp8, linear_mma, linear_naive, linear_simt, linear_tiled, linear_wgmma
from bp.cuda.activation import activation_backward
from bp.cuda.choice import choose
from bp.cuda.device import device_of, empty
from bp.cuda.dropout import dropout_backward
from bp.cuda.epilogue import PLAIN, Epilogue
from bp.cuda.product import WAYS, Matrices, Product
from bp.cuda.reduce import sum_rows
from bp.errors import ConfigurationError, DtypeError, ShapeError
from bp.ops.array import Array, Shape
from bp.ops.dropout import Mask

# The rungs that bp.cuda.choice has in its table. Each computes any product that the table lets it have; those of
# WITH_SUMS give the sums of A's columns as well.
RUNGS: dict[str, Callable[[Product, str], None]] = {
    "cublas": linear_cublas.multiply,
    "naive": linear_naive.multiply,
    "wgmma": linear_wgmma.multiply,
    "fp8": linear_fp8.multiply,
    "mma": linear_mma.multiply,
    "simt": linear_simt.multiply,
    "tiled": linear_tiled.multiply,
}
WITH_SUMS = ("tiled", "mma", "wgmma", "simt")
_MOST_MATRICES = 65535  # of a launch: blocks along the third axis of a grid


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    y = empty(x, (*x.shape[:-1], weight.shape[0]))
    gemm(_rows(x), weight, _rows(y), transpose_b=True, epilogue=Epilogue(bias=bias))
    return y


def linear_activation(
    x: Array, weight: Array, bias: Array | None, activation: str, keep: bool, mask: Mask | None, residual: Array | None
) -> tuple[Array, Array | None]:
    y = empty(x, (*x.shape[:-1], weight.shape[0]))
    before = empty(x, y.shape) if keep and activation not in ("identity", "relu") else None
    epilogue = Epilogue(
        bias=bias,
        activation=activation,
        mask=mask,
        residual=None if residual is None else _rows(residual),
        before=None if before is None else _rows(before),
    )
    gemm(_rows(x), weight, _rows(y), transpose_b=True, epilogue=epilogue)
    return y, y if keep and activation == "relu" else before


def linear_backward_input(dy: Array, weight: Array) -> Array:
    return linear_backward_input_activation(dy, weight, None, "identity", None)


def linear_backward_input_activation(
    dy: Array, weight: Array, kept: Array | None, activation: str, mask: Mask | None
) -> Array:
    dz = empty(dy, (*dy.shape[:-1], weight.shape[1]))
    scale = 1.0
    if mask is not None and mask.in_kept:
        scale, mask = mask.scale, None
    epilogue = Epilogue(activation=activation, mask=mask, kept=None if kept is None else _rows(kept), alpha=scale)
    gemm(_rows(dy), weight, _rows(dz), epilogue=epilogue)
    return dz


def linear_activation_backward(dy: Array, kept: Array | None, activation: str, mask: Mask | None) -> Array:
    if activation == "relu" and mask is not None and not mask.in_kept:
        dy, mask = dropout_backward(dy, mask.control, mask.call_site, mask.first_element, mask.rate), None
    return activation_backward(dy, kept, activation, mask)


def linear_backward_parameters(
    dy: Array, x: Array, dweight: Array | None, dbias: Array | None, accumulate: bool
) -> None:
    dy, x = _rows(dy), _rows(x)
    with_sums = False
    if dweight is not None:
        factors = Matrices.of(dy), Matrices.of(x)
        product = Product("tn", *factors, Matrices.of(dweight), Epilogue(beta=float(accumulate)))
        rung = choose(product.problem, device_of(dy).capability).rung if dweight.size else ""
        # A rung that rounds dy to tf32 would add up what it has rounded.
        with_sums = rung in WITH_SUMS and not product.tf32
        multiply(replace(product, sums=dbias if with_sums else None))
    if dbias is not None and not with_sums:
        sum_rows(dy, dbias, accumulate)


# The product ------------------------------------------------------------------------------------------------


def gemm(
    a: Array | Matrices,
    b: Array | Matrices,
    c: Array | Matrices,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    epilogue: Epilogue = PLAIN,
) -> None:
    """C = epilogue(op(A) op(B)), where op transposes a matrix or leaves it.

    a: (m, k), (k, m) where it is transposed; b: (k, n) or (n, k); of one dtype, float32, float16 or bfloat16. c: (m, n)
    of that dtype or float32; it must not overlap a or b. With a leading axis, as many products as it is long, each for
    itself. Arrays are C-contiguous; matrices whose rows lie apart are given as `Matrices`. No transposed copy is made.
    Any sizes: with k = 0 the product is zero. Sums run in float32; the factors of float32 matrices are rounded to tf32
    first where the device is set so (`CudaDevice.tf32`).
    Raises ShapeError or DtypeError where these do not fit, ConfigurationError where both matrices are transposed
    (transpose the result instead: exchange a and b).
    """
    way = next((way for way, transposed in WAYS.items() if transposed == (transpose_a, transpose_b)), None)
    if way is None:
        raise ConfigurationError("gemm transposes one of its matrices at most; C^T = B A is the product of both")
    left, right, result = (given if isinstance(given, Matrices) else Matrices.of(given) for given in (a, b, c))
    product = Product(way, left, right, result, epilogue)
    _check(product, (c.batch, *c.shape) if isinstance(c, Matrices) and c.batch > 1 else c.shape)
    multiply(product)


def multiply(product: Product) -> None:
    """Compute a product of checked operands on the rung that the table has for it."""
    if not product.c.batch * product.m * product.n:
        return
    chosen = choose(product.problem, device_of(product.a.array).capability)
    for some in product.in_batches(_MOST_MATRICES):
        RUNGS[chosen.rung](some, chosen.variant)


def _check(product: Product, whole: Shape) -> None:
    """whole: the shape of what lies beside C."""
    a, b, c = product.a, product.b, product.c
    transpose_a, transpose_b = WAYS[product.way]
    m, k = a.shape[::-1] if transpose_a else a.shape
    depth, n = b.shape[::-1] if transpose_b else b.shape
    if k != depth or not a.batch == b.batch == c.batch:
        raise ShapeError(
            f"gemm expected matrices of one depth, as many of each, got {a.batch} of shape {a.shape}"
            f"{' transposed' * transpose_a} and {b.batch} of shape {b.shape}{' transposed' * transpose_b} for {c.batch}"
        )
    if c.shape != (m, n):
        raise ShapeError(f"gemm expected c of shape {(m, n)}, got {c.shape}")
    if not c.apart:
        raise ShapeError(
            f"gemm expected matrices of c that lie behind each other, or whose rows lie side by side, got {c.batch} of "
            f"shape {c.shape}, {c.stride} from row to row and {c.batch_stride} from matrix to matrix"
        )
    if a.array.dtype != b.array.dtype or c.array.dtype not in (a.array.dtype, "float32"):
        raise DtypeError(
            f"gemm expected a and b of one dtype and c of that or float32, got {a.array.dtype}, {b.array.dtype} and "
            f"{c.array.dtype}"
        )
    epilogue = product.epilogue
    for name, array, expected in (
        ("bias", epilogue.bias, (n,)),
        ("residual", epilogue.residual, whole),
        ("kept", epilogue.kept, whole),
        ("before", epilogue.before, whole),
    ):
        if array is not None and array.shape != expected:
            raise ShapeError(f"gemm expected {name} of shape {expected}, got {array.shape}")


def _rows(array: Array) -> Array:
    """The array as a matrix of rows; sizes are written out since -1 is ambiguous for an empty batch."""
    return array if array.ndim == 2 else array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
