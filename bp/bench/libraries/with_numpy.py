"""NumPy, as it comes."""

import numpy as np

from bp.bench.libraries.library import HostLibrary, Library
from bp.errors import ConfigurationError


def open_on(device: str) -> Library:
    """NumPy on the CPU."""
    if device != "cpu":
        raise ConfigurationError("NumPy computes on the CPU")
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return HostLibrary("cpu", {"numpy": np.__version__, "BLAS": f"{blas.get('name', '')} {blas.get('version', '')}"})
