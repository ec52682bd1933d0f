"""A matrix product as every rung takes it: matrices in memory, the way they are multiplied, what follows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bp.cuda.choice import Problem
from bp.cuda.device import device_of
from bp.cuda.epilogue import PLAIN, Destination, Epilogue
from bp.errors import ShapeError
from bp.ops.array import Array

# transpose_a, transpose_b of op(A) (m, k) and op(B) (k, n).
WAYS = {"nt": (False, True), "nn": (False, False), "tn": (True, False)}

# For the FLOPs and bytes of a launch, in the names of PRODUCT_PARAMETERS in kernels/include/product.cuh.
FLOPS = "2 * batch * m * n * k"
# C is written, and read where it is added to; what the epilogue has beside it is of its size.
_BESIDE = "given(kept, residual, before)"
BYTES = f"batch * (m * k + n * k + m * n * (1 + given(beta) + {_BESIDE})) * T + given(bias) * n * T"
# Gradients of weights are float32.
WIDE_BYTES = f"batch * ((m * k + n * k + m * n * {_BESIDE}) * T + m * n * (1 + given(beta)) * 4) + given(bias) * n * T"

WITH_LIBRARIES = ("cuda", "plan")  # devices whose products a library of the vendor's may compute; a plan is of a GPU


@dataclass(frozen=True)
class Matrices:
    """`batch` matrices of rows x columns in the memory of `array`: row r of matrix i begins at its element
    i * batch_stride + r * stride, and what lies between is not touched.

    Raises ShapeError where they reach beyond the array, before or behind it, or where rows overlap.
    """

    array: Array
    rows: int
    columns: int
    stride: int
    batch: int = 1
    batch_stride: int = 0

    def __post_init__(self) -> None:
        below = min(self.rows, self.columns, self.stride, self.batch, self.batch_stride) < 0
        last = (self.batch - 1) * self.batch_stride + (self.rows - 1) * self.stride + self.columns
        beyond = self.stride < self.columns or last > self.array.size
        if below or (self.batch * self.rows * self.columns and beyond):
            raise ShapeError(
                f"expected {self.batch} x {self.rows} rows of {self.columns} elements, {self.stride} from row to row "
                "and "
                f"{self.batch_stride} from matrix to matrix, within an array of {self.array.size} elements"
            )

    @classmethod
    def of(cls, array: Array) -> "Matrices":
        """Those of an array of shape (rows, columns) or (batch, rows, columns); ShapeError for another rank."""
        if array.ndim not in (2, 3):
            raise ShapeError(f"expected a matrix or a batch of matrices, got shape {array.shape}")
        rows, columns = array.shape[-2:]
        return cls(array, rows, columns, columns, array.shape[0] if array.ndim == 3 else 1, rows * columns)

    def some(self, first: int, count: int) -> "Matrices":
        """`count` of them, from number `first` on."""
        flat = self.array.reshape(self.array.size)[first * self.batch_stride :]
        return replace(self, array=flat, batch=count)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one matrix."""
        return self.rows, self.columns

    @property
    def apart(self) -> bool:
        """Whether no element is one of two of them: they follow each other, or their rows lie side by side."""
        if self.batch < 2 or not self.rows * self.columns:
            return True
        behind = self.batch_stride >= (self.rows - 1) * self.stride + self.columns
        across = (self.batch - 1) * self.batch_stride + self.columns
        return behind or self.columns <= self.batch_stride <= across <= self.stride

    @property
    def alignment(self) -> int:
        """16, 4, or the bytes of an element: what all rows begin at a multiple of."""
        places = device_of(self.array).pointer(self.array) | self.stride * self.array.itemsize
        if self.batch > 1:
            places |= self.batch_stride * self.array.itemsize
        return next((bytes for bytes in (16, 4) if places % bytes == 0), self.array.itemsize)


@dataclass(frozen=True)
class Product:
    """C = epilogue(op(A) op(B)), checked: of several matrices, one by one, where there is a batch.

    way: of WAYS; a, b: as they lie in memory, of one dtype; c: of that dtype or float32. sums: with "tn", (m,) float32:
    receives the sums of the columns of A, added to what it holds by the epilogue's beta.
    """

    way: str
    a: Matrices
    b: Matrices
    c: Matrices
    epilogue: Epilogue = PLAIN
    sums: Array | None = None

    @property
    def m(self) -> int:
        """Rows of C."""
        return self.c.rows

    @property
    def n(self) -> int:
        """Columns of C."""
        return self.c.columns

    @property
    def k(self) -> int:
        """The depth."""
        return self.a.rows if self.way == "tn" else self.a.columns

    @property
    def tf32(self) -> bool:
        """Whether the factors are rounded to tf32."""
        return uses_tf32(self.a.array)

    @property
    def destination(self) -> Destination:
        """C, and the sums."""
        array, c = self.c.array, self.c
        narrow = array.dtype == self.a.array.dtype
        y, wide = (array, None) if narrow else (None, array)
        return Destination(y, wide, c.rows, c.columns, c.stride, c.batch, c.batch_stride, self.sums)

    @property
    def problem(self) -> Problem:
        """It as the choice of a kernel sees it."""
        dtype = "tf32" if self.tf32 else self.a.array.dtype.name
        alignment = min(self.a.alignment, self.b.alignment)
        library = device_of(self.a.array).name in WITH_LIBRARIES
        return Problem("linear", self.way, self.m, self.n, self.k, self.c.batch, dtype, alignment, library=library)

    def in_batches(self, most: int) -> Iterator["Product"]:
        """Itself, or where it is of more than `most` matrices, products of that many, which follow each other."""
        if self.c.batch <= most:
            yield self
            return
        for first in range(0, self.c.batch, most):
            count = min(most, self.c.batch - first)
            a, b, c = (matrices.some(first, count) for matrices in (self.a, self.b, self.c))
            yield replace(self, a=a, b=b, c=c, epilogue=self.epilogue.of_rows(first * self.m, count * self.m, self.n))

    def arguments(self, part: int) -> tuple[Any, ...]:
        """Those of PRODUCT_PARAMETERS, with parts of the depth of that length."""
        a, b, c = self.a, self.b, self.c
        return (
            *(self.m, self.n, self.k, c.batch, a.stride, b.stride, c.stride),
            *(a.batch_stride, b.batch_stride, c.batch_stride, part, self.tf32),
        )


def uses_tf32(a: Array) -> bool:
    """Whether the factors of a product of such matrices are rounded to tf32."""
    return bool(device_of(a).tf32 and a.dtype == "float32")
