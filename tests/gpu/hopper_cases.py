"""The kernels of tests/kernels/hopper.cu as functions of arrays of the host, on any device: the intrinsics of sm_90."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bp.cuda import tensor_map
from bp.cuda.kernel import Kernel, Source, blocks

SOURCE = Source("hopper", only=90, folder=Path(__file__).parent.parent / "kernels")

_E4M3, _E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2

# Of the two factors: the number by which the kernel `product` knows the types.
TYPES: dict[str, tuple[int, Any, Any]] = {
    "fp16": (0, np.float16, np.float16),
    "bf16": (1, ml_dtypes.bfloat16, ml_dtypes.bfloat16),
    "tf32": (2, np.float32, np.float32),
    "e4m3 e4m3": (3, _E4M3, _E4M3),
    "e4m3 e5m2": (4, _E4M3, _E5M2),
    "e5m2 e4m3": (5, _E5M2, _E4M3),
    "e5m2 e5m2": (6, _E5M2, _E5M2),
}
MAJORS = {"K K": 0, "K MN": 1, "MN K": 2, "MN MN": 3}
PRODUCTS = [(types, "K K") for types in TYPES] + [(t, m) for t in ("fp16", "bf16") for m in list(MAJORS)[1:]]


def depth_of(types: str) -> int:
    """Elements in 128 bytes of a factor."""
    return 128 // np.dtype(TYPES[types][1]).itemsize


def kernel(name: str, shared: str = "65536") -> Kernel:
    return SOURCE.kernels.get(name) or SOURCE.kernel(name, flops="0", bytes="0", shared=shared)


def product(
    device: Any,
    types: str,
    majors: str,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    *,
    accumulate: bool = True,
) -> np.ndarray:
    """a (64, depth) times b (columns, depth) transposed, plus c (64, columns); depth is that of 128 bytes.

    Floats are loaded as they are, so that what the product reads of them as tf32 is its own doing.
    """
    number, type_a, type_b = TYPES[types]
    array_a, map_a = _factor(device, a.astype(type_a), majors.startswith("MN"), 64)
    array_b, map_b = _factor(device, b.astype(type_b), majors.endswith("MN"), len(b))
    y = device.empty(c.shape, np.float32)
    kernel("product")(1, map_a, map_b, device.from_host(c), y, number, MAJORS[majors], len(b), int(accumulate))
    result: np.ndarray = device.to_host(y)
    del array_a, array_b  # a map does not keep its array
    return result


def _factor(device: Any, values: np.ndarray, is_mn_major: bool, rows_of_box: int) -> tuple[Any, bytes]:
    """values (rows, depth) as an array on the device, bytes where devices have no such type, and its map."""
    stored = np.ascontiguousarray(values.T if is_mn_major else values)
    size = stored.dtype.itemsize
    array = device.from_host(stored.view(np.uint8) if size == 1 else stored)
    outer, inner = stored.shape
    box = (64, 64) if is_mn_major else (128 // size, rows_of_box)
    return array, tensor_map.tiled(array, (inner, outer), (size * inner,), box)


def tiled(x: np.ndarray, array: Any, box: Sequence[int], **options: Any) -> bytes:
    """The map of the whole of a C-contiguous array, of which x is a copy."""
    return tensor_map.tiled(array, x.shape[::-1], x.strides[-2::-1], box, **options)


def loaded_box(
    device: Any, x: np.ndarray, box: Sequence[int], at: Sequence[int], nbytes: int, **options: Any
) -> np.ndarray:
    """The bytes of shared memory that a box of x fills. box, at: the innermost dimension first."""
    array = device.from_host(x)
    y = device.zeros((nbytes,), np.uint8)
    kernel("loaded_box")(1, tiled(x, array, box, **options), _integers(device, at), y, len(at), nbytes)
    result: np.ndarray = device.to_host(y)
    return result


def stored_box(
    device: Any, x: np.ndarray, box: Sequence[int], at: Sequence[int], shared: np.ndarray, **options: Any
) -> np.ndarray:
    """x after these bytes of shared memory were stored as a box of it."""
    array = device.from_host(x)
    map_ = tiled(x, array, box, **options)
    kernel("stored_box")(1, map_, _integers(device, at), device.from_host(shared), len(at), shared.size)
    result: np.ndarray = device.to_host(array)
    return result


def loaded_pixels(
    device: Any, x: np.ndarray, columns: tuple[Any, ...], at: Sequence[int], tap: Sequence[int], **options: Any
) -> np.ndarray:
    """The bytes of shared memory that a column of pixels of x fills. columns: both corners, channels, pixels."""
    array = device.from_host(x)
    nbytes = columns[2] * columns[3] * x.itemsize
    y = device.zeros((nbytes,), np.uint8)
    map_ = tensor_map.im2col(array, *columns, **options)
    kernel("loaded_pixels")(1, map_, _integers(device, at), y, *tap, nbytes)
    result: np.ndarray = device.to_host(y)
    return result


def float_to_fp8(device: Any, x: np.ndarray) -> np.ndarray:
    """(2, n): the bytes of x as e4m3 and as e5m2."""
    y = device.empty((2, x.size), np.uint8)
    kernel("float_to_fp8", "0")(blocks(x.size), device.from_host(x), y, x.size)
    result: np.ndarray = device.to_host(y)
    return result


def _integers(device: Any, values: Sequence[int]) -> Any:
    return device.from_host(np.array(values, np.int32))
