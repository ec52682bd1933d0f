"""The C++ kernels of the CPU device, where the extension was built; NumPy computes the same without them."""

import importlib
import os
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("BP_NATIVE", "1") == "0":
        return None
    try:
        return importlib.import_module("bp.cpu._native")
    except ImportError:
        return None


# The extension module, or None: not built, or switched off with BP_NATIVE=0. Read it at call time.
kernels: ModuleType | None = _load()
