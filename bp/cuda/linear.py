"""Linear on the CUDA device: `gemm`, C = f(A B + bias), and the layer's three products made of it."""

import math

from bp.cuda.choice import choose, cut
from bp.cuda.device import device_of, empty
from bp.cuda.kernel import C_NAMES, FLOATS, Source, blocks
from bp.cuda.reduce import sum_rows
from bp.errors import ConfigurationError, DtypeError, ShapeError
from bp.ops.array import Array

# kernels/include/epilogue.cuh has the same numbers.
ACTIVATIONS = {"none": 0, "relu": 1, "gelu_tanh": 2, "silu": 3}

TILE = 64  # rows and columns of C that a block of the tiled kernels computes
_WIDTH = 32  # elements that a block of add_parts computes

_FLOPS, _BYTES = "2 * m * n * k", "(m * k + n * k + m * n) * T"
_naive = Source("linear_naive", T=FLOATS).kernel("gemm_naive", flops=_FLOPS, bytes=_BYTES)
_tiled = Source("linear_tiled", T=FLOATS)
_nt = _tiled.kernel("gemm_nt", flops=_FLOPS, bytes=_BYTES)
_nn = _tiled.kernel("gemm_nn", flops=_FLOPS, bytes=_BYTES)
_tn = _tiled.kernel("gemm_tn", flops=_FLOPS, bytes="(m * k + n * k) * T + m * n * 4")
_add_parts = Source("linear_parts", T=FLOATS).kernel(
    "add_parts", flops="(n + biases) * count", bytes="(n + biases) * (count + 1) * 4"
)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    y, _ = linear_activation(x, weight, bias, "none")
    return y


def linear_activation(
    x: Array, weight: Array, bias: Array | None, activation: str, keep: bool = False
) -> tuple[Array, Array | None]:
    """(f(x W^T + b), x W^T + b where `keep` is set, else None) in one launch.

    activation: a key of ACTIVATIONS. keep: the backward of GELU and SiLU needs what they are applied to; that of ReLU
    takes its result. f is applied to the sum before it is rounded to the dtype.
    """
    y = empty(x, (*x.shape[:-1], weight.shape[0]))
    before = empty(x, y.shape) if keep else None
    preactivation = None if before is None else _rows(before)
    gemm(_rows(x), weight, _rows(y), transpose_b=True, bias=bias, activation=activation, preactivation=preactivation)
    return y, before


def linear_backward_input(dy: Array, weight: Array) -> Array:
    dx = empty(dy, (*dy.shape[:-1], weight.shape[1]))
    gemm(_rows(dy), weight, _rows(dx))
    return dx


def linear_backward_parameters(
    dy: Array, x: Array, dweight: Array | None, dbias: Array | None, accumulate: bool
) -> None:
    dy, x = _rows(dy), _rows(x)
    sums = dbias if dweight is not None and _gives_column_sums(dy, dweight) else None
    if dweight is not None:
        _product(dy, x, dweight, True, False, accumulate, None, 0, None, sums)
    if dbias is not None and sums is None:
        sum_rows(dy, dbias, accumulate)


# The product ------------------------------------------------------------------------------------------------


def gemm(
    a: Array,
    b: Array,
    c: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
    bias: Array | None = None,
    activation: str = "none",
    preactivation: Array | None = None,
) -> None:
    """C = f(op(A) op(B) + bias), or C += with `accumulate`, where op transposes a matrix or leaves it.

    a: (m, k), (k, m) where it is transposed; b: (k, n) or (n, k); both C-contiguous and of one dtype, float32, float16
    or bfloat16; no transposed copy is made. c: (m, n), of that dtype or float32; it must not overlap a or b.
    bias: (n,), one for each column; activation: a key of ACTIVATIONS; preactivation: (m, n), receives what f is applied
    to; both of the dtype of a. Any sizes: with k = 0 the product is zero. Sums run in float32; the factors of float32
    matrices are rounded to tf32 first where the device is set so (`CudaDevice.tf32`).
    Raises ShapeError or DtypeError where these do not fit, ConfigurationError for an unknown activation or where both
    matrices are transposed (transpose the result instead: exchange a and b).
    """
    if transpose_a and transpose_b:
        raise ConfigurationError("gemm transposes one of its matrices at most; C^T = B A is the product of both")
    if activation not in ACTIVATIONS:
        raise ConfigurationError(f"gemm expected an activation of {', '.join(ACTIVATIONS)}, got '{activation}'")
    _check(a, b, c, transpose_a, transpose_b, bias, preactivation)
    _product(a, b, c, transpose_a, transpose_b, accumulate, bias, ACTIVATIONS[activation], preactivation, None)


def _check(
    a: Array, b: Array, c: Array, transpose_a: bool, transpose_b: bool, bias: Array | None, preactivation: Array | None
) -> None:
    if not a.ndim == b.ndim == c.ndim == 2:
        raise ShapeError(f"gemm expected matrices, got shapes {a.shape}, {b.shape} and {c.shape}")
    m, k = a.shape[::-1] if transpose_a else a.shape
    depth, n = b.shape[::-1] if transpose_b else b.shape
    if k != depth:
        raise ShapeError(
            f"gemm expected matrices of one depth, got a of shape {a.shape}{' transposed' * transpose_a} and "
            f"b of shape {b.shape}{' transposed' * transpose_b}"
        )
    for name, array, expected in (("c", c, (m, n)), ("bias", bias, (n,)), ("preactivation", preactivation, (m, n))):
        if array is not None and array.shape != expected:
            raise ShapeError(f"gemm expected {name} of shape {expected}, got {array.shape}")
    if c.dtype != a.dtype and c.dtype != "float32":
        raise DtypeError(f"gemm expected c of dtype {a.dtype} or float32, got {c.dtype}")


def _product(
    a: Array,
    b: Array,
    c: Array,
    transpose_a: bool,
    transpose_b: bool,
    accumulate: bool,
    bias: Array | None,
    activation: int,
    before: Array | None,
    dbias: Array | None,
) -> None:
    """gemm of checked arguments. dbias, with transpose_a: (m,) float32, receives the sums of the columns of a."""
    m, n = c.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    if not c.size:
        return
    tf32 = uses_tf32(a)
    y, wide = (c, None) if c.dtype == a.dtype else (None, c)
    if choose("linear", m, n, k, a.dtype, device_of(a).capability) == "naive":
        strides = (*((1, m) if transpose_a else (k, 1)), *((1, k) if transpose_b else (n, 1)))
        _naive(blocks(m * n), a, b, bias, before, y, wide, m, n, k, *strides, accumulate, activation, tf32)
        return
    tiles = -(-m // TILE) * -(-n // TILE)
    parts, part = cut(tiles, k)
    kernel = _tn if transpose_a else _nt if transpose_b else _nn
    if parts == 1:
        sums = (dbias,) if transpose_a else ()
        kernel(tiles, a, b, bias, before, y, wide, *sums, m, n, k, part, accumulate, activation, tf32)
        return
    work = Parts(a, parts, c.size, 0 if dbias is None else m)
    sums = (work.sums,) if transpose_a else ()
    kernel((tiles, parts), a, b, None, None, None, work.products, *sums, m, n, k, part, False, 0, tf32)
    work.sum(
        n,
        bias=bias,
        before=before,
        y=y,
        wide=wide,
        dbias=dbias,
        accumulate=accumulate,
        activation=activation,
    )


class Parts:
    """Work space for the parts of a sum whose depth was cut: for each the elements of the product, then of a bias."""

    def __init__(self, like: Array, parts: int, elements: int, biases: int = 0) -> None:
        self.elements, self.biases = elements, biases
        self.products = empty(like, (parts, elements + biases), "float32")
        self._like = like

    @property
    def sums(self) -> Array | None:
        """Where the bias of the first part lies; None without one."""
        return self.products.reshape(self.products.size)[self.elements :] if self.biases else None

    def sum(
        self,
        columns: int,
        *,
        bias: Array | None = None,
        before: Array | None = None,
        y: Array | None = None,
        wide: Array | None = None,
        dbias: Array | None = None,
        accumulate: bool = False,
        activation: int = 0,
    ) -> None:
        """The sum of the parts, in their order, through the epilogue into y (of the dtype of `like`) or wide (float32).

        columns: elements of a row of the product, each with its bias; the rest as in `kernels/linear_parts.cu`.
        """
        _add_parts(
            -(-(self.elements + self.biases) // _WIDTH),
            self.products,
            bias,
            before,
            y,
            wide,
            dbias,
            self.elements,
            columns,
            self.biases,
            len(self.products),
            accumulate,
            activation,
            T=C_NAMES[self._like.dtype.name],
        )


def uses_tf32(a: Array) -> bool:
    """Whether the factors of a product of such matrices are rounded to tf32."""
    return bool(device_of(a).tf32 and a.dtype == "float32")


def _gives_column_sums(dy: Array, dweight: Array) -> bool:
    """Whether the kernel of dW gives db as well: not the first rung, nor one that rounds dy to tf32."""
    if not dweight.size or uses_tf32(dy):
        return False
    m, n = dweight.shape
    return choose("linear", m, n, len(dy), dy.dtype, device_of(dy).capability) != "naive"


def _rows(array: Array) -> Array:
    """The array as a matrix of rows; sizes are written out since -1 is ambiguous for an empty batch."""
    return array if array.ndim == 2 else array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
