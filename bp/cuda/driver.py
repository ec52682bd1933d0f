"""What the NVIDIA driver says: its CUDA version and its GPUs, asked of its own library, with no CUDA package."""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class GPU:
    """A GPU as the driver names it. capability: (major, minor); memory in bytes; bus: its place on the PCI bus, by
    which nvidia-smi and NVML find it too, whatever the order in which CUDA counts."""

    name: str
    capability: tuple[int, int]
    memory: int
    bus: str


@dataclass(frozen=True)
class Driver:
    """version: (major, minor) of the newest CUDA it supports, None where it cannot be used, and then `problem` says why
    and `remedy` what to do; gpus: those it lists."""

    version: tuple[int, int] | None
    gpus: tuple[GPU, ...] = ()
    problem: str = ""
    remedy: str = ""


def find_driver() -> Driver:
    """Ask the driver; where there is none, or it finds no GPU, say so."""
    try:
        library: Any = ctypes.CDLL(LIBRARY)
    except OSError:
        remedy = "with an NVIDIA GPU: install its driver, https://www.nvidia.com/drivers (apt install nvidia-driver)"
        return Driver(None, (), f"no {LIBRARY}", remedy)
    version = ctypes.c_int()
    status = library.cuInit(0)
    if status == 0:
        status = library.cuDriverGetVersion(ctypes.byref(version))
    if status != 0:
        problem = f"{LIBRARY} is there, but it finds no usable GPU (CUDA error {status})"
        return Driver(None, (), problem, "check with nvidia-smi; in a container, start it with --gpus all")
    return Driver((version.value // 1000, version.value % 1000 // 10), tuple(_gpus(library)))


def _gpus(library: Any) -> list[GPU]:
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for ordinal in range(count.value):
        handle, memory = ctypes.c_int(), ctypes.c_size_t()
        name, bus = ctypes.create_string_buffer(128), ctypes.create_string_buffer(32)
        library.cuDeviceGet(ctypes.byref(handle), ordinal)
        library.cuDeviceGetName(name, len(name), handle)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        library.cuDeviceGetPCIBusId(bus, len(bus), handle)
        major, minor = (_attribute(library, which, handle) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
        found.append(GPU(name.value.decode(), (major, minor), memory.value, bus.value.decode()))
    return found


def _attribute(library: Any, attribute: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    return value.value
