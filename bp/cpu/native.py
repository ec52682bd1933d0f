"""The C++ kernels of the CPU device, where the extension was built; NumPy computes the same without them."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np


def _load() -> ModuleType | None:
    if os.environ.get("BP_NATIVE", "1") == "0":
        return None
    try:
        with _patient_threads():
            return importlib.import_module("bp.cpu._native")
    except ImportError:
        return None


@contextmanager
def _patient_threads() -> Iterator[None]:
    """Let the OpenMP library that loads within sleep soon after a loop, instead of spinning for milliseconds.

    NumPy's BLAS brings threads of its own. A worker that spins after one of our loops holds the core that the next
    product needs: on 2 cores a step of a 784-512-512-10 network took 6 to 8 ms with libgomp's default and 2.7 ms with a
    short spin, and on a busy machine the difference is far larger. libgomp reads the variable once, when it is
    loaded; a setting of the user's stands.
    """
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    if any(name in os.environ for name in names):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "1000"  # a few microseconds
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


# The extension module, or None: not built, or switched off with BP_NATIVE=0.
kernels: ModuleType | None = _load()
if kernels is not None and hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=kernels.use_one_thread)


def kernel(name: str, array: np.ndarray) -> Callable[..., Any] | None:
    """The C++ kernel of that name for arrays like `array`, or None: not built, or no float32 at aligned addresses."""
    return getattr(kernels, name, None) if array.dtype == np.float32 and array.flags.aligned else None
