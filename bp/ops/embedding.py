"""Embedding: a row of a table for every index, and the gradient of the table."""

from bp.errors import DtypeError, ShapeError
from bp.ops.array import Array
from bp.ops.checks import has_rank, has_shape, wide_dtype
from bp.ops.operation import operation


def _integers(name: str, indices: Array) -> None:
    if indices.dtype.kind not in "iu":
        raise DtypeError(f"{name} expected integer indices, got {indices.dtype}")


@operation
def embedding(indices: Array, weight: Array, padding_idx: int | None) -> Array:
    """y = W[indices], one row for each index: the product of W^T with the one-hot vector of the index.

    Where the index is `padding_idx` (None: nowhere), y is zero and the row of W does not count.
    indices: integers of any shape (...,), in 0..V-1; weight: (V, C). Returns y: (..., C) of the dtype of weight.
    Raises DtypeError for other dtypes and, on the CPU, DataError for an index outside the table, before y is made. A
    GPU does not wait for such a check: there y is NaN at that position, and its dy goes nowhere.
    Source: Bengio, Ducharme, Vincent, Jauvin, A Neural Probabilistic Language Model (2003).
    """
    _integers("embedding", indices)
    has_rank("embedding", "weight", weight, 2, "(V, C)")


@operation
def embedding_backward_input(dy: Array) -> Array:
    """Zeros: indices do not vary continuously, so nothing flows into them.

    dy: (..., C); returns dx: (...,) of the dtype of dy: an array that layers below, such as a Reshape, can pass on.
    """


@operation
def embedding_backward_parameters(
    dy: Array, indices: Array, dweight: Array | None, padding_idx: int | None, accumulate: bool
) -> None:
    """dW_v = the sum of dy over the positions whose index is v; rows that no index names are zero.

    Each position contributes dy to the one row that it read, since dy_c/dW_vc = [v = index]. `dweight` is dense, None
    where it is not wanted; `accumulate` adds to what it holds, otherwise it is overwritten. Positions with
    `padding_idx` contribute nothing, since their y is constant. Every sum runs in the order of the positions, so it is
    the same in every run.

    dy: (..., C); indices: (...,); dweight: (V, C).
    """
    _integers("embedding_backward_parameters", indices)
    has_shape("embedding_backward_parameters", "dy", dy, (*indices.shape, *dy.shape[-1:]))
    if dweight is not None:
        wide_dtype("embedding_backward_parameters", dy, dweight=dweight)
        if dweight.ndim != 2 or dweight.shape[-1:] != dy.shape[-1:]:
            raise ShapeError(
                f"embedding_backward_parameters expected dweight of shape (V, {dy.shape[-1]}), got {dweight.shape}"
            )
