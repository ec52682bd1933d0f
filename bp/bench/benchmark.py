"""Benchmark: one piece of work at one size, and how bp and every other library do it."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from bp.bench.drawing import Draw, Drawn
from bp.bench.results import Size

Work = Callable[[], Any]
"""One run; returns its outputs, an array or several of them in a tuple, for the check."""


@dataclass(frozen=True)
class Measured:
    """Work, and figures beside its time that are asked for once it has run, such as the number of launches."""

    run: Work
    facts: Callable[[], dict[str, float]] = field(default=dict)


class Sizes(NamedTuple):
    """The fields of each case, for a GPU, for a CPU, and few small ones for a quick run on any device."""

    cuda: Sequence[Mapping[str, Size]] = ()
    cpu: Sequence[Mapping[str, Size]] = ()
    quick: Sequence[Mapping[str, Size]] = ()


class Benchmark:
    """Base of all benchmarks. A subclass is a frozen dataclass whose fields are the sizes and settings of a case:

        @dataclass(frozen=True)
        class Tanh(Benchmark):
            name = "tanh"
            sizes = Sizes(cuda=grid(n=[1 << 26]), cpu=grid(n=[1 << 20]), quick=grid(n=[1000]))
            n: int

            def draw(self, draw): return {"x": draw.normal(self.n)}
            def nbytes(self, itemsize): return 2 * self.n * itemsize
            def bp(self, x): return lambda: activation.tanh(x)
            def torch(self, x): return lambda: x.tanh()

    A method named as a library (`bp`, `numpy`, `torch`, `cupy`, `triton`, `liger`) takes the drawn arrays, each by its
    name and as that library has them, and returns the work (`Work`, or `Measured`), or None where the library has
    nothing for this case. `torch_nchw` is a second contestant of that library, "torch-nchw"; under `only_on("cuda")` it
    takes part there alone. What such a method does before it returns is not timed. Work may write into arrays it was
    given; then it returns these.

    name: as in the table; a class without one is a base of others. sizes: the cases. devices: those it has something
    to say of; what only the host does is the same everywhere. precisions: those it is worth measuring in, of what the
    device has. ladder: the family of `bp.cuda.choice.RUNGS` whose rungs take part on a GPU.
    target: per cent of the limit to reach on an H200. axis: the field along which the cases make a curve. sampled:
    arrays whose rows (or elements, if they have one axis) may be checked at both ends only, where float64 on the host
    would take too long: rows of the outputs depend on the same rows of these, or of (name, axis) on the same places
    along that axis. compiles: whether torch.compile makes a contestant of `torch`. measures_memory: whether the peak of
    memory is worth a column. cache: "cold" or "warm" where a case says of itself what the second-level cache of a GPU
    holds before a run, whatever was asked for; it may be a field. successive: more than 1 where a run goes on from
    where the one before ended, as training steps do; it returns one array, those of so many runs are compared, and runs
    are timed one after the other: no cache is emptied between them.
    """

    name: ClassVar[str]
    sizes: ClassVar[Sizes]
    devices: ClassVar[Sequence[str]] = ("cpu", "cuda", "emulator")
    precisions: ClassVar[Sequence[str]] = ("bf16", "fp32")
    ladder: ClassVar[str] = ""
    target: ClassVar[float | None] = None
    axis: ClassVar[str] = ""
    sampled: ClassVar[Sequence[str | tuple[str, int]]] = ()
    compiles: ClassVar[bool] = True
    measures_memory: ClassVar[bool] = False
    cache: str = ""
    successive: ClassVar[int] = 1

    @property
    def group(self) -> str:
        """The name of the cases that one figure is wanted of, such as those of a network; "" for none."""
        return ""

    def worth(self, precision: str) -> bool:
        """Whether this case is worth measuring in one of `precisions` on a GPU, which has all of them."""
        return True

    def draw(self, draw: Draw) -> dict[str, Drawn]:
        """The arrays of a case, by name."""
        raise NotImplementedError

    def flops(self) -> float:
        """Floating-point operations that the work takes at least; 0 where bytes are all that matters."""
        return 0.0

    def nbytes(self, itemsize: int) -> float:
        """Bytes that have to move: each input read once, each output written once. itemsize: of the precision."""
        raise NotImplementedError

    def length(self) -> int:
        """Terms of the longest sum, for the error that rounding allows."""
        return 1

    def reference(self, **arrays: Any) -> Any:
        """The outputs in float64, from float64 arrays: what bp's operation gives on them, which runs on NumPy.

        None where there is nothing to compare.
        """
        made = self.bp(**arrays)
        run = made.run if isinstance(made, Measured) else made
        return run() if self.successive == 1 else [run().copy() for _ in range(self.successive)]

    def checked(self) -> "Benchmark":
        """The case that is compared with float64: a smaller one where that would take too long."""
        return self

    def expected_of_peer(self, *outputs: Any, **arrays: Any) -> Any:
        """What a peer should have given where random numbers of its own decide, by what it gave and was given.

        For benchmarks whose reference is that of bp alone. All in float64; arrays of `sampled` by both ends, if they
        are sampled.
        """
        raise NotImplementedError

    def bp(self, **arrays: Any) -> Work | Measured:
        """How bp does it."""
        raise NotImplementedError


def only_on(*devices: str) -> Callable[[Any], Any]:
    """Marks the method of a library as work for some of its devices alone: `@only_on("cuda")`."""

    def mark(method: Any) -> Any:
        method.devices = devices
        return method

    return mark


def a_part(method: Any) -> Any:
    """Marks the method of a library as doing a part of the work, such as the product alone: it is timed, for what the
    rest costs, and its result compared with nothing (a benchmark of that part does so)."""
    method.is_part = True
    return method


def case_sizes(case: Benchmark) -> dict[str, Size]:
    """The fields of a case."""
    return dataclasses.asdict(case)  # type: ignore[call-overload]  # every subclass is a dataclass


def grid(**sizes: Sequence[Size]) -> list[dict[str, Size]]:
    """All combinations: grid(rows=[1, 2], columns=[3]) is [{rows: 1, columns: 3}, {rows: 2, columns: 3}]."""
    return [dict(zip(sizes, chosen, strict=True)) for chosen in itertools.product(*sizes.values())]
