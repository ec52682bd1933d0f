"""What happens to the sums of a product before they are stored, and the second pass where its depth was cut."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bp.cuda.choice import STEP, cut
from bp.cuda.device import empty
from bp.cuda.kernel import C_NAMES, FLOATS, Source, blocks
from bp.ops.activation import FUSED_ACTIVATIONS
from bp.ops.array import Array
from bp.ops.dropout import Mask, dropped_levels

# kernels/include/epilogue.cuh has the same numbers.
ACTIVATIONS = {name: number for number, name in enumerate(FUSED_ACTIVATIONS)}

_WORD = 0xFFFFFFFF
_source = Source("linear_parts", T=FLOATS)
_FLOPS = "(n + biases) * count"
_BYTES = (
    "(n + biases) * (count + 1 + given(beta)) * 4 + (n * given(kept, residual, before) + columns * given(bias)) * T"
)
_add_parts = _source.kernel("add_parts", flops=_FLOPS, bytes=_BYTES)
_add_many_parts = _source.kernel("add_many_parts", flops=_FLOPS, bytes=_BYTES)
ADDING = ("add_parts", "add_many_parts")  # the names of both
_WIDTH = 32  # elements that a block of add_many_parts computes
_FEW = 8  # parts: all of an element are on their way to a thread at once
_MANY = 32  # parts: too long a sum for one thread
_FILLED = 2**17  # elements that give a GPU blocks enough where a thread has all parts of several


@dataclass(frozen=True)
class Epilogue:
    """C = mask(f(z)) + residual + beta C with z = alpha sum + bias, in the launch that computed the sum.

    bias: (n,), one for each column of C; activation: f, one of FUSED_ACTIVATIONS; before: (m, n), receives z; mask: of
    dropout; residual: (m, n). kept: (m, n): in place of f(z) comes z f'(kept), the gradient in front of f, where kept
    is y for "relu" and f's argument for the others. All arrays C-contiguous and of the dtype of the factors.
    """

    bias: Array | None = None
    activation: str = "identity"
    mask: Mask | None = None
    residual: Array | None = None
    kept: Array | None = None
    before: Array | None = None
    alpha: float = 1.0
    beta: float = 0.0

    def arguments(self, y: Array | None, wide: Array | None) -> tuple[Any, ...]:
        """Those of EPILOGUE_PARAMETERS, for results in the dtype of the factors (y) or in float32 (wide)."""
        mask, bits = self.mask, (0, 0, 1.0, 0)
        if mask is not None:
            bits = mask.call_site & _WORD, dropped_levels(mask.rate), mask.scale, mask.first_element
        return (
            *(self.bias, self.kept, self.residual, None if mask is None else mask.control, self.before, y, wide),
            *(self.alpha, self.beta, ACTIVATIONS[self.activation], *bits),
        )

    def of_rows(self, first: int, count: int, columns: int) -> "Epilogue":
        """The same for `count` rows of C, from row `first` on, as if all matrices lay below each other."""

        def rows(array: Array | None) -> Array | None:
            return None if array is None else array.reshape(array.size)[first * columns : (first + count) * columns]

        mask = self.mask
        if mask is not None:
            mask = replace(mask, first_element=mask.first_element + first * columns)
        return replace(self, mask=mask, before=rows(self.before), residual=rows(self.residual), kept=rows(self.kept))

    @property
    def plain(self) -> bool:
        """Whether it is alpha times the sum, and beta C, and no more."""
        arrays = (self.bias, self.before, self.mask, self.residual, self.kept)
        return self.activation == "identity" and all(array is None for array in arrays)


PLAIN = Epilogue()


@dataclass(frozen=True)
class Destination:
    """Where the results of a product go: `batch` matrices of rows x columns, row r of matrix i at element
    i * batch_stride + r * stride of y (in the dtype of the factors) or of wide (float32); the other one is None.

    sums: float32, receives what the kernel adds up on its way, such as a bias gradient; None: not wanted.
    """

    y: Array | None
    wide: Array | None
    rows: int
    columns: int
    stride: int
    batch: int = 1
    batch_stride: int = 0
    sums: Array | None = None


# What a kernel is launched with: (parts, part, arguments of the epilogue, sums).
Launch = Callable[[int, int, tuple[Any, ...], Array | None], None]


def in_parts(
    like: Array,
    blocks: int,
    depth: int,
    to: Destination,
    epilogue: Epilogue,
    launch: Launch,
    longest: int | None = None,
    step: int = STEP,
) -> None:
    """Launch a product, its depth cut into parts where it has too few blocks for a GPU, and add the parts.

    like: an array of the dtype of the factors; blocks: that the product has uncut; longest, step: see
    `choice.cut`.
    launch(parts, part, arguments, sums): runs the kernel for `parts` parts of `part` steps of the depth. Where there
    are several, each writes its elements as they are in float32, then its sums.
    """
    parts, part = cut(blocks, depth, longest, step)
    if parts == 1:
        launch(1, part, epilogue.arguments(to.y, to.wide), to.sums)
        return
    elements, biases = to.batch * to.rows * to.columns, 0 if to.sums is None else to.sums.size
    products = empty(like, (parts, elements + biases), "float32")
    launch(
        parts,
        part,
        PLAIN.arguments(None, products),
        products.reshape(products.size)[elements:] if biases else None,
    )
    add(like, products, parts, to, epilogue)


def add(like: Array, products: Array, parts: int, to: Destination, epilogue: Epilogue) -> None:
    """Add `parts` parts that lie one behind the other in `products`, as `in_parts` has them, and apply the epilogue."""
    elements, biases = to.batch * to.rows * to.columns, 0 if to.sums is None else to.sums.size
    results = elements + biases
    if parts <= _FEW or (parts <= _MANY and results >= _FILLED):
        kernel, grid = _add_parts, blocks(-(-results // (16 // like.itemsize)))
    else:
        kernel, grid = _add_many_parts, -(-results // _WIDTH)
    kernel(
        grid,
        *(products, *epilogue.arguments(to.y, to.wide), to.sums),
        *(elements, to.rows, to.columns, to.stride, to.batch_stride, biases, parts),
        T=C_NAMES[like.dtype.name],
    )
