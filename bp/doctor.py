"""What this machine has for bp: Python, NumPy, native kernels, and what a GPU needs."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK = "ok"
MISSING = "missing"
NOTE = "note"
UNUSED = "this version of bp does not use it yet"

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class Finding:
    """One line: `what` was looked at, its `state` (ok, missing, note), what was `found`, and the `remedy`, if any."""

    what: str
    state: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class GPU:
    """A GPU as the driver names it. capability: (major, minor); memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


def examine() -> list[Finding]:
    """All findings, in the order of the house: Python upwards on the CPU, then what a GPU needs."""
    cuda, gpus, driver = find_driver()
    wheels = cupy_wheels()
    return [
        python(),
        numpy_and_blas(),
        native(),
        threads(),
        *extras(),
        driver,
        *graphics(gpus, driver),
        cupy(wheels, cuda),
        nvrtc(cuda),
        device(gpus),
    ]


def python() -> Finding:
    """The interpreter."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", OK, found)


def numpy_and_blas() -> Finding:
    """NumPy and the library behind its matrix products."""
    import numpy

    dependencies = numpy.show_config(mode="dicts").get("Build Dependencies", {})
    blas = dependencies.get("blas", {})
    found = f"{numpy.__version__}, BLAS {blas.get('name', 'not known')} {blas.get('version', '')}".strip()
    if not blas.get("found", True) or "lapack_lite" in str(blas.get("name", "")):
        return Finding("NumPy", NOTE, f"{found}: slow matrix products", "pip install --force-reinstall numpy")
    return Finding("NumPy", OK, found)


def native() -> Finding:
    """The C++ kernels of the CPU device."""
    from bp.cpu.native import kernels

    if kernels is not None:
        openmp = "with OpenMP" if getattr(kernels, "openmp", False) else "without OpenMP: one thread"
        return Finding("native kernels", OK, f"built, {openmp}")
    if os.environ.get("BP_NATIVE") == "0":
        return Finding("native kernels", NOTE, "switched off by BP_NATIVE=0; NumPy computes the same, more slowly")
    return Finding(
        "native kernels",
        MISSING,
        "not built; NumPy computes the same, more slowly",
        "install a C++ compiler (for example: apt install g++), then install bp again as you did",
    )


def threads() -> Finding:
    """How many cores the process may use, and what limits them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [
        f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ
    ]
    return Finding("threads", OK, f"{count} cores" + (f", limited by {', '.join(limits)}" if limits else ""))


def extras() -> Iterator[Finding]:
    """Optional packages."""
    for package, purpose in (("matplotlib", "curves.png"), ("tensorboard", "event files")):
        version = _version(package)
        if version is None:
            yield Finding(package, MISSING, f"optional, for {purpose}", f"pip install {package}")
        else:
            yield Finding(package, OK, version)


def find_driver() -> tuple[int | None, list[GPU], Finding]:
    """The CUDA version that the NVIDIA driver supports (12 for 12.x; None: no driver), its GPUs, and the finding.

    Asks the driver's own library, so it needs no CUDA package and cannot be misled by one.
    """
    try:
        library: Any = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        remedy = "with an NVIDIA GPU: install its driver, https://www.nvidia.com/drivers (apt install nvidia-driver)"
        return None, [], Finding("NVIDIA driver", MISSING, f"no {DRIVER_LIBRARY}", remedy)
    version = ctypes.c_int()
    status = library.cuInit(0)
    if status == 0:
        status = library.cuDriverGetVersion(ctypes.byref(version))
    if status != 0:
        remedy = "check with nvidia-smi; in a container, start it with --gpus all"
        found = f"{DRIVER_LIBRARY} is there, but it finds no usable GPU (CUDA error {status})"
        return None, [], Finding("NVIDIA driver", MISSING, found, remedy)
    major, minor = version.value // 1000, version.value % 1000 // 10
    return major, list(_gpus(library)), Finding("NVIDIA driver", OK, f"for CUDA up to {major}.{minor}")


def _gpus(library: Any) -> Iterator[GPU]:
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    for ordinal in range(count.value):
        handle, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
        library.cuDeviceGet(ctypes.byref(handle), ordinal)
        library.cuDeviceGetName(name, len(name), handle)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        major, minor = (_attribute(library, attribute, handle) for attribute in (75, 76))  # compute capability
        yield GPU(name.value.decode(), (major, minor), memory.value)


def _attribute(library: Any, attribute: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    return value.value


def graphics(gpus: list[GPU], driver: Finding) -> Iterator[Finding]:
    """The GPUs, a line each."""
    for gpu in gpus:
        major, minor = gpu.capability
        yield Finding("GPU", OK, f"{gpu.name}, compute capability {major}.{minor}, {gpu.memory / 2**30:.0f} GiB")
    if not gpus:
        found = "the driver lists none" if driver.state == OK else "none seen without a driver"
        yield Finding("GPU", MISSING, found)


def cupy_wheels() -> dict[str, str]:
    """Version by name of every installed distribution that brings the module cupy."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name == "cupy" or name.startswith(("cupy-cuda", "cupy-rocm")):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def cupy(wheels: dict[str, str], cuda: int | None) -> Finding:
    """CuPy: there, once, and for the driver's CUDA. `cuda`: the major version that the driver supports."""
    wanted = f"cupy-cuda{13 if cuda is not None and cuda >= 13 else 12}x"
    install = f"pip install {wanted}"
    if not wheels:
        return Finding("CuPy", MISSING, f"not installed; {UNUSED}", install)
    listed = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if len(wheels) > 1:
        remedy = f"pip uninstall -y {' '.join(wheels)} && {install}"
        return Finding("CuPy", MISSING, f"{listed}: they overwrite each other's files", remedy)
    (name,) = wheels
    if cuda == 12 and name == "cupy-cuda13x":
        return Finding("CuPy", MISSING, f"{listed}: the driver is for CUDA 12", f"pip uninstall -y {name} && {install}")
    return Finding("CuPy", OK, listed)


def nvrtc(cuda: int | None) -> Finding:
    """NVRTC, NVIDIA's run-time compiler: in a Python package, or in a CUDA toolkit."""
    for library in _nvrtc_libraries():
        try:
            loaded: Any = ctypes.CDLL(library)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        if loaded.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0:
            return Finding("NVRTC", OK, f"{major.value}.{minor.value} ({library})")
    package = "nvidia-cuda-nvrtc" if cuda is not None and cuda >= 13 else "nvidia-cuda-nvrtc-cu12"
    return Finding("NVRTC", MISSING, f"not found; {UNUSED}", f"pip install {package}")


def _nvrtc_libraries() -> Iterator[str]:
    """Where the library may be: NVIDIA's Python packages first, then what the system's loader finds."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for pattern in ("*/lib/libnvrtc.so.*", "*/bin/nvrtc64_*.dll", "*/bin/*/nvrtc64_*.dll"):
            yield from (str(path) for path in sorted(Path(folder).glob(pattern)) if "builtins" not in path.name)
    if sys.platform == "win32":
        yield from ("nvrtc64_130_0.dll", "nvrtc64_120_0.dll")
    else:
        yield from ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12")


def device(gpus: list[GPU]) -> Finding:
    """What device="auto" takes."""
    reason = "this version of bp has no CUDA kernels yet" if gpus else "the only device of this version of bp"
    return Finding('device "auto"', OK, f"cpu: {reason}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
