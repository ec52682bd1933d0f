"""Which kernel computes a product: a table of rungs by family, from the fastest down, and how a product is cut.

A rung is a way to compute every case of its family; a faster one that comes later is one more line here and one more
file in `kernels/`. What is chosen depends on shapes, dtype and architecture alone, so two runs choose the same, and so
do two GPUs of one architecture.

BP_LINEAR and BP_CONV in the environment (a name of their table) force a rung, to compare one with another.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bp.errors import ConfigurationError

Fits = Callable[[int, int, int], bool]


@dataclass(frozen=True)
class Rung:
    """One way to compute C (m, n) = A (m, k) B (k, n).

    fits: for which m, n, k it is the best of what this table offers. dtypes: of A and B. least: the compute capability
    that it needs, as 80 for 8.0.
    """

    name: str
    fits: Fits
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    least: int = 75


def _always(m: int, n: int, k: int) -> bool:
    return True


RUNGS: dict[str, tuple[Rung, ...]] = {
    "linear": (
        # An outer product, or nearly: each element of C is a few operations, and a tile saves none of the reads.
        Rung("naive", lambda m, n, k: k <= 4),
        Rung("tiled", _always),
    ),
    "conv": (
        # Depthwise, or few channels a group (m, n and k are of one group): most of a tile of 64 columns would be empty.
        Rung("direct", lambda m, n, k: min(m, n) <= 4),
        Rung("tiled", _always),
    ),
}


def choose(family: str, m: int, n: int, k: int, dtype: Any, capability: int) -> str:
    """The name of the rung of `family` ("linear", "conv") for a product of this shape on this architecture.

    Raises ConfigurationError where the environment forces a rung that there is not, or that lacks the dtype or runs on
    later architectures only.
    """
    forced = _forced(family)
    for rung in RUNGS[family]:
        possible = str(dtype) in rung.dtypes and capability >= rung.least
        if forced == rung.name and not possible:
            raise ConfigurationError(
                f"BP_{family.upper()}={forced} computes {', '.join(rung.dtypes)} from compute capability "
                f"{rung.least / 10} on, got {dtype} on {capability / 10}"
            )
        if forced == rung.name or (forced is None and possible and rung.fits(m, n, k)):
            return rung.name
    raise AssertionError(f"the last rung of {family} fits everything")


@functools.cache
def _forced(family: str) -> str | None:
    """What the environment says, read once."""
    variable = f"BP_{family.upper()}"
    name = os.environ.get(variable)
    known = [rung.name for rung in RUNGS[family]]
    if name and name not in known:
        raise ConfigurationError(f"{variable} expected one of {', '.join(known)}, got '{name}'")
    return name or None


# Cuts of the depth ------------------------------------------------------------------------------------------

# Two for each of the 132 multiprocessors of an H100 or H200. It is a constant: the sums of a cut depth must not change
# with the GPU.
_ENOUGH_BLOCKS = 264
_SHORTEST = 128  # of a part: below, writing and reading its sums costs more than the part
_STEP = 32  # parts are multiples of it; it is one of the depth of every tile


def cut(blocks: int, depth: int, longest: int | None = None) -> tuple[int, int]:
    """(parts, depth of each but the last) of a sum that runs in so many blocks where it is not cut.

    longest: the depth of a part at most, where the kernel adds all of one in a single run.
    """
    parts = min(-(-_ENOUGH_BLOCKS // max(blocks, 1)), depth // _SHORTEST)
    if longest is not None:
        parts = max(parts, -(-depth // longest))
    if parts < 2:
        return 1, max(depth, 1)
    part = -(-depth // (parts * _STEP)) * _STEP
    return -(-depth // part), part
