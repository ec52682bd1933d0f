"""The rung of mma.sync of the convolution: tiles on tensor cores, their operands read from the images."""

import sys

from bp.cuda import conv_tiles
from bp.cuda.convolution import BYTES_OF, FLOPS, Convolution
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.mma_tiles import SHARED, TILES, VARIANTS, part

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
# Where both factors lie across the depth, floats are taken out of shared memory without ldmatrix.
_INSTRUCTIONS = {"forward": ("HMMA", "LDSM"), "backward_input": ("HMMA", "LDSM"), "backward_parameters": ("HMMA",)}
_kernels = {
    way: _source.kernel(f"mma_{way}", flops=FLOPS, bytes=bytes, shared=SHARED, instructions=_INSTRUCTIONS[way])
    for way, bytes in BYTES_OF.items()
}


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products, floats as tf32; with forward the moments too, with backward_parameters the
    sums, if wanted."""
    (m, n, k), tile = task.product, TILES[variant]
    if tile.alignment == 16 and task.way != "backward_parameters":
        # Each tap is filled up to whole slices.
        channels = task.sizes.group_in if task.way == "forward" else task.sizes.group_out
        slice = tile.slice // task.a.itemsize
        k = k // channels * -(-channels // slice) * slice
    longest = part(variant, m, n, k, task.products, task.problem.dtype)
    # The cut is this rung's own: there are blocks enough, and `longest` alone decides.
    whole = sys.maxsize
    conv_tiles.convolve(
        task, _kernels, tile.rows, tile.columns, depth=k, blocks=whole, longest=longest, variant=variant
    )
