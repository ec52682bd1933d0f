"""The device "plan": arrays without memory and launches that only enter the ledger.

A training step on it runs the very code of `bp/cuda`, so what it would allocate and launch is known before the first
real step: the memory plan, the list of kernels to compile, and the roofline come from here.
"""

from typing import Any

import numpy as np

from bp.cuda.array import DeviceArray
from bp.cuda.device import CudaDevice, Values
from bp.cuda.kernel import Variant
from bp.ops.array import Array, Shape, known_dtype


class PlanArray(DeviceArray):
    """An array that has a shape and a dtype and no memory."""


class PlanDevice(CudaDevice):
    """Computes nothing; `to_host` gives zeros. capability: that of the device it plans for."""

    name = "plan"
    array_type = PlanArray

    def __init__(self, capability: int = 90) -> None:
        super().__init__()
        PlanArray.device = self
        self.capability = capability

    def allocate(self, shape: Shape, dtype: Any) -> PlanArray:
        return PlanArray(tuple(shape), known_dtype(dtype), 0, None)

    def to_host(self, array: Array) -> np.ndarray:
        return np.zeros(array.shape, array.dtype)

    def _upload(self, destination: Array, source: np.ndarray) -> None:
        pass

    def pointer(self, array: Array) -> int:
        return 256  # as aligned as memory that is allocated, and no null pointer

    def _run(self, variant: Variant, grid: tuple[int, int, int], values: Values) -> None:
        pass

    def synchronize(self) -> None:
        """Nothing was launched."""


device = PlanDevice()
