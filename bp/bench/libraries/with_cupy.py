"""CuPy's own kernels, and cuBLAS through it."""

import importlib.metadata

from bp.bench.libraries.ours import OursOnDevice
from bp.errors import ConfigurationError


def open_on(device: str) -> "WithCupy":
    """CuPy on a GPU; raises ConfigurationError where there is none."""
    if device != "cuda":
        raise ConfigurationError("CuPy computes on a GPU")
    return WithCupy(device)


def versions() -> dict[str, str]:
    """Of CuPy and of the CUDA that it found."""
    import cupy

    runtime = cupy.cuda.runtime
    found = {"CUDA driver": str(runtime.driverGetVersion()), "CUDA runtime": str(runtime.runtimeGetVersion())}
    for wheel in ("cupy-cuda12x", "cupy-cuda13x"):
        try:
            found["cupy"] = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class WithCupy(OursOnDevice):
    """Its arrays are those of bp on a GPU, and so is its clock.

    CuPy's `matmul` reads CUPY_TF32 once and then keeps to it: benchmarks call cuBLAS with a type to compute in
    (`benchmarks/cublas.py`), by the precision that bp's device runs in.
    """
