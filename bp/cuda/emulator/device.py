"""The device "emulator": arrays between guard pages, and launches that run in the C++ engine."""

import ctypes
import os
from typing import Any

import numpy as np

from bp.cuda.array import DeviceArray
from bp.cuda.device import CudaDevice, Values
from bp.cuda.emulator import engine
from bp.cuda.emulator.unit import compile_unit
from bp.cuda.kernel import Variant
from bp.ops.array import Array, Shape, known_dtype


class EmulatorArray(DeviceArray):
    """An array of the emulator: its end lies against a guard page."""


class EmulatorDevice(CudaDevice):
    """Runs `kernels/*.cu` on the CPU.

    detector: whether each access is watched: two that conflict and that nothing orders raise KernelFault. seed: of the
    order in which blocks and threads run; 0 takes them by number. timeout: seconds of processor time after which a
    launch raises KernelFault, as one that never ends; 0: never. They are read from BP_EMULATOR_DETECTOR (1: on),
    BP_EMULATOR_SEED and BP_EMULATOR_TIMEOUT at first.
    """

    name = "emulator"
    array_type = EmulatorArray
    capability = 90  # what its models of the instructions cover

    @property
    def precisions(self) -> tuple[str, ...]:
        """All that a GPU has; fp32 first, since here 16 bits save no time."""
        return "fp32", "tf32", "bf16", "fp16"

    @property
    def multiprocessors(self) -> int:
        """So few that blocks which stay have more than one piece of work each."""
        return 2

    def __init__(self) -> None:
        super().__init__()
        EmulatorArray.device = self
        self.detector = os.environ.get("BP_EMULATOR_DETECTOR", "0") == "1"
        self.seed = int(os.environ.get("BP_EMULATOR_SEED", "0"))
        self.timeout = float(os.environ.get("BP_EMULATOR_TIMEOUT", engine.TIMEOUT))

    def allocate(self, shape: Shape, dtype: Any) -> EmulatorArray:
        known = known_dtype(dtype)
        array = EmulatorArray(tuple(shape), known, 0, None)
        array.owner = allocation = engine.allocate(array.nbytes)
        array.pointer = allocation.pointer
        return array

    def to_host(self, array: Array) -> np.ndarray:
        self.note_transfer("the device is read by the host")
        result = np.empty(array.shape, array.dtype)
        if result.size:
            ctypes.memmove(result.ctypes.data, array.pointer, result.nbytes)
        return result

    def _upload(self, destination: Array, source: np.ndarray) -> None:
        self.note_transfer("the host writes to the device")
        ctypes.memmove(destination.pointer, source.ctypes.data, source.nbytes)

    def pointer(self, array: Array) -> int:
        return array.pointer

    def _run(self, variant: Variant, grid: tuple[int, int, int], values: Values) -> None:
        if variant.function is None or variant.function[0] != self.detector:
            unit = compile_unit(variant.kernel.source.path, dict(variant.unit.defines), detector=self.detector)
            variant.function = (self.detector, unit.function(variant.kernel.name), unit)
        arguments: list[Any] = [
            _tensor_map(value) if isinstance(value, bytes) else convert(value)
            for convert, value in zip(variant.types, values, strict=True)
        ]
        for parameter, argument, value in zip(variant.parameters, arguments, values, strict=True):
            if isinstance(value, int) and not parameter.pointer and argument.value != value:
                raise OverflowError(f"kernel {variant}: {parameter.name} = {value} does not fit in {parameter.type}")
        engine.launch(
            variant.function[1],
            str(variant),
            arguments,
            grid,
            variant.threads,
            variant.shared_bytes(values),
            seed=self.seed,
            timeout=self.timeout,
        )

    def synchronize(self) -> None:
        """Nothing to wait for: a launch returns when it has run."""


def _tensor_map(value: bytes) -> Any:
    """A copy at an address that is a multiple of 64, as kernels expect a TensorMap."""
    buffer = ctypes.create_string_buffer(len(value) + 64)
    aligned = (ctypes.c_char * len(value)).from_buffer(buffer, -ctypes.addressof(buffer) % 64)
    aligned.raw = value
    return aligned


device = EmulatorDevice()
