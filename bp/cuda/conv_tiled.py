"""The second rung of the convolution: the tiled matrix product, its operands read from the images."""

from bp.cuda import conv_tiles
from bp.cuda.convolution import BYTES_OF, FLOPS, Convolution
from bp.cuda.kernel import FLOATS, Source
from bp.cuda.linear_tiled import TILE

_source = Source("conv_tiled", T=FLOATS)
_kernels = {way: _source.kernel(f"conv_{way}", flops=FLOPS, bytes=bytes) for way, bytes in BYTES_OF.items()}


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products; with forward the moments too, with backward_parameters the sums, if wanted."""
    conv_tiles.convolve(task, _kernels, TILE, TILE)
