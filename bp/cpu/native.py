"""The C++ kernels of the CPU device, where the extension was built; NumPy computes the same without them."""

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from bp.threads import short_waits


def _load() -> ModuleType | None:
    if os.environ.get("BP_NATIVE", "1") == "0":
        return None
    try:
        with short_waits():
            return importlib.import_module("bp.cpu._native")
    except ImportError:
        return None


# The extension module, or None: not built, or switched off with BP_NATIVE=0.
kernels: ModuleType | None = _load()
if kernels is not None and hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=kernels.use_one_thread)


def kernel(name: str, array: np.ndarray) -> Callable[..., Any] | None:
    """The C++ kernel of that name for arrays like `array`, or None: not built, or no float32 at aligned addresses."""
    return getattr(kernels, name, None) if array.dtype == np.float32 and array.flags.aligned else None
