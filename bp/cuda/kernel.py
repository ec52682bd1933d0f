"""Kernels as the operations use them: declared once, specialised by element type, launched with checked arguments.

    source = Source("activation", T=FLOATS)
    _relu = source.kernel("relu_forward", flops="n", bytes="2 * n * T", streaming=True)
    ...
    _relu(blocks(n), x, y, n)

The signature stands in `kernels/activation.cu` and is read from there. T is an axis of the source: the file is compiled
once for each value, and a call takes the one that its arrays have.
"""

import ctypes
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bp.cuda import device as devices
from bp.cuda.files import kernel_folder
from bp.cuda.signature import Parameter, Signature, signatures
from bp.errors import ConfigurationError, DtypeError, ShapeError

FLOATS = ("float", "float16", "bfloat16")

# C type -> name of the dtype of an array of such, bytes, and how a value of that type is passed.
C_TYPES: dict[str, tuple[str, int, Any]] = {
    "float": ("float32", 4, ctypes.c_float),
    "double": ("float64", 8, ctypes.c_double),
    "float16": ("float16", 2, None),
    "bfloat16": ("bfloat16", 2, None),
    "int8": ("int8", 1, ctypes.c_int8),
    "uint8": ("uint8", 1, ctypes.c_uint8),
    "uint16": ("uint16", 2, ctypes.c_uint16),
    "int16": ("int16", 2, ctypes.c_int16),
    "int": ("int32", 4, ctypes.c_int),
    "uint32": ("uint32", 4, ctypes.c_uint32),
    "int64": ("int64", 8, ctypes.c_int64),
    "uint64": ("uint64", 8, ctypes.c_uint64),
    "bool": ("bool", 1, ctypes.c_bool),
    # A tensor map (kernels/include/tensor_map.cuh), which goes by value: 128 bytes as bp.cuda.tensor_map makes them.
    "TensorMap": ("", 128, bytes),
}
C_NAMES = {dtype: name for name, (dtype, _, _) in C_TYPES.items()}

THREADS = 256  # of the elementwise kernels
_MAX_BLOCKS = 8192  # of a grid-stride loop: enough to fill any GPU many times over

SOURCES: dict[str, "Source"] = {}

Defines = tuple[tuple[str, str], ...]


def _given(*arguments: int | float) -> int:
    """How many of a launch's arguments are neither a null pointer nor 0."""
    return sum(argument != 0 for argument in arguments)


_FUNCTIONS = {"min": min, "max": max, "given": _given}  # of formulas


def blocks(work_items: int, threads: int = THREADS) -> int:
    """Blocks of a grid-stride loop over so many items; 0 where there is nothing to do, and then nothing is launched."""
    return min(-(-work_items // threads), _MAX_BLOCKS)


class Source:
    """A file of `kernels/` and its axes: what it is specialised by at compile time.

    name: of the file, without `.cu`. axes: the C types or numbers that each macro may be (`T=FLOATS`); the file is
    compiled for each combination. variants: sets of macros that belong together, such as the sizes of a tile, by the
    name under which a launch asks for one; the file is compiled for each. least: the least compute capability, as 75 or
    80, of all its kernels; least_of: by the value of an axis, where that needs more; only: the one that they exist on,
    where it is one. folder: where a file lies that is none of bp's.
    """

    def __init__(
        self,
        name: str,
        *,
        least: int = 75,
        least_of: Mapping[str, int] | None = None,
        only: int | None = None,
        folder: Path | None = None,
        variants: Mapping[str, Mapping[str, int]] | None = None,
        **axes: tuple[str, ...],
    ) -> None:
        self.name = name
        self.least = least if only is None else only
        self.least_of = least_of or {}
        self.only = only
        self.folder = folder
        self.variants = variants or {"": {}}
        self.axes = axes
        self.kernels: dict[str, Kernel] = {}
        if folder is None:
            SOURCES[name] = self

    @property
    def path(self) -> Path:
        """Of the file."""
        return (self.folder or kernel_folder()) / f"{self.name}.cu"

    def units(self) -> Iterator["Unit"]:
        """Each of its compilations."""
        for *values, variant in itertools.product(*self.axes.values(), self.variants):
            yield self.unit(dict(zip(self.axes, values, strict=True)), variant)

    def unit(self, axes: Mapping[str, str], variant: str = "") -> "Unit":
        """The compilation for one value of each axis, and one of the variants."""
        macros = {name: str(number) for name, number in self.variants[variant].items()}
        return Unit(self, (*axes.items(), *macros.items()), (*axes.values(), *filter(None, [variant])))

    def kernel(
        self,
        name: str,
        *,
        flops: str,
        bytes: str,
        streaming: bool = False,
        shared: str = "0",
        instructions: tuple[str, ...] = (),
        waiver: str = "",
    ) -> "Kernel":
        """Declare the kernel `name` of the file.

        flops, bytes: what a launch computes and moves at least, as expressions over the names of its scalar parameters,
        in which T and the other axes stand for the bytes of an element. In bytes, given(a, b) is how many of these
        arguments are there: arrays that are not None, numbers that are not 0. shared: dynamic shared memory in bytes,
        likewise. streaming: it reads and writes large arrays once, so its machine code has to move 16 bytes at a time.
        instructions: what its machine code has to have, by the first letters of their names, such as "HGMMA".
        waiver: why the compile gate lets it keep a stack frame or spills.
        """
        kernel = Kernel(self, name, flops, bytes, streaming, shared, instructions, waiver)
        self.kernels[name] = kernel
        return kernel


@dataclass(frozen=True)
class Unit:
    """A source compiled for one set of macros. labels: what tells it from the others in words: types, a variant."""

    source: Source
    defines: Defines
    labels: tuple[str, ...]

    def runs_on(self, capability: int) -> bool:
        """Whether its kernels exist on GPUs of that compute capability, as 80 or 90."""
        source = self.source
        least = max(source.least, *(source.least_of.get(value, 0) for _, value in self.defines), 0)
        return capability >= least if source.only is None else capability == source.only

    def __str__(self) -> str:
        return self.named(self.source.name)

    def named(self, name: str) -> str:
        """A name with what tells this compilation from the others, as "relu_forward[float16]"."""
        return f"{name}[{', '.join(self.labels)}]" if self.labels else name


@dataclass(eq=False)
class Kernel:
    """A declared kernel; calling it launches it on the device of its arrays."""

    source: Source
    name: str
    flops: str
    bytes: str
    streaming: bool
    shared: str
    instructions: tuple[str, ...]
    waiver: str
    _plans: dict[Any, "Variant"] = field(default_factory=dict, repr=False)

    @cached_property
    def signature(self) -> Signature:
        """As the file states it; raises ConfigurationError where the file has no such kernel."""
        known = signatures(self.source.path)
        if self.name not in known:
            raise ConfigurationError(f"{self.source.path.name} has no kernel {self.name}; it has {', '.join(known)}")
        return known[self.name]

    def __call__(self, grid: int | tuple[int, ...], *arguments: Any, variant: str = "", **axes: Any) -> None:
        """Launch on `grid` blocks with the arguments of the signature, in its order.

        Arrays go to pointers (None is a null pointer), numbers to scalars, each cast to its declared C type. variant:
        one of the source's. axes: values of the axes that no array tells. An empty grid launches nothing.
        Raises DtypeError or ShapeError for an array of another dtype or device, or not C-contiguous; TypeError for
        another number of arguments.
        """
        if not (grid if isinstance(grid, int) else math.prod(grid)):
            return
        key = (*(type(a) if not hasattr(a, "dtype") else (type(a), a.dtype) for a in arguments), variant, *axes.items())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._resolve(arguments, variant, axes)
        plan.device.launch(plan, grid, plan.pack(arguments))

    def _resolve(self, arguments: tuple[Any, ...], variant: str, axes: dict[str, str]) -> "Variant":
        """Check the types of the arguments, once for each combination of them, and choose the unit."""
        parameters = self.signature.parameters
        if len(arguments) != len(parameters):
            expected = ", ".join(p.name for p in parameters)
            raise TypeError(
                f"kernel {self.name} expected {len(parameters)} arguments ({expected}), got {len(arguments)}"
            )
        first: Any = next((a for p, a in zip(parameters, arguments, strict=True) if p.pointer and a is not None), None)
        device = devices.device_of(first)
        values = {axis: str(value) for axis, value in axes.items()}
        argument: Any
        for parameter, argument in zip(parameters, arguments, strict=True):
            if not parameter.pointer or argument is None:
                continue
            given_type = type(argument)
            if given_type is not device.array_type:
                raise DtypeError(
                    f"kernel {self.name} expected {parameter.name} on device '{device.name}' like its first array, got "
                    f"a {given_type.__module__}.{given_type.__name__}; device.from_host(array) brings it there"
                )
            given: str = C_NAMES.get(argument.dtype.name, argument.dtype.name)
            if parameter.type == "void":  # a kernel that moves bytes takes any dtype
                continue
            if parameter.type in self.source.axes and parameter.type not in values:
                values[parameter.type] = given
            expected = values.get(parameter.type, parameter.type)
            if given != expected:
                raise DtypeError(
                    f"kernel {self.name} expected {parameter.name} of {expected} elements, got {argument.dtype}"
                )
        for axis, known in self.source.axes.items():
            if axis not in values and len(known) == 1:
                values[axis] = known[0]
            if values.get(axis) not in known:
                raise DtypeError(
                    f"kernel {self.name} is compiled for {axis} of {', '.join(known)}, got {values.get(axis, 'none')}"
                )
        return Variant(self, self.source.unit({axis: values[axis] for axis in self.source.axes}, variant), device)


@dataclass(eq=False)
class Variant:
    """A kernel in one unit on one device, ready to launch."""

    kernel: Kernel
    unit: Unit
    device: "devices.CudaDevice"
    function: Any = None  # what the device launches, once it is compiled and loaded

    def __post_init__(self) -> None:
        signature = self.kernel.signature
        self.parameters: tuple[Parameter, ...] = signature.parameters
        defines = dict(self.unit.defines)
        self.threads = int(defines.get(signature.threads, signature.threads))
        self.types: list[Any] = [
            ctypes.c_void_p if p.pointer else C_TYPES[defines.get(p.type, p.type)][2] for p in self.parameters
        ]
        self._is_pointer = [p.pointer for p in self.parameters]
        self._is_integer = [
            not p.pointer and t not in (ctypes.c_float, ctypes.c_double, bytes)
            for p, t in zip(self.parameters, self.types, strict=True)
        ]
        self._formulas = tuple(
            compile(text, self.kernel.name, "eval")
            for text in (self.kernel.flops, self.kernel.bytes, self.kernel.shared)
        )
        self._sizes = {axis: C_TYPES[v][1] if v in C_TYPES else int(v) for axis, v in self.unit.defines}
        self._pointer_of = self.device.pointer

    def __str__(self) -> str:
        return self.unit.named(self.kernel.name)

    def pack(self, arguments: tuple[Any, ...]) -> "devices.Values":
        """The values to pass: addresses of arrays, and numbers and tensor maps as they are."""
        return tuple(map(self._value, self._is_pointer, self._is_integer, arguments))

    def _value(self, is_pointer: bool, is_integer: bool, argument: Any) -> int | float | bytes:
        if is_pointer:
            if argument is None:
                return 0
            if not argument.flags.c_contiguous:
                raise ShapeError(
                    f"kernel {self.kernel.name} expected C-contiguous arrays, got one of shape {argument.shape} with "
                    f"strides {argument.strides}"
                )
            return self._pointer_of(argument)
        if isinstance(argument, bytes):
            return argument
        return int(argument) if is_integer else float(argument)

    def cost(self, values: "devices.Values") -> tuple[float, float]:
        """(FLOPs, bytes) of a launch with these values, by the declared formulas."""
        return self._evaluate(0, values), self._evaluate(1, values)

    def shared_bytes(self, values: "devices.Values") -> int:
        """Dynamic shared memory of a launch with these values."""
        return 0 if self.kernel.shared == "0" else int(self._evaluate(2, values))

    def _evaluate(self, which: int, values: "devices.Values") -> float:
        names: dict[str, Any] = {p.name: v for p, v in zip(self.parameters, values, strict=True)}
        return float(eval(self._formulas[which], {"__builtins__": _FUNCTIONS}, names | self._sizes))
