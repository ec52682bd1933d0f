"""Context: what one forward pass of a model hands to its backward pass."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from bp.errors import BackwardError
from bp.ops.array import Array
from bp.ops.device import device_of, new_control


class Saver(Protocol):
    """Whoever saves on a context: a layer or a loss; `label` is how errors name it."""

    @property
    def label(self) -> str: ...


class Context:
    """A last-in-first-out stack of what layers save in forward and take back in backward.

    It belongs to one forward pass. Because backward visits the layers in exactly the reverse order, a
    layer used twice finds its two calls in the right order, two passes interleaved use two contexts, and
    any mistake (backward without forward, twice, or in another order) meets the wrong layer on top of
    the stack and raises `BackwardError` with both names.

    training: batch statistics, dropout and so on are active. saving: layers keep what backward needs
    (default: as `training`); False in inference, where nothing is kept.
    seed, step: key and counter of the random numbers of this pass. A step left out is the next of a
    count by this process, so two passes by hand never share a dropout mask.
    sample_offset: index in the global batch of the first sample of this pass: a batch that is cut in
    micro-batches draws the same numbers as the whole.
    denominator: what a mean loss divides by; None for the samples of this pass alone. Gradient
    accumulation sets it to the count of the whole batch.
    fuse: whether a Sequential runs neighbouring layers as one operation where it can (see `bp.layers.fusion`).
    control_block: that of a running training (see `bp.ops.control`), whose owner writes seed, counter and denominator;
    None: the context makes one, on the device of the first array that asks.
    """

    _passes = itertools.count()

    def __init__(
        self,
        training: bool = False,
        *,
        saving: bool | None = None,
        seed: int = 0,
        step: int | None = None,
        sample_offset: int = 0,
        denominator: float | None = None,
        fuse: bool = True,
        control_block: Array | None = None,
    ) -> None:
        self.training = training
        self.saving = training if saving is None else saving
        self.sample_offset = sample_offset
        self.denominator = denominator
        self.fuse = fuse
        self.recomputing = False
        self.predictions_unneeded = False  # whether a loss may overwrite what it is given
        self.call_site = 0
        self.owns_control = control_block is None
        self._control = control_block
        self._key = seed, next(Context._passes) if step is None and self.owns_control else step or 0
        self._stack: list[tuple[Saver, tuple[Any, ...]]] = []

    def control_beside(self, array: Array) -> Array:
        """The control block of this pass, on the device of `array`."""
        if self._control is None:
            self._control = new_control(device_of(array), *self._key)
        return self._control

    def save(self, owner: Saver, *values: Any) -> None:
        """Keep exactly what `owner.backward` takes back; nothing is kept where the context does not save."""
        if self.saving:
            self._stack.append((owner, values))

    def take(self, owner: Saver) -> tuple[Any, ...]:
        """Give back what `owner` saved last; raises BackwardError where another layer is on top, or none."""
        if not self._stack:
            reason = (
                "this context holds nothing: call forward with it first, and backward once for each forward"
                if self.saving
                else "the context was made for inference and keeps nothing; use Context(training=True)"
            )
            raise BackwardError(f"backward without a matching forward; {reason}").at(owner.label)
        saved_by, values = self._stack[-1]
        if saved_by is not owner:
            raise BackwardError(
                f"backward in the wrong order; the last forward still open on this context is that of {saved_by.label}"
            ).at(owner.label)
        self._stack.pop()
        return values

    def drop(self, owner: Saver) -> None:
        """Let go of what `owner` saved last, in place of its backward; an owner that saves nothing has nothing here."""
        if self._stack and self._stack[-1][0] is owner:
            self._stack.pop()

    def random_call_site(self) -> int:
        """The number of this random draw within the pass: each use of a dropout layer gets its own."""
        site = self.call_site
        self.call_site += 1
        return site

    @contextmanager
    def without_saving(self) -> Iterator[None]:
        """Within this block layers compute in the same mode but keep nothing; used by `Recompute`."""
        outer, self.saving = self.saving, False
        try:
            yield
        finally:
            self.saving = outer

    def replay(self, call_site: int) -> "Context":
        """A context for running part of this pass again: the same random numbers, no side effects."""
        again = Context(
            self.training,
            saving=True,
            sample_offset=self.sample_offset,
            denominator=self.denominator,
            fuse=self.fuse,
            control_block=self._control,
        )
        again.owns_control, again._key = self.owns_control, self._key
        again.call_site = call_site
        again.recomputing = True
        return again

    @property
    def kept(self) -> tuple[tuple[Saver, tuple[Any, ...]], ...]:
        """(layer, what it saved) for each backward still to come, first forward first."""
        return tuple(self._stack)

    @property
    def open_layers(self) -> list[str]:
        """Labels of the layers whose backward is still to come, first forward first."""
        return [owner.label for owner, _ in self._stack]
