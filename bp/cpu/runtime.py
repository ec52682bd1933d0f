"""Memory of the CPU device: one function allocates every output, and a training step reuses its slots.

Most of the time of a small NumPy step goes into page faults on fresh outputs. Inside `with
StepMemory():` an output that nobody references any more is handed out again for the next array of
the same shape and type, so a training step in steady state allocates nothing. Whether a slot is free is
read from its reference count: an array that was saved for backward, kept by the user or viewed by
anyone is referenced, and is never overwritten.
"""

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from bp.ops.array import Shape

name = "cpu"

_active = threading.local()


def empty(shape: Shape, dtype: Any) -> np.ndarray:
    """An uninitialised C-contiguous array: a free slot of the active `StepMemory`, or a fresh one."""
    memory: StepMemory | None = getattr(_active, "memory", None)
    return np.empty(shape, dtype) if memory is None else memory.empty(shape, dtype)


def zeros(shape: Shape, dtype: Any) -> np.ndarray:
    """A fresh C-contiguous array of zeros, for memory that lives as long as the model."""
    return np.zeros(shape, dtype)


def from_host(array: np.ndarray) -> np.ndarray:
    """The array itself where it is C-contiguous, else a contiguous copy: the host is the device."""
    return np.ascontiguousarray(array)


def to_host(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


class StepMemory:
    """Slots for the outputs of a training step, found by (shape, dtype), reused once unreferenced.

    Every slot owns its data: views of one slab would share a base, and their reference counts could not
    tell which of them is free. `with memory:` makes it the memory of the running thread and counts one
    step; slots of a shape that no step asked for in `keep_steps` steps are given back.
    """

    def __init__(self, keep_steps: int = 64) -> None:
        self.keep_steps = keep_steps
        self._slots: dict[tuple[Shape, np.dtype[Any]], list[np.ndarray]] = {}
        self._last_used: dict[tuple[Shape, np.dtype[Any]], int] = {}
        self._step = 0
        self._outer: list[StepMemory | None] = []

    def empty(self, shape: Shape, dtype: Any) -> np.ndarray:
        key = (shape, np.dtype(dtype))  # np.float32 and "float32" are equal to it, but hash differently
        self._last_used[key] = self._step
        slots = self._slots.get(key)
        if slots is None:
            slots = self._slots[key] = []
        array = _first_free(slots, _FREE)
        if array is None:
            array = np.empty(shape, dtype)
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


def _first_free(
    slots: list[np.ndarray], free: int, count: Callable[[object], int] = sys.getrefcount
) -> np.ndarray | None:
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
