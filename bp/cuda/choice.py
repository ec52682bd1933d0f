"""Which kernel computes a product: a table of rungs by family, from the fastest down, and how a product is cut.

A rung is a way to compute the cases of its family; a faster one that comes later is one more line here and one more
file in `kernels/`. What is chosen depends on shapes, dtype, alignment and architecture alone, so two runs choose the
same, and so do two GPUs of one architecture. In this order it is

* what the environment forces: BP_LINEAR and BP_CONV name a rung, as "mma", or one of its tiles, as "mma:128x128", to
  compare one with another;
* what `bp tune` has measured to be faster for products like this one (`bp.cuda.tuning`);
* the first rung of the table whose rule holds.

`bp kernels explain` prints what is chosen for a product, and why.
"""

import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from bp.cuda import mma_tiles, simt_tiles, wgmma_tiles
from bp.errors import ConfigurationError

# By family, as kernels and tables call its products.
WAYS = {"linear": ("nt", "nn", "tn"), "conv": ("forward", "backward_input", "backward_parameters")}


@dataclass(frozen=True)
class Problem:
    """`batch` products C (m, n) = A B of depth k, as a choice sees them; of a convolution, those of one group.

    family, way: of WAYS. dtype: of the factors, "tf32" for float32 ones that are rounded to it. alignment: 16, 4 or
    the bytes of an element, what every row of the factors begins at a multiple of; of a convolution, the channels of
    every pixel. groups: of a convolution; depthwise: whether each of its output channels sees one input channel;
    im2col: whether the copy engine of sm_90 can bring its patches; counted: whether 32 bits count its pixels and
    weights, and 16 the taps along an axis (`bp.cuda.convolution.Sizes.counted`). library: whether the vendor's
    libraries compute on its device.
    """

    family: str
    way: str
    m: int
    n: int
    k: int
    batch: int
    dtype: str
    alignment: int
    groups: int = 1
    depthwise: bool = False
    im2col: bool = False
    counted: bool = True
    library: bool = True


@dataclass(frozen=True)
class Choice:
    """A rung, and which of the variants of its kernel: the name of a tile."""

    rung: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.rung}:{self.variant}" if self.variant else self.rung


# As precisions are called.
SHORT = {"float32": "fp32", "tf32": "tf32", "float16": "fp16", "bfloat16": "bf16"}


def _rule_tile(rung: "Rung", problem: Problem) -> tuple[str, ...]:
    return (rung.variant(problem),)


@dataclass(frozen=True)
class Rung:
    """One way to compute a product.

    fits: for which problems it is the best of what this table offers; because: that rule in words, "" where it holds
    for whatever the rung can compute. variant: its tile for a problem; tiles: all that can compute it (None: that one).
    dtypes: of the factors. least_of: by dtype, the compute capability that it needs, as 80 for 8.0, where that is more
    than all kernels need; only: the one that it exists on.
    alignment: that it needs. verified: False as long as its instructions have run on models of them alone, those of the
    emulator: then no rule takes it, only who forces it, or a table that was measured on a GPU. library: whether it is
    one of the vendor's, which the device "cuda" alone has: no rule takes it either. coarse: whether it rounds factors
    further than their dtype does: only who forces it gets it. depthwise: whether it is for convolutions of that kind
    alone. im2col: whether the copy engine brings it the patches of a convolution. lacks: what else keeps it from
    computing a problem, in words; "" where nothing does.
    """

    name: str
    fits: Callable[[Problem], bool]
    variant: Callable[[Problem], str] = lambda problem: ""
    dtypes: tuple[str, ...] = ("float32", "tf32", "float16", "bfloat16")
    least_of: Mapping[str, int] = field(default_factory=dict)
    only: int | None = None
    alignment: int = 1
    because: str = ""
    tiles: Callable[[Problem], tuple[str, ...]] | None = None
    verified: bool = True
    library: bool = False
    coarse: bool = False
    depthwise: bool = False
    im2col: bool = False
    lacks: Callable[[Problem], str] = lambda problem: ""

    def computes(self, problem: Problem, capability: int) -> bool:
        """Whether it can compute a problem at all on GPUs of that compute capability."""
        return not self.refusal(problem, capability)

    def refusal(self, problem: Problem, capability: int) -> str:
        """Why it cannot compute a problem on GPUs of that compute capability; "" where it can."""
        if self.library and not problem.library:
            return "a library of device 'cuda' alone"
        if problem.dtype not in self.dtypes:
            *others, last = (SHORT[dtype] for dtype in self.dtypes)
            return f"{', '.join(others)}{' and ' * bool(others)}{last} only"
        if self.only is not None and capability != self.only:
            return f"exists for compute capability {self.only / 10} alone"
        least = self.least_of.get(problem.dtype, 0)
        if capability < least:
            return f"needs compute capability {least / 10}"
        if self.depthwise and not problem.depthwise:
            return "computes convolutions of one input channel for each output alone"
        if problem.alignment < self.alignment:
            rows = "rows" if problem.family == "linear" else "the channels of pixels and groups"
            return f"needs {rows} at multiples of {self.alignment} bytes, here of {problem.alignment}"
        if self.im2col and not problem.im2col:
            return (
                "needs patches that im2col maps describe: groups of whole 64 channels, strides up to 8, windows that "
                "begin within 128 pixels of an image and have taps at most 255 apart, less than 2^31 of them"
            )
        return self.lacks(problem)

    def variants(self, problem: Problem) -> tuple[str, ...]:
        """The tiles that can compute a problem which this rung computes."""
        return _rule_tile(self, problem) if self.tiles is None else self.tiles(problem)


def _always(problem: Problem) -> bool:
    return True


def _never(problem: Problem) -> bool:
    return False


def _library_lacks(problem: Problem) -> str:
    """cuBLAS takes sizes as int."""
    largest = max(problem.m, problem.n, problem.k, problem.batch)
    return "" if largest < 2**31 else f"takes sizes up to 2^31 - 1, here {largest}"


def _wgmma_tile(problem: Problem) -> str:
    p, floats = problem, problem.dtype == "tf32"
    wide = floats or p.way in ("tn", "backward_parameters")
    return wgmma_tiles.tile(p.m, p.n, p.k, p.batch * p.groups, wide, 4 if floats else 2)


def _wgmma_lacks(problem: Problem) -> str:
    """wgmma transposes no factor of 32 bits."""
    if problem.dtype == "tf32" and problem.way != "nt":
        return "reads floats with the depth along their rows alone: nt in tf32"
    return ""


def _mma_tile(problem: Problem) -> str:
    p = problem
    return mma_tiles.tile(p.m, p.n, p.k, p.batch * p.groups, p.dtype, p.alignment)


def _simt_aligned(problem: Problem) -> bool:
    """Whether the rows are whole vectors of 16 bytes; of a convolution, its channels are where they are aligned."""
    whole = problem.family == "conv" or simt_tiles.whole_vectors(problem.way, problem.m, problem.n, problem.k)
    return problem.alignment == 16 and whole


def _simt_tile(problem: Problem) -> str:
    return simt_tiles.best(problem.m, problem.n, _simt_aligned(problem))


def _simt_fits(problem: Problem) -> bool:
    """Where its tiles gain by their size, and are as many, the depth being cut, as an H100 has multiprocessors."""
    tile = _simt_tile(problem)
    blocks = simt_tiles.blocks(problem.m, problem.n, tile) * problem.batch * problem.groups
    parts, _ = cut(blocks, problem.k, simt_tiles.LONGEST)
    return simt_tiles.gains(problem.m, problem.n, tile) and 2 * blocks * parts >= _ENOUGH_BLOCKS


def _mma_lacks(problem: Problem) -> str:
    if not problem.counted:
        return "needs kernels of at most 16 taps along an axis, and less than 2^30 pixels and 2^31 weights of a group"
    return ""


_MMA = Rung(
    "mma",
    _always,
    _mma_tile,
    dtypes=("tf32", "float16", "bfloat16"),
    least_of={"tf32": 80, "bfloat16": 80},
    alignment=4,
    because="tensor cores take such factors",
    tiles=lambda problem: mma_tiles.possible(problem.alignment),
    lacks=_mma_lacks,
)
_SIMT = Rung(
    "simt",
    _simt_fits,
    _simt_tile,
    dtypes=("float32",),
    because="C fills its tiles, and with a depth cut in parts they are 132 or more",
    tiles=lambda problem: simt_tiles.possible(_simt_aligned(problem)),
)


RUNGS: dict[str, tuple[Rung, ...]] = {
    "linear": (
        Rung("cublas", _never, library=True, lacks=_library_lacks),
        # An outer product, or nearly: each element of C is a few operations, and a tile saves none of the reads.
        Rung("naive", lambda problem: problem.k <= 4, because="the depth is 4 at most"),
        Rung(
            "wgmma",
            _always,
            _wgmma_tile,
            dtypes=("tf32", "float16", "bfloat16"),
            only=90,
            alignment=16,
            tiles=lambda problem: tuple(wgmma_tiles.TILES),
            verified=False,
            lacks=_wgmma_lacks,
        ),
        Rung("fp8", _never, lambda problem: "128x128", dtypes=("float16", "bfloat16"), only=90, coarse=True),
        _MMA,
        _SIMT,
        Rung("tiled", _always),
    ),
    "conv": (
        Rung("depthwise", _always, because="each output sees one input channel", depthwise=True),
        Rung(
            "wgmma",
            _always,
            _wgmma_tile,
            dtypes=("float16", "bfloat16"),
            only=90,
            alignment=16,
            tiles=lambda problem: tuple(wgmma_tiles.TILES),
            verified=False,
            im2col=True,
        ),
        # Few channels a group: most of a tile of 64 columns would be empty.
        Rung(
            "direct",
            lambda problem: min(problem.m, problem.n) <= 4,
            because="a group's product has 4 rows or columns at most",
        ),
        _MMA,
        _SIMT,
        Rung("tiled", _always),
    ),
}


# The choice -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What is chosen for a problem. by: who chose: the environment ("forced"), a tuned table, or a rule; passed: the
    other rungs in the order of the table, each with the reason why it is not the one."""

    choice: Choice
    by: Literal["forced", "tuned", "rule"]
    passed: tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=4096)
def choose(problem: Problem, capability: int) -> Choice:
    """The rung of a problem on GPUs of a compute capability, and its tile.

    Raises ConfigurationError where the environment forces a rung or tile that there is not, or that cannot compute
    this.
    """
    return _forced(problem, capability) or _tuned(problem, capability) or by_rule(problem, capability)


def decide(problem: Problem, capability: int) -> Decision:
    """What `choose` gives, with the reasons for it; raises what `choose` does."""
    choice = choose(problem, capability)
    by: Literal["forced", "tuned", "rule"] = "rule"
    if _forced(problem, capability) is not None:
        by = "forced"
    elif _tuned(problem, capability) is not None:
        by = "tuned"
    chosen, passed = False, []
    for rung in RUNGS[problem.family]:
        if rung.name == choice.rung:
            chosen = True
            continue
        passed.append((rung.name, rung.refusal(problem, capability) or _why_not(rung, problem, by, choice, chosen)))
    return Decision(choice, by, tuple(passed))


def _why_not(rung: Rung, problem: Problem, by: str, choice: Choice, below: bool) -> str:
    """Why a rung that can compute a problem is not chosen. below: whether it follows the chosen one in the table."""
    if by == "forced":
        return f"BP_{problem.family.upper()} forces {choice}"
    if by == "tuned":
        return f"the tuned table has {choice}"
    asked = f"taken where BP_{problem.family.upper()}={rung.name} or a tuned table says so"
    if rung.library:
        return f"a library: {asked}"
    if rung.coarse:
        return f"rounds the factors further: taken where BP_{problem.family.upper()}={rung.name} says so"
    if not rung.verified:
        return f"not verified on a GPU yet: {asked}"
    if below:
        return f"comes after {choice.rung} in the table"
    return f"only where {rung.because}"


def by_rule(problem: Problem, capability: int) -> Choice:
    """The choice of the built-in table alone."""
    for rung in RUNGS[problem.family]:
        if rung.verified and rung.computes(problem, capability) and rung.fits(problem):
            return Choice(rung.name, rung.variant(problem))
    raise AssertionError(f"the last rung of {problem.family} fits everything")


def candidates(problem: Problem, capability: int) -> list[Choice]:
    """Every rung that computes a problem to the precision of its dtype, with each of its tiles that can."""
    rungs = [rung for rung in RUNGS[problem.family] if not rung.coarse and rung.computes(problem, capability)]
    return [Choice(rung.name, tile) for rung in rungs for tile in rung.variants(problem)]


def find(family: str, name: str) -> Rung:
    """A rung by name."""
    return next(rung for rung in RUNGS[family] if rung.name == name)


@functools.cache
def in_use(capability: int) -> str:
    """In words, by what choices are made on GPUs of a compute capability: the same object where all are the same.

    Raises ConfigurationError where the environment asks for a rung, a tile or a table that there is not.
    """
    from bp.cuda import tuning

    table = tuning.in_use(capability)
    said = [f"{family}={asked}" for family in RUNGS if (asked := _asked(family))]
    return sys.intern(", ".join([*said, "built-in rules" if table is None else f"tuned table {table.hash}"]))


def forget() -> None:
    """Read the environment and the tables anew at the next choice."""
    from bp.cuda import tuning

    _environment.cache_clear()
    tuning.forget()
    _forget_chosen()


def _forget_chosen() -> None:
    choose.cache_clear()
    in_use.cache_clear()


@contextmanager
def only(family: str, choice: Choice) -> Iterator[None]:
    """Within this block every product of a family is computed like this, in all threads."""
    outer = _forcing.get(family)
    _forcing[family] = choice
    _forget_chosen()
    try:
        yield
    finally:
        _forcing.pop(family)
        if outer is not None:
            _forcing[family] = outer
        _forget_chosen()


_forcing: dict[str, Choice] = {}  # by family, while `only` is on


def _asked(family: str) -> Choice | None:
    """The rung, and perhaps the tile, that all products of a family are to take; None where nobody asks for one."""
    return _forcing.get(family) or _environment()[family]


@functools.cache
def _environment() -> dict[str, Choice | None]:
    """What the environment asks for, by family; read once, so that all choices agree until `forget`."""
    return {family: _read(family, os.environ.get(f"BP_{family.upper()}", "")) for family in RUNGS}


def _read(family: str, asked: str) -> Choice | None:
    """A rung and perhaps a tile, as "mma:128x128", of those that there are."""
    if not asked:
        return None
    name, _, tile = asked.partition(":")
    known = [rung.name for rung in RUNGS[family]]
    if name not in known:
        raise ConfigurationError(f"BP_{family.upper()} expected one of {', '.join(known)}, got '{asked}'")
    tiles = _tiles(family, find(family, name))
    if tile and tile not in tiles:
        raise ConfigurationError(
            f"BP_{family.upper()}={asked} expected a tile of {name} ({', '.join(tiles) or 'which has none'})"
        )
    return Choice(name, tile)


def _tiles(family: str, rung: Rung) -> list[str]:
    """All that it has, each for some product."""
    alignments = [alignment for alignment in (16, 4, 1) if alignment >= rung.alignment]
    found: list[str] = []
    for way, dtype, alignment in itertools.product(WAYS[family], rung.dtypes, alignments):
        found += rung.variants(Problem(family, way, 256, 256, 256, 1, dtype, alignment))
    return list(filter(None, dict.fromkeys(found)))


def _forced(problem: Problem, capability: int) -> Choice | None:
    """What somebody asks for, checked."""
    asked = _asked(problem.family)
    if asked is None:
        return None
    rung, forced = find(problem.family, asked.rung), f"BP_{problem.family.upper()}={asked}"
    refusal = rung.refusal(problem, capability)
    if refusal:
        raise ConfigurationError(
            f"{forced} cannot compute a product in {SHORT.get(problem.dtype, problem.dtype)} on compute capability "
            f"{capability / 10}: {refusal}"
        )
    if not asked.variant:
        return Choice(asked.rung, rung.variant(problem))
    if asked.variant not in rung.variants(problem):
        tiles = ", ".join(filter(None, rung.variants(problem))) or "none"
        raise ConfigurationError(f"{forced} expected a tile of {asked.rung} for this product ({tiles})")
    return asked


def _tuned(problem: Problem, capability: int) -> Choice | None:
    """What the tuned table has for products like this one, if this one can be computed so."""
    from bp.cuda import tuning

    table = tuning.in_use(capability)
    choice = None if table is None else table.find(problem)
    return choice if choice in candidates(problem, capability) else None


# Cuts of the depth ------------------------------------------------------------------------------------------

# Two for each of the 132 multiprocessors of an H100 or H200. It is a constant: the sums of a cut depth must not change
# with the GPU.
_ENOUGH_BLOCKS = 264
_SHORTEST = 128  # of a part: below, writing and reading its sums costs more than the part
_MOST_PARTS = 65535  # blocks along the second axis of a grid
STEP = 64  # parts are multiples of it; it is one of the depth of every tile of 16-bit factors and wider ones


def cut(blocks: int, depth: int, longest: int | None = None, step: int = STEP) -> tuple[int, int]:
    """(parts, depth of each but the last) of a sum that runs in so many blocks where it is not cut.

    longest: the depth of a part at most, where the kernel adds all of one in a single run, as far as a grid has blocks
    for the parts. step: what parts are multiples of.
    """
    parts = min(-(-_ENOUGH_BLOCKS // max(blocks, 1)), depth // _SHORTEST)
    if longest is not None:
        parts = min(max(parts, -(-depth // longest)), _MOST_PARTS)
    if parts < 2:
        return 1, max(depth, 1)
    part = -(-depth // (parts * step)) * step
    return -(-depth // part), part
