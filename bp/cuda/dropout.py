"""Dropout on the CUDA device: one kernel for both directions, which draws the mask again."""

from bp.cuda.device import empty_like
from bp.cuda.kernel import FLOATS, Source, blocks
from bp.ops.array import Array
from bp.ops.dropout import LEVELS, dropped_levels

_dropout = Source("dropout", T=FLOATS).kernel("dropout", flops="n", bytes="2 * n * T", streaming=True)

_WORD = 0xFFFFFFFF


def dropout(x: Array, control: Array, call_site: int, first_element: int, rate: float) -> Array:
    y = empty_like(x)
    if x.size:
        dropped = dropped_levels(rate)
        scale = LEVELS / (LEVELS - dropped)
        count = chunks(first_element, x.size)
        _dropout(blocks(count), x, control, y, x.size, first_element, call_site & _WORD, dropped, scale)
    return y


def chunks(first_element: int, size: int) -> int:
    """How many chunks of eight logical indices `size` elements lie in; at least one element."""
    return (first_element + size - 1) // 8 - first_element // 8 + 1


def dropout_backward(dy: Array, control: Array, call_site: int, first_element: int, rate: float) -> Array:
    return dropout(dy, control, call_site, first_element, rate)
