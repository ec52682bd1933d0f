"""The rung of plain multiply-adds of the convolution: large tiles of float32, their operands read from the images."""

import math
from typing import Any

from bp.cuda.convolution import BYTES, FLOPS, WIDE_BYTES, Convolution
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import Source
from bp.cuda.simt_tiles import LONGEST, TILES, blocks
from bp.ops.array import Array

_source = Source("conv_simt", T=("float",), variants=TILES)
_forward = _source.kernel("simt_forward", flops=FLOPS, bytes=BYTES)
_backward_input = _source.kernel("simt_backward_input", flops=FLOPS, bytes=BYTES)
_backward_parameters = _source.kernel("simt_backward_parameters", flops=FLOPS, bytes=WIDE_BYTES)


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products; with forward the moments too, with backward_parameters the sums, if wanted."""
    m, n, k = task.product
    tiles = blocks(m, n, variant)
    classes = math.prod(task.sizes.stride) if task.way == "backward_input" else 1
    depth = task.sizes.groups * classes

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        grid, operands = (tiles, parts, depth), (task.a, task.b, *epilogue)
        if task.way == "forward":
            moments = task.room(-(-m // TILES[variant]["ROWS"])) if parts == 1 else None
            _forward(grid, *operands, moments, *task.arguments, part, variant=variant)
        elif task.way == "backward_input":
            _backward_input(grid, *operands, *task.arguments, *task.sizes.periods, part, variant=variant)
        else:
            _backward_parameters(grid, *operands, sums, *task.arguments, part, variant=variant)

    in_parts(task.a, tiles * depth, k, task.destination, task.epilogue, launch, LONGEST)
