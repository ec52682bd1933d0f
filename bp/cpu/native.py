"""The C++ kernels of the CPU device, where the extension was built; NumPy computes the same without them."""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np


def _load() -> ModuleType | None:
    if os.environ.get("BP_NATIVE", "1") == "0":
        return None
    try:
        return importlib.import_module("bp.cpu._native")
    except ImportError:
        return None


# The extension module, or None: not built, or switched off with BP_NATIVE=0.
kernels: ModuleType | None = _load()


def kernel(name: str, array: np.ndarray) -> Callable[..., Any] | None:
    """The C++ kernel of that name for arrays of `array`'s type, or None: not built, or no float32."""
    return getattr(kernels, name, None) if array.dtype == np.float32 else None
