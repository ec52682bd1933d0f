"""The rung of plain multiply-adds of the convolution: large tiles of float32, their operands read from the images."""

from bp.cuda import conv_tiles
from bp.cuda.convolution import BYTES_OF, FLOPS, Convolution
from bp.cuda.kernel import Source
from bp.cuda.simt_tiles import LONGEST, TILES

_source = Source("conv_simt", T=("float",), variants=TILES)
_kernels = {way: _source.kernel(f"simt_{way}", flops=FLOPS, bytes=bytes) for way, bytes in BYTES_OF.items()}


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products; with forward the moments too, with backward_parameters the sums, if wanted."""
    tile = TILES[variant]
    conv_tiles.convolve(task, _kernels, tile["ROWS"], tile["COLUMNS"], longest=LONGEST, variant=variant)
