"""Memory of the CPU device: one function allocates every output, and a training step reuses its slots."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from bp.ops.array import Shape
from bp.ops.memory import StepMemory as StepMemory
from bp.ops.memory import _active

name = "cpu"
precisions = ("fp32", "fp64")


def empty(shape: Shape, dtype: Any) -> np.ndarray:
    """An uninitialised C-contiguous array: a free slot of the active `StepMemory`, or a fresh one."""
    # `active_memory()` spelled out: every output of a small step comes by here.
    memory = getattr(_active, "memory", None)
    return np.empty(shape, dtype) if memory is None or memory.device != name else memory.empty(shape, dtype)


def zeros(shape: Shape, dtype: Any) -> np.ndarray:
    """A fresh C-contiguous array of zeros, for memory that lives as long as the model."""
    return np.zeros(shape, dtype)


def from_host(array: np.ndarray) -> np.ndarray:
    """The array itself where it is C-contiguous, else a contiguous copy: the host is the device."""
    return np.asarray(array, order="C")  # ascontiguousarray gives an array of shape () an axis


def to_host(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


def copy(destination: np.ndarray, source: np.ndarray) -> None:
    """destination = source, of one shape, converted to the dtype of the destination."""
    np.copyto(destination, source)


def refusal(precision: str) -> str:
    """Why a precision is not among `precisions`."""
    return "bf16, fp16 and tf32 need a GPU: NumPy's 16-bit arithmetic is slow, and not that of a GPU"


def running(precision: str) -> AbstractContextManager[None]:
    """Nothing to set up: what a precision means is the dtype of the arrays."""
    return nullcontext()


def step_graph() -> None:
    """The CPU has no launches that a graph could save."""


def fill(destination: np.ndarray, value: float) -> None:
    """Every element of `destination` = value."""
    destination[...] = value
