"""Operations on the emulator against the float64 reference of the CPU.

    compare(ops.layer_norm, x, gamma, beta, 1, 1e-5, dtype="bfloat16", length=x.shape[-1])

runs the operation twice, on float64 NumPy arrays and on arrays of the emulator in `dtype`, and compares what it returns
and what it writes into its arguments. The inputs are rounded to `dtype` first, so both see the same numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from table import KERNEL_DEVICE, assert_close

from bp.checking import tolerance
from bp.cuda.emulator import engine
from bp.cuda.emulator.device import EmulatorArray
from bp.ops.array import is_floating, known_dtype
from bp.ops.device import find_device

DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class Wide:
    """An array argument that is float32 on the device whatever `dtype` is: a gradient, a statistic, a moment."""

    array: np.ndarray


@dataclass
class Exact:
    """An array argument that keeps its dtype: the control block, a running sum in float64."""

    array: np.ndarray


@dataclass
class Offset:
    """An array argument that begins `elements` elements beyond a 16-byte boundary on the device."""

    array: np.ndarray
    elements: int = 1


def to_device(array: np.ndarray, dtype: str | None = None, device: str = KERNEL_DEVICE) -> Any:
    """A copy on the device, floats in `dtype`."""
    return find_device(device).from_host(np.array(array, known_dtype(dtype) if dtype else array.dtype, order="C"))


def to_host(array: Any) -> np.ndarray:
    """A copy on the host."""
    return np.array(array.get())


def sparse(shape: tuple[int, ...], dtype: str) -> EmulatorArray:
    """Zeros on the emulator that take memory only where they are written: arrays of more than 2^31 elements."""
    if KERNEL_DEVICE != "emulator":
        pytest.skip("memory that is only partly there is the emulator's")
    known = known_dtype(dtype)
    memory = engine.allocate(math.prod(shape) * known.itemsize, sparse=True)
    return EmulatorArray(shape, known, memory.pointer, memory)


def on_device(argument: Any, dtype: str) -> Any:
    """An argument as the emulator takes it."""
    if isinstance(argument, Wide):
        return to_device(argument.array, "float32")
    if isinstance(argument, Exact):
        return to_device(argument.array)
    if isinstance(argument, Offset):
        flat = np.full(argument.array.size + argument.elements, np.nan)  # what is read before the array shows
        flat[argument.elements :] = argument.array.ravel()
        return to_device(flat, dtype)[argument.elements :].reshape(argument.array.shape)
    if isinstance(argument, np.ndarray):
        return to_device(argument, dtype if is_floating(argument.dtype) else None)
    if isinstance(argument, (list, tuple)) and any(isinstance(a, np.ndarray) for a in argument):
        return type(argument)(on_device(a, dtype) for a in argument)
    return argument


def on_host(argument: Any, dtype: str) -> Any:
    """The same argument as the float64 reference takes it: rounded to `dtype`, in float64."""
    if isinstance(argument, Wide):
        return argument.array.astype(np.float32).astype(np.float64)
    if isinstance(argument, Exact):
        return argument.array.copy()
    if isinstance(argument, Offset):
        argument = argument.array
    if isinstance(argument, np.ndarray) and is_floating(argument.dtype):
        return argument.astype(known_dtype(dtype)).astype(np.float64)
    if isinstance(argument, np.ndarray):
        return argument.copy()
    if isinstance(argument, (list, tuple)) and any(isinstance(a, np.ndarray) for a in argument):
        return type(argument)(on_host(a, dtype) for a in argument)
    return argument


def compare(
    operation: Callable[..., Any],
    *arguments: Any,
    dtype: str = "float32",
    length: int = 1,
    output_dtypes: Sequence[str] | None = None,
) -> Any:
    """Compare the operation on the emulator with the float64 reference; returns the emulator's result.

    length: terms of the longest sum. Each result is held to the tolerance of its own dtype on the device; what is
    summed in float32 and then rounded to a 16-bit float is off by that rounding.
    """
    given = [on_device(argument, dtype) for argument in arguments]
    reference = [on_host(argument, dtype) for argument in arguments]
    actual, expected = operation(*given), operation(*reference)
    name = operation.__name__
    results = actual if isinstance(actual, tuple) else (actual,)
    expectations = expected if isinstance(expected, tuple) else (expected,)
    assert len(results) == len(expectations)
    for number, (result, expectation) in enumerate(zip(results, expectations, strict=True)):
        if expectation is None:
            assert result is None
            continue
        _check(result, expectation, dtype, length, f"{name}: result {number}")
        if output_dtypes is not None:
            assert result.dtype.name == output_dtypes[number]
    for number, (result, expectation) in enumerate(zip(given, reference, strict=True)):
        if isinstance(expectation, np.ndarray):
            _check(result, expectation, dtype, length, f"{name}: argument {number} afterwards")
    return actual


def _check(result: Any, expectation: np.ndarray, dtype: str, length: int, what: str) -> None:
    assert tuple(result.shape) == expectation.shape, what
    host = to_host(result)
    if not is_floating(host.dtype):
        np.testing.assert_array_equal(host, expectation, err_msg=what)
        return
    narrow = host.dtype.name if host.dtype.itemsize <= 4 else "float32"
    relative = tolerance("float32", length)
    if narrow != "float32":
        relative += tolerance(narrow, 1)
    assert_close(host.astype(np.float64), expectation, relative, what)
