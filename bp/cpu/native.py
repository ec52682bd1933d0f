"""The C++ kernels of the CPU device, where the extension was built; NumPy computes the same without them."""

import os
from types import ModuleType


def _load() -> ModuleType | None:
    if os.environ.get("BP_NATIVE", "1") == "0":
        return None
    try:
        from bp.cpu import _native
    except ImportError:
        return None
    return _native


# The extension module, or None: not built, or switched off with BP_NATIVE=0.
kernels: ModuleType | None = _load()
