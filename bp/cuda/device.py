"""What the GPU, the emulator and a plan share: memory, copies, and launches that can be recorded."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bp.cuda.ledger import Ledger
from bp.errors import DtypeError, ShapeError
from bp.ops import scope
from bp.ops.array import Array, Shape, is_floating
from bp.ops.device import own_arrays
from bp.ops.memory import StepMemory, active_memory
from bp.ops.operation import register_device

if TYPE_CHECKING:
    from bp.cuda.graph import StepGraph
    from bp.cuda.kernel import Variant

Values = tuple[int | float | bytes, ...]  # of the parameters of a launch

_MAX_GRID = (2**31 - 1, 65535, 65535)

_devices: dict[type, "CudaDevice"] = {}


def device_of(array: Any) -> "CudaDevice":
    """The device that an array lies on; raises DtypeError for what is no array of a CUDA device."""
    device = _devices.get(type(array))
    if device is None:
        known = ", ".join(sorted(d.name for d in _devices.values()))
        raise DtypeError(
            f"expected an array of a CUDA device ({known}), got a {type(array).__module__}.{type(array).__name__}"
        )
    return device


def empty(like: Array, shape: Shape, dtype: Any = None) -> Array:
    """An uninitialised array on the device of `like`, and of its dtype unless one is given."""
    return device_of(like).empty(shape, like.dtype if dtype is None else dtype)


def empty_like(x: Array) -> Array:
    """An uninitialised array of the shape, dtype and device of `x`."""
    return device_of(x).empty(x.shape, x.dtype)


class _OfThread(threading.local):
    """What a device does differently for the running thread."""

    ledger: Ledger | None = None
    tf32: bool = False


class CudaDevice(ABC):
    """Arrays in the memory of one device, and launches of kernels on them.

    name: as a user gives it. array_type: the class of its arrays; operations on such run in `bp.cuda`.
    capability: the compute capability, as 90 for 9.0. What is recorded, and in which precision work runs, each thread
    has for itself: several may train at a time.
    """

    name: str
    array_type: type
    capability: int

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that it computes in; bfloat16 and tf32 came with compute capability 8.0."""
        return ("bf16", "fp32", "tf32", "fp16") if self.capability >= 80 else ("fp32", "fp16")

    @property
    def multiprocessors(self) -> int:
        """How many blocks at most a kernel is launched with whose blocks stay until all is done; no result depends on
        it. Here those of an H100 or H200.
        """
        return 132

    def __init__(self) -> None:
        self._here = _OfThread()
        _devices[self.array_type] = self
        register_device(self.array_type, "bp.cuda")
        own_arrays(self.array_type, self)

    @property
    def kernel_choice(self) -> str:
        """In words, by what it chooses among kernels for products: another choice may change the last bits of a sum."""
        from bp.cuda.choice import in_use

        return in_use(self.capability)

    @property
    def tf32(self) -> bool:
        """Whether products of float32 matrices may round their factors to tf32; sums are of float32 all the same."""
        return self._here.tf32

    # Memory -----------------------------------------------------------------------------------------------

    def refusal(self, precision: str) -> str:
        """Why a precision is not among `precisions`, and which to take."""
        if precision in ("bf16", "tf32"):
            found = f"{self.capability // 10}.{self.capability % 10}"
            return f"{precision} needs compute capability 8.0, this GPU has {found}: take fp16 or fp32"
        return "float64 is for the CPU, as the reference: take fp32"

    @abstractmethod
    def allocate(self, shape: Shape, dtype: Any) -> Array:
        """An uninitialised C-contiguous array in memory of its own."""

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """An uninitialised C-contiguous array: a free slot of the active `StepMemory`, or a fresh one."""
        memory = active_memory(self.name)
        return self.allocate(shape, dtype) if memory is None else memory.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """A fresh C-contiguous array of zeros, for memory that lives as long as the model."""
        # Of a step that is replayed it would be freed memory by then.
        self.note_transfer("memory is taken anew, by zeros,")
        array = self.allocate(shape, dtype)
        self.fill(array, 0)
        return array

    def StepMemory(self) -> StepMemory:
        """A memory whose slots lie on this device."""
        return StepMemory(device=self.name, allocate=self.allocate)

    def from_host(self, array: np.ndarray) -> Array:
        """A copy of a host array on the device; raises DtypeError for what is no array of numbers."""
        expect_storable(self.name, array.dtype)
        result = self.empty(array.shape, array.dtype)
        self.copy(result, array)
        return result

    @abstractmethod
    def to_host(self, array: Array) -> np.ndarray:
        """A copy on the host; waits for what was launched before."""

    def copy(self, destination: Array, source: Array | np.ndarray) -> None:
        """destination = source, of one shape: from the host, converted there; on the device, by a kernel."""
        if destination.shape != source.shape:
            raise ShapeError(f"expected an array of shape {destination.shape} to copy, got {source.shape}")
        if not destination.size:
            return
        if isinstance(source, np.ndarray):
            # The host knows what it copies from: a graph could not replay it.
            self._upload(destination, np.ascontiguousarray(source, destination.dtype))
        elif source.dtype == destination.dtype:
            from bp.cuda.transfer import copy_bytes

            copy_bytes(destination, source)
        else:
            from bp.cuda.transfer import cast

            cast(destination, source)

    def fill(self, destination: Array, value: float) -> None:
        """Every element of `destination` = value."""
        if destination.size:
            from bp.cuda.transfer import fill

            fill(destination, value)

    @abstractmethod
    def _upload(self, destination: Array, source: np.ndarray) -> None:
        """Copy a contiguous host array of the same shape and dtype; in the order of the launches."""

    @abstractmethod
    def pointer(self, array: Array) -> int:
        """Address of the first element."""

    # Launches ---------------------------------------------------------------------------------------------

    def launch(self, variant: "Variant", grid: int | tuple[int, ...], values: Values) -> None:
        """Run a kernel on `grid` blocks with these values of its parameters, after all that was launched before."""
        x, y, z = (grid, 1, 1) if isinstance(grid, int) else (*grid, 1, 1)[:3]
        shape = (x, y, z)
        if not (0 < x <= _MAX_GRID[0] and 0 < y <= _MAX_GRID[1] and 0 < z <= _MAX_GRID[2]):
            raise ShapeError(f"kernel {variant} expected a grid of at most {_MAX_GRID} blocks, as GPUs do, got {shape}")
        if variant.kernel.shared != "0":
            self._expect_shared(variant, variant.shared_bytes(values))
        ledger = self._here.ledger
        if ledger is None:
            self._run(variant, shape, values)
            return
        begun = self.mark() if ledger.timed else None
        self._run(variant, shape, values)
        ledger.add(variant, shape, values, None if begun is None else self.since(begun))

    def _expect_shared(self, variant: "Variant", nbytes: int) -> None:
        from bp.cuda.resources import LIMITS

        limit = LIMITS.get(self.capability)
        if limit is not None and not 0 <= nbytes <= limit.shared_per_block:
            raise ShapeError(
                f"kernel {variant} needs {nbytes} bytes of shared memory a block, compute capability "
                f"{self.capability // 10}.{self.capability % 10} has {limit.shared_per_block}"
            )

    @abstractmethod
    def _run(self, variant: "Variant", grid: tuple[int, int, int], values: Values) -> None:
        """Compile, load and run."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything launched so far has run."""

    def note_transfer(self, what: str) -> None:
        """Enter in the ledger what a replayed step would not do again, such as a copy from the host."""
        ledger = self._here.ledger
        if ledger is not None and ledger.transfer is None:
            layer, phase = scope.current()
            ledger.transfer = what + (f" in the {phase} of {layer}" if layer else "")

    @contextmanager
    def running(self, precision: str) -> Iterator[None]:
        """Within this block work runs as that of a training in that precision does."""
        outer, self._here.tf32 = self._here.tf32, precision == "tf32"
        try:
            yield
        finally:
            self._here.tf32 = outer

    def step_graph(self) -> "StepGraph":
        """What replays whole training steps."""
        from bp.cuda.graph import StepGraph

        return StepGraph(self)

    def replay(self, ledger: Ledger) -> Callable[[], None]:
        """What launches everything in the ledger again, with the same arguments."""
        launches = [(launch.variant, launch.grid, launch.values) for launch in ledger.launches]

        def again() -> None:
            for launch in launches:
                self._run(*launch)

        return again

    def stage(self, shape: Shape, dtype: Any) -> "Place":
        """A place on the device that one batch after the other is brought to."""
        return Place(self, shape, dtype)

    def mark(self) -> Any:
        """A point in the order of the launches, for `since`."""
        return time.perf_counter()

    def since(self, mark: Any) -> Callable[[], float]:
        """What gives the seconds from `mark` to now on the device, once it has got here."""
        seconds = time.perf_counter() - mark
        return lambda: seconds

    @contextmanager
    def recording(self, *, timed: bool = False) -> Iterator[Ledger]:
        """Within this block every launch is entered in the ledger that it gives, under its layer and pass.

        A recording that lies within another, such as that of a step to be replayed, is part of that too.
        """
        outer = self._here.ledger
        self._here.ledger = inner = Ledger(timed or (outer is not None and outer.timed))
        try:
            with scope.watch():
                yield inner
        finally:
            self._here.ledger = outer
            if outer is not None:
                outer.include(inner)


class Place:
    """An array on the device, `static`, that host arrays are copied to one after the other."""

    def __init__(self, device: CudaDevice, shape: Shape, dtype: Any) -> None:
        self.device = device
        self.static = device.allocate(shape, dtype)

    def put(self, array: np.ndarray) -> None:
        """Copy a host array to it."""
        self.device.copy(self.static, array)


def expect_storable(name: str, dtype: np.dtype[Any]) -> None:
    """Raise DtypeError unless arrays of a dtype can lie on a device: floats, integers and bools of up to 8 bytes."""
    if not (dtype.kind in "fiub" or is_floating(dtype)) or dtype.itemsize > 8:
        raise DtypeError(f"device '{name}' has arrays of floats, integers and bools, got dtype {dtype}")
