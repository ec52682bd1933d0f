"""The ledger of launches: which kernel ran for which layer in which pass, and what it had to compute and move."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bp.ops import scope

if TYPE_CHECKING:
    from bp.cuda.kernel import Variant


@dataclass(frozen=True)
class Launch:
    """One launch. values: of the parameters, addresses for arrays. layer, phase: as `bp.ops.scope` had them.
    elapsed: gives the seconds that it took, where the ledger was asked to time."""

    variant: "Variant"
    grid: tuple[int, int, int]
    values: tuple[int | float | bytes, ...]
    layer: str
    phase: str
    elapsed: Callable[[], float] | None = None

    @property
    def seconds(self) -> float | None:
        """How long it ran; None in a ledger without times. Waits for the device."""
        return None if self.elapsed is None else self.elapsed()

    @property
    def flops(self) -> float:
        """Floating-point operations, by the formula of the kernel."""
        return self.variant.cost(self.values)[0]

    @property
    def nbytes(self) -> float:
        """Bytes that have to be read and written, by the formula of the kernel."""
        return self.variant.cost(self.values)[1]

    def difference(self, other: "Launch") -> str | None:
        """What differs from another launch, in words; None where nothing does."""
        if self.variant is not other.variant:
            return f"kernel {other.variant} where {self.variant} ran before"
        if self.grid != other.grid:
            return f"kernel {self.variant}: {other.grid} blocks where it had {self.grid} before"
        changed = [
            parameter
            for parameter, mine, theirs in zip(self.variant.parameters, self.values, other.values, strict=True)
            if mine != theirs and not (mine != mine and theirs != theirs)  # NaN is a constant as others are
        ]
        if not changed:
            return None
        named = min(changed, key=lambda parameter: parameter.pointer)  # another size brings other addresses with it
        kind = "address" if named.pointer else "value"
        return f"kernel {self.variant}: another {kind} of argument '{named.name}' than before"


class Ledger:
    """The launches of a stretch of work, in order. timed: with the time that each took, one after the other."""

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self.launches: list[Launch] = []
        self.transfer: str | None = None  # the first copy between host and device, in words

    def add(
        self,
        variant: "Variant",
        grid: tuple[int, int, int],
        values: tuple[int | float | bytes, ...],
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        """Enter a launch under the layer and pass that are running."""
        self.launches.append(Launch(variant, grid, values, *scope.current(), elapsed))

    def include(self, other: "Ledger") -> None:
        """Enter all that another one has."""
        self.launches += other.launches
        self.transfer = self.transfer or other.transfer

    def difference(self, other: "Ledger") -> str | None:
        """The first launch in which another stretch differs, in words; None where the two are the same."""
        for mine, theirs in zip(self.launches, other.launches, strict=False):
            found = mine.difference(theirs)
            if found is not None:
                return found
        if len(self.launches) != len(other.launches):
            return f"{len(other.launches)} launches where there were {len(self.launches)} before"
        return None
