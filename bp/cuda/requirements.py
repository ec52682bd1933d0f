"""What the device "cuda" needs of a machine: a driver with a GPU, one CuPy that fits it, a compiler for the kernels.

Looked at one by one, cheaply and without importing CuPy, so that a machine that lacks one is told which, and how to get
it, rather than shown a traceback.
"""

from dataclasses import dataclass

from bp.cuda import nvrtc
from bp.cuda.driver import GPU, Driver, find_driver

LEAST_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class Problem:
    """What is missing or wrong, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


def of_driver(driver: Driver) -> Problem | None:
    """No driver, or none that finds a GPU."""
    if driver.version is None:
        return Problem(driver.problem, driver.remedy)
    return None if driver.gpus else Problem("the driver lists no GPU", "check with nvidia-smi")


def of_gpu(gpu: GPU) -> Problem | None:
    """A GPU that the kernels are not compiled for."""
    if gpu.capability >= LEAST_CAPABILITY:
        return None
    found, least = ".".join(map(str, gpu.capability)), ".".join(map(str, LEAST_CAPABILITY))
    return Problem(f"{gpu.name} has compute capability {found}, the kernels need {least}", "use device='cpu'")


def cupy_wheels() -> dict[str, str]:
    """Version by name of every installed distribution that brings the module cupy."""
    from importlib import metadata  # 10 ms that a machine without a driver does without

    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name == "cupy" or name.startswith(("cupy-cuda", "cupy-rocm")):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def of_cupy(wheels: dict[str, str], cuda: int | None) -> Problem | None:
    """No CuPy, several, or one for a newer CUDA than the driver's. cuda: the major version that the driver supports."""
    extra = f"cuda{13 if cuda is not None and cuda >= 13 else 12}"
    install = f"pip install cupy-{extra}x"
    if not wheels:
        return Problem("CuPy is not installed", install)
    if len(wheels) > 1:
        names = " ".join(wheels)
        return Problem(f"{', '.join(wheels)} overwrite each other's files", f"pip uninstall -y {names} && {install}")
    (name,) = wheels
    if cuda == 12 and name == "cupy-cuda13x":
        return Problem(f"{name} is for CUDA 13, the driver for CUDA 12", f"pip uninstall -y {name} && {install}")
    return None


def of_nvrtc(cuda: int | None) -> Problem | None:
    """No run-time compiler that the driver understands."""
    if nvrtc.find(cuda) is not None:
        return None
    package = "nvidia-cuda-nvrtc" if cuda is not None and cuda >= 13 else "nvidia-cuda-nvrtc-cu12"
    return Problem("NVRTC, which compiles the kernels, was not found", f"pip install {package}")


def problem() -> Problem | None:
    """The first thing that keeps this machine from using the device "cuda", so far as it shows without CuPy itself."""
    driver = find_driver()
    cuda = None if driver.version is None else driver.version[0]
    return of_driver(driver) or of_gpu(driver.gpus[0]) or of_cupy(cupy_wheels(), cuda) or of_nvrtc(cuda)
