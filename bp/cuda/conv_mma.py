"""The rung of mma.sync of the convolution: tiles on tensor cores, their operands read from the images."""

import math
import sys
from typing import Any

from bp.cuda.convolution import BYTES, FLOPS, WIDE_BYTES, Convolution
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import FLOATS, Kernel, Source
from bp.cuda.mma_tiles import SHARED, TILES, VARIANTS, part
from bp.ops.array import Array

# The sums of dy take registers, of which 128 x 64 has none left beside two other blocks.
_FEWER = {"128x64": 2}
_source = Source(
    "conv_mma",
    least_of={"bfloat16": 80, "float": 80},
    T=FLOATS,
    variants={
        name: {**macros, "BLOCKS_WITH_SUMS": _FEWER.get(name, macros["BLOCKS"])} for name, macros in VARIANTS.items()
    },
)


def _kernel(way: str, bytes: str, *instructions: str) -> Kernel:
    return _source.kernel(f"mma_{way}", flops=FLOPS, bytes=bytes, shared=SHARED, instructions=("HMMA", *instructions))


# Where both factors lie across the depth, floats are taken out of shared memory without ldmatrix.
_forward = _kernel("forward", BYTES, "LDSM")
_backward_input = _kernel("backward_input", BYTES, "LDSM")
_backward_parameters = _kernel("backward_parameters", WIDE_BYTES)


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products, floats as tf32; with forward the moments too, with backward_parameters the
    sums, if wanted."""
    (m, n, k), tile = task.product, TILES[variant]
    tiles = -(-m // tile.rows) * -(-n // tile.columns)
    classes = math.prod(task.sizes.stride) if task.way == "backward_input" else 1
    depth = task.sizes.groups * classes
    if tile.alignment == 16 and task.way != "backward_parameters":
        # Each tap is filled up to whole slices.
        channels = task.sizes.group_in if task.way == "forward" else task.sizes.group_out
        slice = tile.slice // task.a.itemsize
        k = k // channels * -(-channels // slice) * slice
    longest = part(variant, m, n, k, depth, task.problem.dtype)

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        grid, operands = (tiles, parts, depth), (task.a, task.b, *epilogue)
        if task.way == "forward":
            moments = task.room(-(-m // tile.rows)) if parts == 1 else None
            _forward(grid, *operands, moments, *task.arguments, part, variant=variant)
        elif task.way == "backward_input":
            _backward_input(grid, *operands, *task.arguments, *task.sizes.periods, part, variant=variant)
        else:
            _backward_parameters(grid, *operands, sums, *task.arguments, part, variant=variant)

    # The cut is this rung's own: there are blocks enough, and `longest` alone decides.
    in_parts(task.a, sys.maxsize, k, task.destination, task.epilogue, launch, longest)
