"""The convolution of one input channel for each output: kernels of their own, which move every array once."""

import functools
from dataclasses import replace
from typing import Any

from bp.cuda.convolution import BYTES, FLOPS, WIDE_BYTES, Convolution
from bp.cuda.device import device_of, empty_like
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import FLOATS, Source
from bp.ops.array import Array

# Square kernels and strides with code of their own; the last variant takes any other. BAND, RUN: rows and columns of
# pixels that a thread has at once; BLOCKS: that fit a multiprocessor.
_ANY = "any"
_VARIANTS = {
    "3x3": {"TAPS": 3, "STEP": 1, "BAND": 2, "RUN": 4, "THREADS": 128, "BLOCKS": 2},
    "3x3 by 2": {"TAPS": 3, "STEP": 2, "BAND": 1, "RUN": 4, "THREADS": 128, "BLOCKS": 3},
    "5x5": {"TAPS": 5, "STEP": 1, "BAND": 1, "RUN": 4, "THREADS": 128, "BLOCKS": 3},
    "5x5 by 2": {"TAPS": 5, "STEP": 2, "BAND": 1, "RUN": 4, "THREADS": 128, "BLOCKS": 3},
    "7x7": {"TAPS": 7, "STEP": 1, "BAND": 1, "RUN": 4, "THREADS": 128, "BLOCKS": 3},
    _ANY: {"TAPS": 0, "STEP": 1, "BAND": 1, "RUN": 4, "THREADS": 128, "BLOCKS": 4},
}
_WEIGHT_VARIANTS = {
    "3x3": {"TAPS": 3, "STEP": 1, "RUN": 2, "BLOCKS": 2},
    "3x3 by 2": {"TAPS": 3, "STEP": 2, "RUN": 2, "BLOCKS": 2},
    "5x5": {"TAPS": 5, "STEP": 1, "RUN": 4, "BLOCKS": 1},
    "5x5 by 2": {"TAPS": 5, "STEP": 2, "RUN": 4, "BLOCKS": 1},
    "7x7": {"TAPS": 7, "STEP": 1, "RUN": 4, "BLOCKS": 1},
    _ANY: {"TAPS": 0, "STEP": 1, "RUN": 2, "BLOCKS": 2},
}
_BY_TAPS = {(macros["TAPS"], macros["STEP"]): name for name, macros in _VARIANTS.items() if name != _ANY}

_WEIGHT_THREADS = 256  # of kernels/conv_depthwise_weights.cu
_MOST_ACROSS = {True: 8, False: 32}  # threads beside each other along the channels: with 16 bytes each, with an element
_LONGEST = 1024  # pixels that a thread sums one after the other

_source = Source("conv_depthwise", T=FLOATS, variants=_VARIANTS)
_elements = {
    way: _source.kernel(f"depthwise_{way}", flops=FLOPS, bytes=BYTES, streaming=True)
    for way in ("forward", "backward_input")
}
_weights = Source("conv_depthwise_weights", T=FLOATS, variants=_WEIGHT_VARIANTS).kernel(
    "depthwise_backward_parameters", flops=FLOPS, bytes=WIDE_BYTES
)


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products; with forward the moments too, with backward_parameters the sums."""
    sizes = task.sizes
    vector, channels = 16 // task.a.itemsize, sizes.wide[3] if task.way == "backward_input" else sizes.narrow[3]
    vectors = channels % vector == 0 and _side_by_side(task, vector)
    if vectors:
        task = _aligned(task)
    name = _ANY
    if vectors and sizes.wide[3] == sizes.narrow[3] and _square(sizes.weight[1:3]) and _square(sizes.stride):
        name = _BY_TAPS.get((sizes.weight[1], sizes.stride[0]), _ANY) if sizes.dilation == (1, 1) else _ANY
    width = vector if vectors else 1
    strips = -(-channels // (width * _MOST_ACROSS[vectors]))
    across = -(-channels // (width * strips))
    if task.way == "backward_parameters":
        _backward_parameters(task, name, width, strips, across)
    else:
        _results(task, name, width, strips, across)


def _square(pair: tuple[int, ...]) -> bool:
    return pair[0] == pair[1]


def _side_by_side(task: Convolution, vector: int) -> bool:
    """Whether a vector of channels of the result reads channels beside each other, or all of it one channel."""
    each = task.sizes.group_out
    return each == 1 or (each % vector == 0 and task.way != "backward_input")


def _aligned(task: Convolution) -> Convolution:
    """With copies of what is read in vectors and does not begin at a multiple of 16 bytes: how sums are split, and so
    their last bits, is told by the shape alone."""
    epilogue = task.epilogue
    bias, kept, residual = (_begins_well(array) for array in (epilogue.bias, epilogue.kept, epilogue.residual))
    # Weights are read one by one.
    b = _begins_well(task.b) if task.way == "backward_parameters" else task.b
    epilogue = replace(epilogue, bias=bias, kept=kept, residual=residual)
    return replace(task, a=_begins_well(task.a), b=b, epilogue=epilogue)


def _begins_well(array: Array | None) -> Array | None:
    """It, or a copy of it that begins at a multiple of 16 bytes."""
    if array is None or device_of(array).pointer(array) % 16 == 0:
        return array
    copy = empty_like(array)
    device_of(array).copy(copy, array)
    return copy


def _results(task: Convolution, name: str, width: int, strips: int, across: int) -> None:
    """y or dx: a thread for each `width` channels of BAND x RUN pixels."""
    sizes, macros, to = task.sizes, _VARIANTS[name], task.destination
    run, step, back = macros["RUN"], macros["STEP"], task.way == "backward_input"
    band = max(macros["BAND"], step if back else 1)
    images, height, length = (sizes.wide if back else sizes.narrow)[:3]
    (top, _), (left, _) = sizes.padding
    # On the way back the first pixels of a thread lie at multiples of the stride in the padded image.
    bands = images * -(-(height + (top % step if back else 0)) // band)
    runs = -(-(length + (left % step if back else 0)) // run)
    abreast = _abreast(macros["THREADS"] // across, bands, runs, band, run, *sizes.weight[1:3])
    tiles = -(-bands // (macros["THREADS"] // (across * abreast))) * -(-runs // abreast)
    _elements[task.way](
        tiles * strips,
        *(task.a, task.b, *task.epilogue.arguments(to.y, to.wide)),
        *(() if back else (task.room(tiles),)),
        *(*task.arguments, width, across, abreast),
        variant=name,
    )


@functools.cache
def _abreast(slots: int, bands: int, runs: int, band: int, run: int, kernel_height: int, kernel_width: int) -> int:
    """How many of a block's `slots` lie beside each other along a row: the blocks then read the fewest pixels."""

    def pixels(abreast: int) -> int:
        tall = slots // abreast
        blocks = -(-bands // tall) * -(-runs // abreast)
        return blocks * (tall * band + kernel_height - 1) * (abreast * run + kernel_width - 1)

    return min(range(1, min(slots, runs) + 1), key=pixels)


def _backward_parameters(task: Convolution, name: str, width: int, strips: int, across: int) -> None:
    sizes, run = task.sizes, _WEIGHT_VARIANTS[name]["RUN"]
    rows, blocks = (1, strips * sizes.taps) if name == _ANY else (sizes.weight[1], strips)
    units = sizes.narrow[0] * sizes.narrow[1] * -(-sizes.narrow[2] // run)
    phases = _WEIGHT_THREADS // (across * rows)

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        arguments = (task.a, task.b, *epilogue, sums, *task.arguments, part, width, across)
        _weights((blocks, parts), *arguments, variant=name)

    in_parts(task.a, blocks, units, task.destination, task.epilogue, launch, _LONGEST // run * phases)
