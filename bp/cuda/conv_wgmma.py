"""The rung of wgmma of the convolution: an implicit matrix product on Hopper's tensor cores in 16 bits."""

import itertools
import sys
from typing import Any

from bp.cuda.convolution import BYTES, FLOPS, SLICE, WIDE_BYTES, Convolution, Windows
from bp.cuda.device import device_of
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import C_NAMES, Source
from bp.cuda.tensor_map import BYTES as MAP_BYTES
from bp.cuda.tensor_map import im2col, tiled
from bp.cuda.wgmma_tiles import SHARED, TILES, VARIANTS, Tile, part
from bp.ops.array import Array

_STORED_ROWS, _ROW = 16, 64  # of the boxes in which a warp stores results, and elements of a row of every box

_source = Source("conv_wgmma", only=90, T=("float16", "bfloat16"), variants=VARIANTS)
_kernels = {
    way: _source.kernel(f"wgmma_{way}", flops=flops, bytes=bytes, shared=SHARED, instructions=instructions)
    for way, flops, bytes, instructions in (
        ("forward", FLOPS, BYTES, ("HGMMA", "UTMALDG", "UTMASTG")),
        ("backward_input", FLOPS, BYTES, ("HGMMA", "UTMALDG", "UTMASTG")),
        (
            "backward_strided",
            "2 * images * lines * pixels * rows * columns * out * (channels // groups)",
            "(images * (lines * pixels * channels * (1 + given(kept)) + p * q * out)"
            " + rows * columns * out * (channels // groups) + given(bias) * channels) * T",
            ("HGMMA", "UTMALDG"),
        ),
        ("backward_parameters", FLOPS, WIDE_BYTES, ("HGMMA", "UTMALDG")),
    )
}


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products, with backward_parameters the sums too where they are wanted."""
    tile, like = TILES[variant], task.a
    m, n, depth, items = _product(task)
    blocks, axes = device_of(like).multiprocessors, {"variant": variant, "T": C_NAMES[like.dtype.name]}
    classes = list(itertools.product(task.windows(0), task.windows(1)))

    def grid(m: int, parts: int) -> int:
        return min(items * -(-m // tile.rows) * -(-n // tile.columns) * parts, blocks)

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        if task.way == "backward_parameters":
            maps = _map_of_gradient(task), _map_of_patches(task, classes[0], SLICE)
            given = *maps, *epilogue, sums, *task.arguments, part, parts
            _kernels[task.way](grid(m, parts), *given, **axes)
            return
        weight = _map_of_weight(task, tile)
        for windows in classes:
            maps = _map_of_patches(task, windows, tile.rows), weight
            if task.way == "backward_input" and task.sizes.stride != (1, 1):
                rows = task.sizes.wide[0] * windows[0].positions * windows[1].positions
                given = *maps, *epilogue, *task.arguments, *_class(*windows), part, parts
                _kernels["backward_strided"](grid(rows, parts), *given, **axes)
                continue
            boxes = parts == 1 and _leaves_in_boxes(task)
            map_c = _map_of_results(task, m, n) if boxes else bytes(MAP_BYTES)
            _kernels[task.way](grid(m, parts), *maps, map_c, *epilogue, *task.arguments, part, parts, boxes, **axes)

    longest = part(variant, m, n, depth, items * len(classes), task.c.dtype != like.dtype)
    # The cut is this rung's own: there are blocks enough, and `longest` alone decides.
    in_parts(like, sys.maxsize, depth, task.destination, task.epilogue, launch, longest)


def _product(task: Convolution) -> tuple[int, int, int, int]:
    """(m, n, k, items) as the kernel has them, the depth in whole slices of each tap."""
    sizes, (m, n, k) = task.sizes, task.product
    if task.way == "backward_parameters":
        by_tap = sizes.group_in % _ROW != 0
        return (m, sizes.group_in, k, sizes.taps) if by_tap else (m, n, k, sizes.groups)
    channels = sizes.group_in if task.way == "forward" else sizes.group_out
    return m, n, k // channels * -(-channels // SLICE) * SLICE, sizes.groups


def _class(vertical: Windows, horizontal: Windows) -> tuple[int, ...]:
    """The arguments of a class of pixels; without a tap along one axis there is none at all."""
    taps = (vertical.taps, horizontal.taps) if vertical.taps and horizontal.taps else (0, 1)
    return (
        *(vertical.positions, horizontal.positions, vertical.first, horizontal.first, *taps),
        *(vertical.first_tap, horizontal.first_tap, vertical.period, horizontal.period),
        *(vertical.lower, horizontal.lower),
    )


def _map_of_patches(task: Convolution, windows: tuple[Windows, Windows], count: int) -> bytes:
    """Of 64 channels of so many pixels."""
    images, stride = (task.b if task.way == "backward_parameters" else task.a), task.sizes.stride
    vertical, horizontal = windows
    steps = (1, 1) if task.way == "backward_input" else (stride[1], stride[0])
    lower, upper = (horizontal.lower, vertical.lower), (horizontal.upper, vertical.upper)
    return im2col(images, lower, upper, SLICE, count, strides=steps)


def _map_of_gradient(task: Convolution) -> bytes:
    """Of dy as a matrix for each group, of a row for each pixel."""
    sizes, itemsize = task.sizes, task.a.itemsize
    strides = sizes.narrow[3] * itemsize, sizes.group_out * itemsize
    return tiled(task.a, (sizes.group_out, sizes.pixels, sizes.groups), strides, (_ROW, SLICE, 1))


def _map_of_weight(task: Convolution, tile: Tile) -> bytes:
    """Rows that run along the depth come in one box of the tile's width, others 64 at a time."""
    sizes, row = task.sizes, task.sizes.group_in * task.b.itemsize
    outputs = tile.columns if task.way == "forward" else SLICE
    shape = (sizes.group_in, sizes.taps, sizes.narrow[3])
    return tiled(task.b, shape, (row, sizes.taps * row), (_ROW, 1, outputs))


def _map_of_results(task: Convolution, m: int, n: int) -> bytes:
    """A matrix for each group, of a row for each pixel."""
    row, itemsize = task.c.shape[3], task.c.itemsize
    return tiled(task.c, (n, m, task.sizes.groups), (row * itemsize, n * itemsize), (_ROW, _STORED_ROWS, 1))


def _leaves_in_boxes(task: Convolution) -> bool:
    """Whether the copy engine can store C: what it stores is of 16 bits, and depends on the sums and the bias alone."""
    epilogue, c = task.epilogue, task.c
    beside = (epilogue.before, epilogue.kept, epilogue.residual, epilogue.mask)
    return (
        c.dtype == task.a.dtype
        and device_of(c).pointer(c) % 16 == 0
        and epilogue.beta == 0
        and epilogue.activation in ("identity", "relu")
        and all(array is None for array in beside)
    )
