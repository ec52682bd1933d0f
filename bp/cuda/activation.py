"""Activations on the CUDA device: one streaming kernel each way, with a dropout behind, by rows, and with a bias."""

import math
from typing import Any

from bp.cuda.device import device_of, empty, empty_like
from bp.cuda.dropout import chunks, dropout_backward
from bp.cuda.kernel import FLOATS, THREADS, Kernel, Source, blocks
from bp.cuda.reduce import sum_rows
from bp.ops.activation import BIAS_ACTIVATIONS
from bp.ops.array import Array
from bp.ops.dropout import Mask, dropped_levels

_source = Source("activation", T=FLOATS)


def _forward(name: str) -> Kernel:
    return _source.kernel(f"{name}_forward", flops="n", bytes="2 * n * T", streaming=True)


def _backward(name: str) -> Kernel:
    return _source.kernel(f"{name}_backward", flops="n", bytes="3 * n * T", streaming=True)


_relu, _relu_backward = _forward("relu"), _backward("relu")
_leaky_relu, _leaky_relu_backward = _forward("leaky_relu"), _backward("leaky_relu")
_elu, _elu_backward = _forward("elu"), _backward("elu")
_gelu, _gelu_backward = _forward("gelu"), _backward("gelu")
_gelu_tanh, _gelu_tanh_backward = _forward("gelu_tanh"), _backward("gelu_tanh")
_silu, _silu_backward = _forward("silu"), _backward("silu")
_sigmoid, _sigmoid_backward = _forward("sigmoid"), _backward("sigmoid")
_tanh, _tanh_backward = _forward("tanh"), _backward("tanh")
_softplus, _softplus_backward = _forward("softplus"), _backward("softplus")
_mish, _mish_backward = _forward("mish"), _backward("mish")
_hardswish, _hardswish_backward = _forward("hardswish"), _backward("hardswish")
_add = _source.kernel("add", flops="n", bytes="3 * n * T", streaming=True)

# Above it log(1 + e^z) is z in every precision here; the formula below it then never meets an infinite z.
_ONE_LINE = 100.0


def relu(x: Array) -> Array:
    return _map(_relu, x)


def relu_backward(dy: Array, y: Array) -> Array:
    return _map(_relu_backward, dy, y)


def leaky_relu(x: Array, negative_slope: float) -> Array:
    return _map(_leaky_relu, x, negative_slope)


def leaky_relu_backward(dy: Array, y: Array, negative_slope: float) -> Array:
    return _map(_leaky_relu_backward, dy, y, negative_slope)


def elu(x: Array, alpha: float) -> Array:
    return _map(_elu, x, alpha)


def elu_backward(dy: Array, y: Array, alpha: float) -> Array:
    return _map(_elu_backward, dy, y, alpha)


def gelu(x: Array, approximate: str) -> Array:
    return _map(_gelu_tanh if approximate == "tanh" else _gelu, x)


def gelu_backward(dy: Array, x: Array, approximate: str) -> Array:
    return _map(_gelu_tanh_backward if approximate == "tanh" else _gelu_backward, dy, x)


def silu(x: Array) -> Array:
    return _map(_silu, x)


def silu_backward(dy: Array, x: Array) -> Array:
    return _map(_silu_backward, dy, x)


def sigmoid(x: Array) -> Array:
    return _map(_sigmoid, x)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    return _map(_sigmoid_backward, dy, y)


def tanh(x: Array) -> Array:
    return _map(_tanh, x)


def tanh_backward(dy: Array, y: Array) -> Array:
    return _map(_tanh_backward, dy, y)


def softplus(x: Array, beta: float, threshold: float) -> Array:
    return _map(_softplus, x, beta, 1 / beta, min(threshold, _ONE_LINE))


def softplus_backward(dy: Array, x: Array, beta: float, threshold: float) -> Array:
    return _map(_softplus_backward, dy, x, beta, min(threshold, _ONE_LINE))


def mish(x: Array) -> Array:
    return _map(_mish, x)


def mish_backward(dy: Array, x: Array) -> Array:
    return _map(_mish_backward, dy, x)


def hardswish(x: Array) -> Array:
    return _map(_hardswish, x)


def hardswish_backward(dy: Array, x: Array) -> Array:
    return _map(_hardswish_backward, dy, x)


def add(a: Array, b: Array) -> Array:
    return _map(_add, a, b)


def _map(kernel: Kernel, *arguments: Any) -> Array:
    """y = f of the leading arrays, element by element, with the settings that follow them."""
    first = arguments[0]
    y = empty_like(first)
    arrays = [a for a in arguments if hasattr(a, "dtype")]
    kernel(vector_blocks(first), *arrays, y, first.size, *arguments[len(arrays) :])
    return y


def vector_blocks(x: Array) -> int:
    """Blocks of a loop that moves two vectors of 16 bytes a thread and step."""
    return blocks(-(-x.nbytes // 32))


# An activation with a dropout behind it -----------------------------------------------------------------------------

_masked_source = Source("activation_masked", T=FLOATS)


def _masked(activation: str) -> Kernel:
    return _masked_source.kernel(f"{activation}_masked_backward", flops="n", bytes="3 * n * T", streaming=True)


_plain_backwards = {
    "relu": _relu_backward,
    "gelu": _gelu_backward,
    "gelu_tanh": _gelu_tanh_backward,
    "silu": _silu_backward,
}
_masked_backwards = {activation: _masked(activation) for activation in _plain_backwards}


def activation_backward(dy: Array, kept: Array | None, activation: str, mask: Mask | None) -> Array:
    """dz = (dy m) f'(z) in one launch, as `bp.ops.linear.linear_activation_backward` states it."""
    if activation == "identity":
        if mask is None:
            return dy
        return dropout_backward(dy, mask.control, mask.call_site, mask.first_element, mask.rate)
    if mask is None:
        return _map(_plain_backwards[activation], dy, kept)
    if activation == "relu":
        return _map(_masked_backwards[activation], dy, kept, mask.scale)
    dz = empty_like(dy)
    if dy.size:
        _masked_backwards[activation](
            blocks(chunks(mask.first_element, dy.size)),
            *(dy, kept, mask.control, dz, dy.size, mask.first_element),
            *(mask.call_site & 0xFFFFFFFF, dropped_levels(mask.rate), mask.scale),
        )
    return dz


# Softmax: a row in registers where it fits, else read twice -----------------------------------------------------------

_softmax_source = Source("activation_softmax", T=FLOATS)
_SHORT, _MEDIUM = 1024, 8192  # columns that the registers of a warp, and of a block, hold
_SHORT_THREADS = 128


def _rows_forward(length: str, reads: int) -> Kernel:
    moved = f"{reads + 1} * rows * columns * T"
    return _softmax_source.kernel(f"softmax_{length}_forward", flops="5 * rows * columns", bytes=moved, streaming=True)


def _rows_backward(length: str, reads: int) -> Kernel:
    moved = f"{reads + 1} * rows * columns * T"
    return _softmax_source.kernel(f"softmax_{length}_backward", flops="4 * rows * columns", bytes=moved, streaming=True)


_short, _medium, _long = _rows_forward("short", 1), _rows_forward("medium", 1), _rows_forward("long", 2)
_short_backward, _medium_backward = _rows_backward("short", 2), _rows_backward("medium", 2)
_long_backward = _rows_backward("long", 4)


def softmax(x: Array) -> Array:
    return _softmax(x, False)


def softmax_backward(dy: Array, y: Array) -> Array:
    return _softmax_backward(dy, y, False)


def log_softmax(x: Array) -> Array:
    return _softmax(x, True)


def log_softmax_backward(dy: Array, y: Array) -> Array:
    return _softmax_backward(dy, y, True)


def _softmax(x: Array, logarithm: bool) -> Array:
    y = empty_like(x)
    columns = x.shape[-1]
    rows = x.size // columns
    if columns <= _SHORT:
        lanes = _lanes(columns)
        _short(blocks(rows * lanes, _SHORT_THREADS), x, y, rows, columns, lanes, logarithm)
    else:
        kernel = _medium if columns <= _MEDIUM else _long
        kernel(blocks(rows, 1), x, y, rows, columns, logarithm)
    return y


def _softmax_backward(dy: Array, y: Array, logarithm: bool) -> Array:
    dx = empty_like(y)
    if not y.size:
        return dx
    columns = y.shape[-1]
    rows = y.size // columns
    if columns <= _SHORT:
        lanes = _lanes(columns)
        _short_backward(blocks(rows * lanes, _SHORT_THREADS), dy, y, dx, rows, columns, lanes, logarithm)
    else:
        kernel = _medium_backward if columns <= _MEDIUM else _long_backward
        kernel(blocks(rows, 1), dy, y, dx, rows, columns, logarithm)
    return dx


def _lanes(columns: int) -> int:
    """Lanes of a warp that share a row of at most _SHORT columns: a power of two, about 8 elements each, at most 32."""
    lanes = 1
    while lanes < 32 and 8 * lanes < columns:
        lanes *= 2
    return lanes


# Bias and activation --------------------------------------------------------------------------------------------------

_bias_source = Source("activation_bias", T=FLOATS)
_BLOCKS = 512  # about as many as run at once on the largest GPU
_ONE_LAUNCH = 16  # rows of a thread within which a second launch would cost more than it saves
_MOST_ROWS = 256  # of a thread: as many terms follow each other in a sum, and a longer one would lose digits
_MOST_TILES = 65535  # blocks along the second axis of a grid; where a row has more tiles, a block takes several


def _bias_forward(name: str) -> Kernel:
    return _bias_source.kernel(
        f"bias_{name}_forward", flops="2 * rows * columns", bytes="2 * rows * columns * T", streaming=True
    )


def _bias_backward(name: str) -> Kernel:
    return _bias_source.kernel(
        f"bias_{name}_backward", flops="2 * rows * columns", bytes="3 * rows * columns * T", streaming=True
    )


_bias_forwards = {name: _bias_forward(name) for name in BIAS_ACTIVATIONS}
_bias_backwards = {name: _bias_backward(name) for name in BIAS_ACTIVATIONS if name != "identity"}


def bias_activation(x: Array, bias: Array, activation: str) -> tuple[Array, Array | None]:
    y = empty_like(x)
    if x.size:
        columns = x.shape[-1]
        rows = x.size // columns
        lanes, tiles = _tiling(x)
        steps = -(-rows // (2 * (THREADS // lanes)))  # of a block over two rows of each of its lines of lanes
        _bias_forwards[activation]((blocks(steps, 1), tiles), x, bias, y, rows, columns, lanes)
    return y, {"identity": None, "relu": y}.get(activation, x)


def bias_activation_backward(
    dy: Array, kept: Array | None, bias: Array, dbias: Array | None, activation: str, accumulate: bool
) -> Array:
    if activation == "identity":
        if dbias is not None:
            sum_rows(dy.reshape(math.prod(dy.shape[:-1]), dy.shape[-1]), dbias, accumulate)
        return dy
    dx = empty_like(dy)
    if not dy.size:
        if dbias is not None and not accumulate:
            device_of(dbias).fill(dbias, 0)
        return dx
    columns = dy.shape[-1]
    rows = dy.size // columns
    lanes, tiles = _tiling(dy)
    lines = THREADS // lanes
    splits = _splits(rows, lines, tiles)
    sums = dbias if dbias is None or splits == 1 else empty(dbias, (splits, columns))
    add = accumulate and splits == 1
    _bias_backwards[activation]((splits, tiles), dy, kept, bias, dx, sums, rows, columns, lanes, add)
    if dbias is not None and splits > 1:
        sum_rows(sums, dbias, accumulate)
    return dx


def _splits(rows: int, lines: int, tiles: int) -> int:
    """Into how many parts the rows are cut, each summed by itself, where a block takes `lines` rows at a time."""
    if rows <= _ONE_LAUNCH * lines:
        return 1
    fill = min(-(-rows // (4 * lines)), -(-_BLOCKS // tiles))
    return max(fill, -(-rows // (_MOST_ROWS * lines)))


def _tiling(x: Array) -> tuple[int, int]:
    """(lanes, tiles): the threads of a block that lie beside each other along a row, and the blocks beside each other.

    A thread takes 16 bytes where whole vectors fill a row, else one element.
    """
    columns, vector = x.shape[-1], 16 // x.itemsize
    pieces = columns // vector if columns % vector == 0 else columns
    tiles = -(-pieces // THREADS)
    return -(-pieces // tiles), min(tiles, _MOST_TILES)
