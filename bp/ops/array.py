"""The type of an array: bp has no tensor class of its own, an operation takes the arrays of its device."""

from typing import Any, TypeAlias

# numpy.ndarray on the CPU, cupy.ndarray on a GPU. Both offer .shape, .dtype, .ndim, .size, .reshape and
# slicing; nothing above bp/cpu and bp/cuda uses more of them than that.
Array: TypeAlias = Any

Shape: TypeAlias = tuple[int, ...]
