"""Devices by name: where the arrays of a model live."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, TypeAlias

import numpy as np

from bp.errors import ConfigurationError
from bp.ops import control
from bp.ops.array import Array, Shape

DEVICE_NAMES = ("auto", "cpu", "cuda", "emulator")

# Precision -> dtype of activations and of the weights that kernels read.
PRECISIONS = {"fp32": "float32", "fp64": "float64", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Memory(Protocol):
    """A context within which outputs are reused from training step to training step."""

    @property
    def nbytes(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


# By owner ("Dropout '2'") and name, what decides which launches a step makes; compared by identity.
StepSettings: TypeAlias = dict[str, dict[str, Any]]


class StepGraph(Protocol):
    """Runs training steps on host batches, replayed as one launch where they can be; `reason` says why not."""

    @property
    def reason(self) -> str | None: ...

    def run(
        self,
        batch: Sequence[np.ndarray],
        work: Callable[[Sequence[Array]], None],
        settings: Callable[[], StepSettings],
    ) -> None: ...


class Device(Protocol):
    """What a device offers beside its operations.

    precisions: those it computes in, the one that "auto" takes first.
    """

    @property
    def name(self) -> str: ...

    @property
    def precisions(self) -> tuple[str, ...]: ...

    def refusal(self, precision: str) -> str: ...

    @property
    def StepMemory(self) -> Callable[[], "Memory"]: ...

    def empty(self, shape: Shape, dtype: Any) -> Array: ...

    def zeros(self, shape: Shape, dtype: Any) -> Array: ...

    def from_host(self, array: np.ndarray) -> Array: ...

    def to_host(self, array: Array) -> np.ndarray: ...

    def copy(self, destination: Array, source: Array) -> None: ...

    def fill(self, destination: Array, value: float) -> None: ...

    def running(self, precision: str) -> AbstractContextManager[None]: ...

    def step_graph(self) -> "StepGraph | None": ...


# Array type -> the device that such arrays lie on.
_owners: dict[type, Device] = {}


def own_arrays(array_type: type, device: Device) -> None:
    """Let `device_of` find the device of such arrays."""
    _owners[array_type] = device


def device_of(array: Array) -> Device:
    """The device that an array lies on; raises TypeError for what is no array of a device."""
    owner = _owners.get(type(array))
    if owner is None:
        owner = next((_owners[base] for base in type(array).__mro__ if base in _owners), None)
        if owner is None and isinstance(array, np.ndarray):
            owner = _owners[np.ndarray] = find_device("cpu")
        if owner is None:
            raise TypeError(f"expected an array of a device, got a {type(array).__name__}")
    return owner


def find_device(name: str = "auto") -> Device:
    """The device of that name; "auto" takes a GPU where there is one that works, else the CPU.

    Raises ConfigurationError on an unknown name, or where the device cannot be used: it says what is missing.
    """
    if name not in DEVICE_NAMES:
        raise ConfigurationError(f"device '{name}' is not one that bp has: expected one of {', '.join(DEVICE_NAMES)}")
    if name == "emulator":
        from bp.cuda.emulator import device as emulator

        return emulator.device
    if name == "cuda" or (name == "auto" and _has_gpu()):
        from bp.cuda import gpu

        return gpu.device()
    from bp.cpu import runtime

    return runtime


@functools.cache
def _has_gpu() -> bool:
    """Whether the device "cuda" can be used; where there is no driver, nothing else is imported to tell."""
    from bp.cuda import requirements

    if requirements.problem() is not None:
        return False
    from bp.cuda import gpu

    return gpu.problem() is None


def planning_device() -> Any:
    """A device whose arrays have no memory and whose operations compute nothing: what a step takes, before it runs."""
    from bp.cuda.plan import device as plan

    return plan


def resolve_precision(precision: str, device: Device) -> str:
    """The precision by name, "auto" resolved: the first that the device lists.

    Raises ConfigurationError for a precision the device lacks, with those that it has and the reason.
    """
    if precision == "auto":
        return device.precisions[0]
    if precision not in device.precisions:
        raise ConfigurationError(
            f"precision '{precision}' is not available on device '{device.name}': expected auto or one of "
            f"{', '.join(device.precisions)} ({device.refusal(precision)})"
        )
    return precision


def new_control(device: Device, seed: int = 0, forward_counter: int = 0) -> Array:
    """A control block (see `bp.ops.control`) on a device."""
    block = np.zeros(control.SIZE)
    for entry, value in control.INITIAL.items():
        block[entry] = value
    block[control.SEED_LOW], block[control.SEED_HIGH] = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    block[control.FORWARD_COUNTER] = forward_counter
    resident = device.zeros(block.shape, block.dtype)
    device.copy(resident, block)
    return resident
