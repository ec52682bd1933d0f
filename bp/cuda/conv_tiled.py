"""The second rung of the convolution: the tiled matrix product, its operands read from the images."""

import math
from typing import Any

from bp.cuda.convolution import BYTES, FLOPS, WIDE_BYTES, Convolution
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.linear_tiled import TILE
from bp.ops.array import Array

_source = Source("conv_tiled", T=FLOATS)
_forward = _source.kernel("conv_forward", flops=FLOPS, bytes=BYTES)
_backward_input = _source.kernel("conv_backward_input", flops=FLOPS, bytes=BYTES)
_backward_parameters = _source.kernel("conv_backward_parameters", flops=FLOPS, bytes=WIDE_BYTES)


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products; with forward the moments too, with backward_parameters the sums, if wanted."""
    m, n, k = task.product
    tiles = -(-m // TILE) * -(-n // TILE)
    classes = math.prod(task.sizes.stride) if task.way == "backward_input" else 1
    depth = task.sizes.groups * classes

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        grid, operands = (tiles, parts, depth), (task.a, task.b, *epilogue)
        if task.way == "forward":
            moments = task.room(-(-m // TILE)) if parts == 1 else None
            _forward(grid, *operands, moments, *task.arguments, part)
        elif task.way == "backward_input":
            _backward_input(grid, *operands, *task.arguments, *task.sizes.periods, part)
        else:
            _backward_parameters(grid, *operands, sums, *task.arguments, part)

    in_parts(task.a, tiles * depth, k, task.destination, task.epilogue, launch)
