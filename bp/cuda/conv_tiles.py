"""What the rungs have in common that compute a convolution in tiles of C: their grid, and what each kernel takes."""

from collections.abc import Mapping
from typing import Any

from bp.cuda.convolution import Convolution
from bp.cuda.epilogue import in_parts
from bp.cuda.kernel import Kernel
from bp.ops.array import Array


def convolve(
    task: Convolution,
    kernels: Mapping[str, Kernel],
    rows: int,
    columns: int,
    *,
    depth: int | None = None,
    blocks: int | None = None,
    longest: int | None = None,
    **axes: str,
) -> None:
    """Compute one of the three products in tiles of rows x columns; with forward the moments too, with
    backward_parameters the sums, if wanted.

    kernels: by way; axes: what they are specialised by. depth: what the kernel has for k; blocks, longest: of
    `bp.cuda.choice.cut`, blocks where it is not the number of tiles.
    """
    m, n, k = task.product
    tiles = -(-m // rows) * -(-n // columns)

    def launch(parts: int, part: int, epilogue: tuple[Any, ...], sums: Array | None) -> None:
        given: tuple[Any, ...] = ()
        periods: tuple[int, ...] = ()
        if task.way == "forward":
            given = (task.room(-(-m // rows)) if parts == 1 else None,)
        elif task.way == "backward_input":
            periods = task.sizes.periods
        else:
            given = (sums,)
        kernels[task.way](
            (tiles, parts, task.products),
            *(task.a, task.b, *epilogue, *given, *task.arguments, *periods, part),
            **axes,
        )

    in_parts(
        task.a,
        tiles * task.products if blocks is None else blocks,
        k if depth is None else depth,
        task.destination,
        task.epilogue,
        launch,
        longest,
    )
