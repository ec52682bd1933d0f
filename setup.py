"""Builds the optional C++ extension of the CPU device from csrc/native, and says where the packages lie.

Without a C++ compiler the installation goes through and bp runs on NumPy alone (`bp doctor` says which it is).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

# The target of every distribution's wheel is a plain x86-64 or arm64; faster instruction sets are chosen at run time.
COMPILE = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"] if sys.platform != "win32" else ["/O2"]


def openmp_flags() -> list[str]:
    """The flag that turns OpenMP on, or none where the compiler has no OpenMP (kernels then run on one thread)."""
    flag = "/openmp" if sys.platform == "win32" else "-fopenmp"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        try:
            subprocess.run(
                ["c++", flag, str(source), "-o", str(Path(folder) / "probe")], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            return []
    return [flag]


openmp = openmp_flags()
native = Pybind11Extension(
    "bp.cpu._native",
    sorted(str(path) for path in Path("csrc/native").glob("*.cpp")),
    include_dirs=["csrc/native"],
    depends=sorted(str(path) for path in Path("csrc/native").glob("*.hpp")),
    cxx_std=17,
    extra_compile_args=COMPILE + openmp,
    extra_link_args=openmp,
)
native.optional = True  # a failed compilation is reported and skipped

# What is compiled at run time travels as data: the CUDA kernels, and the emulator that runs them on a CPU. What
# `bp bench` runs travels as a package.
DATA = {"bp.kernels": "kernels", "bp.kernels.include": "kernels/include", "bp.emulator_source": "csrc/emulator"}
ELSEWHERE = DATA | {"bp.benchmarks": "benchmarks"}

ParallelCompile("BP_BUILD_JOBS", default=0).install()
setup(
    packages=[*find_packages(include=["bp", "bp.*"]), *ELSEWHERE],
    package_dir=ELSEWHERE,
    ext_modules=[native],
    cmdclass={"build_ext": build_ext},
)
