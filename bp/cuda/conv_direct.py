"""The first rung of the convolution: a thread for each element, from the definition."""

from typing import Any

from bp.cuda.convolution import BYTES, FLOPS, WIDE_BYTES, Convolution
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import FLOATS, Source, blocks
from bp.ops.array import Array

_LONGEST_RUN = 8192  # pixels that a block of direct_backward_parameters sums, an eighth of them in each thread
_LANES = 32  # weights that it computes

_source = Source("conv_direct", T=FLOATS)
_elements = {way: _source.kernel(f"direct_{way}", flops=FLOPS, bytes=BYTES) for way in ("forward", "backward_input")}
_weights = _source.kernel("direct_backward_parameters", flops=FLOPS, bytes=WIDE_BYTES)


def convolve(task: Convolution, variant: str) -> None:
    """Compute one of the three products; sums, if any, are not this rung's."""
    if task.way == "backward_parameters":
        _backward_parameters(task)
    else:
        to = task.destination
        epilogue = task.epilogue.arguments(to.y, to.wide)
        _elements[task.way](blocks(task.c.size), task.a, task.b, *epilogue, *task.arguments)


def _backward_parameters(task: Convolution) -> None:
    sizes = task.sizes
    uncut = -(-sizes.narrow[3] * sizes.group_in // _LANES) * sizes.taps

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        _weights((uncut, parts), task.a, task.b, *epilogue, *task.arguments, part)

    in_parts(task.a, uncut, sizes.pixels, task.destination, task.epilogue, launch, _LONGEST_RUN)
