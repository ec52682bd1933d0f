"""StepMemory: outputs of one training step are reused by the next.

Inside `with memory:` an output that nobody references any more is handed out again for the next array of the same shape
and type, so a training step in steady state allocates nothing and takes no page fault. Whether a slot is free is read
from its reference count: an array that was saved for backward, kept by the user or viewed by anyone is referenced, and
is never overwritten.
"""

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from bp.ops.array import Array, Shape

_active = threading.local()


def active_memory(device: str = "cpu") -> "StepMemory | None":
    """The memory whose `with` block the running thread is in, if any, and if it lies on that device."""
    memory: StepMemory | None = getattr(_active, "memory", None)
    return memory if memory is not None and memory.device == device else None


class StepMemory:
    """Slots for the outputs of a training step, found by (shape, dtype), reused once unreferenced.

    device: by name, the one that the memory belongs to; allocate: makes a fresh array of a shape and dtype there. Every
    slot owns its data: views of one slab would share a base, and their reference counts could not tell which of them is
    free. `with memory:` makes it the memory of the running thread and counts one step; slots of a shape that no step
    asked for in `keep_steps` steps are given back.
    """

    def __init__(
        self,
        keep_steps: int = 64,
        *,
        device: str = "cpu",
        allocate: Callable[[Shape, Any], Array] = np.empty,
    ) -> None:
        self.device = device
        self.allocate = allocate
        self.keep_steps = keep_steps
        self._slots: dict[tuple[Shape, np.dtype[Any]], list[Array]] = {}
        self._last_used: dict[tuple[Shape, np.dtype[Any]], int] = {}
        self._step = 0
        self._outer: list[StepMemory | None] = []

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """A free slot, or a fresh one."""
        key = (shape, np.dtype(dtype))  # np.float32 and "float32" are equal to it, but hash differently
        self._last_used[key] = self._step
        slots = self._slots.get(key)
        if slots is None:
            slots = self._slots[key] = []
        array = _first_free(slots, _FREE)
        if array is None:
            array = self.allocate(shape, dtype)
            slots.append(array)
        return array

    @property
    def nbytes(self) -> int:
        """Bytes held by all slots, in use or free."""
        return sum(array.nbytes for slots in self._slots.values() for array in slots)

    def __enter__(self) -> "StepMemory":
        self._outer.append(getattr(_active, "memory", None))
        _active.memory = self
        self._step += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _active.memory = self._outer.pop()
        if self._step % self.keep_steps == 0:
            for key in [k for k, step in self._last_used.items() if self._step - step >= self.keep_steps]:
                del self._slots[key], self._last_used[key]


def only_caller_holds(array: Array) -> bool:
    """Whether one variable of the caller is all that refers to `array`, beside the slot that it may have come from.

    Then its memory may be overwritten: no layer saved it for backward, and nobody kept it or a view of it.
    """
    owner = array.base if isinstance(array, np.ndarray) else getattr(array, "owner", None)
    if type(owner) is type(array):  # a view: the array that it shows may be anybody's
        return False
    memory: StepMemory | None = getattr(_active, "memory", None)
    slots = () if memory is None else memory._slots.get((tuple(array.shape), array.dtype), ())
    held = sum(slot is array for slot in slots)
    return sys.getrefcount(array) - held <= _ONE_VARIABLE


def _count_of_one_variable() -> int:
    """The reference count that `only_caller_holds` sees on what one variable of its caller holds."""

    def callee(array: object) -> int:
        return sys.getrefcount(array)

    array = np.empty(0)
    return callee(array)


_ONE_VARIABLE = _count_of_one_variable()


def _first_free(slots: list[Array], free: int, count: Callable[[object], int] = sys.getrefcount) -> Array | None:
    for array in slots:
        if count(array) <= free:
            return array
    return None


def _calibrate() -> int:
    """The reference count that `_first_free` sees on a slot nobody else holds (it differs by Python version)."""
    seen: list[int] = []

    def record(array: object) -> int:
        seen.append(sys.getrefcount(array) - 1)  # one is this function's own argument
        return 0

    _first_free([np.empty(0)], 0, record)
    return seen[0]


_FREE = _calibrate()
