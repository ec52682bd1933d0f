"""The type of an array: bp has no tensor class of its own, an operation takes the arrays of its device."""

from typing import Any, TypeAlias

import numpy as np

from bp.errors import ConfigurationError

# numpy.ndarray on the CPU, cupy.ndarray on a GPU, bp.cuda.array.DeviceArray on the emulator. All offer .shape, .dtype,
# .ndim, .size, .nbytes, .flags.c_contiguous, .reshape, slices along the first axis, and `array[...] = other`; nothing
# above bp/cpu and bp/cuda uses more of them than that.
Array: TypeAlias = Any

Shape: TypeAlias = tuple[int, ...]


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether it is a floating dtype; NumPy itself does not know of bfloat16."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16")


def known_dtype(name: Any) -> np.dtype[Any]:
    """The dtype of that name, in the byte order of this machine.

    "bfloat16" needs the package ml_dtypes; raises ConfigurationError without it.
    """
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ConfigurationError("bfloat16 arrays need the package ml_dtypes: pip install ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(name)
    return dtype if dtype.isnative else dtype.newbyteorder("=")  # files hold either order, kernels read that of the CPU
