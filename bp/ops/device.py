"""Devices by name: where the arrays of a model live."""

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np

from bp.errors import ConfigurationError
from bp.ops.array import Array, Shape

DEVICE_NAMES = ("auto", "cpu")

_PRECISION_DTYPES = {"fp32": "float32", "fp64": "float64"}


class Memory(Protocol):
    """A context within which outputs are reused from training step to training step."""

    @property
    def nbytes(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


class Device(Protocol):
    """What a device's `runtime` module offers beside its operations."""

    name: str

    @property
    def StepMemory(self) -> Callable[[], "Memory"]: ...

    def empty(self, shape: Shape, dtype: Any) -> Array: ...

    def zeros(self, shape: Shape, dtype: Any) -> Array: ...

    def from_host(self, array: np.ndarray) -> Array: ...

    def to_host(self, array: Array) -> np.ndarray: ...


def find_device(name: str = "auto") -> Device:
    """The device of that name; "auto" takes the best one found. Raises ConfigurationError on an unknown name."""
    if name not in DEVICE_NAMES:
        raise ConfigurationError(f"device '{name}' is not one that bp has: expected one of {', '.join(DEVICE_NAMES)}")
    from bp.cpu import runtime

    return runtime


def precision_dtype(precision: str, device: Device) -> str:
    """The parameter dtype for a precision on a device; "auto" is fp32 on the CPU.

    Raises ConfigurationError for a precision the device lacks: the CPU has no fast 16-bit arithmetic in
    NumPy, and an emulated one would be slow and differ from what a GPU computes.
    """
    if precision == "auto":
        precision = "fp32"
    if precision not in _PRECISION_DTYPES:
        raise ConfigurationError(
            f"precision '{precision}' is not available on device '{device.name}': expected auto, fp32 or fp64 "
            "(bf16, fp16 and tf32 need a GPU)"
        )
    return _PRECISION_DTYPES[precision]
