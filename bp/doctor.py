"""What this machine has for bp: Python, NumPy, native kernels, and what a GPU needs."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

from bp.cuda import requirements
from bp.cuda.driver import Driver, find_driver
from bp.cuda.emulator.unit import compiler
from bp.cuda.nvrtc import find as find_nvrtc
from bp.errors import ConfigurationError
from bp.ops.device import find_device

OK = "ok"
MISSING = "missing"
NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One line: `what` was looked at, its `state` (ok, missing, note), what was `found`, and the `remedy`, if any."""

    what: str
    state: str
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings, in the order of the house: Python upwards on the CPU, then what a GPU needs."""
    found = find_driver()
    cuda = None if found.version is None else found.version[0]
    return [
        python(),
        numpy_and_blas(),
        native(),
        threads(),
        *extras(),
        emulator(),
        driver(found),
        *graphics(found),
        cupy(requirements.cupy_wheels(), cuda),
        nvrtc(cuda),
        device(),
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


def driver(found: Driver) -> Finding:
    """NVIDIA's driver."""
    if found.version is None:
        return Finding("NVIDIA driver", MISSING, found.problem, found.remedy)
    return Finding("NVIDIA driver", OK, f"for CUDA up to {found.version[0]}.{found.version[1]}")


def graphics(found: Driver) -> Iterator[Finding]:
    """The GPUs, a line each."""
    for gpu in found.gpus:
        major, minor = gpu.capability
        problem = requirements.of_gpu(gpu)
        if problem is not None:
            yield Finding("GPU", MISSING, problem.what, problem.remedy)
            continue
        yield Finding("GPU", OK, f"{gpu.name}, compute capability {major}.{minor}, {gpu.memory / 2**30:.0f} GiB")
    if not found.gpus:
        text = "none seen without a driver" if found.version is None else "the driver lists none"
        yield Finding("GPU", MISSING, text)


def cupy(wheels: dict[str, str], cuda: int | None) -> Finding:
    """CuPy: there, once, and for the driver's CUDA. `cuda`: the major version that the driver supports."""
    problem = requirements.of_cupy(wheels, cuda)
    if problem is not None:
        return Finding("CuPy", MISSING, problem.what, problem.remedy)
    return Finding("CuPy", OK, ", ".join(f"{name} {version}" for name, version in wheels.items()))


def nvrtc(cuda: int | None) -> Finding:
    """NVRTC, NVIDIA's run-time compiler: in a Python package, or in a CUDA toolkit."""
    problem = requirements.of_nvrtc(cuda)
    library = find_nvrtc(cuda)
    if problem is not None or library is None:
        return Finding("NVRTC", MISSING, "not found", "" if problem is None else problem.remedy)
    return Finding("NVRTC", OK, f"{'.'.join(map(str, library.version))} ({library.name})")


def emulator() -> Finding:
    """What the device "emulator" needs: a C++ compiler, at run time."""
    try:
        return Finding("emulator", OK, f"kernels run on the CPU, compiled by {compiler()[0]}")
    except ConfigurationError as error:
        return Finding("emulator", MISSING, "no C++ compiler", " ".join(str(error).split()))


def device() -> Finding:
    """What device="auto" takes."""
    return Finding('device "auto"', OK, find_device().name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
