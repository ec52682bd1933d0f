"""What a compiled kernel takes of a multiprocessor, and how many of its threads therefore run at once."""

import re
from dataclasses import dataclass

from bp.cuda.nvrtc import capability
from bp.errors import ConfigurationError

WARP = 32


@dataclass(frozen=True)
class Resources:
    """What one kernel takes. registers: of a thread; shared: static shared memory of a block, in bytes.

    stack, spill_stores, spill_loads: bytes of a thread that lie in slow local memory.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor has. shared, shared_per_block: bytes, with the opt-in to more than 48 KB."""

    blocks: int
    threads: int
    shared: int
    shared_per_block: int
    registers: int = 65536
    threads_per_block: int = 1024
    shared_reserved_per_block: int = 1024  # by the driver
    shared_unit: int = 128
    register_unit: int = 256  # registers are given to a warp in such portions
    schedulers: int = 4  # warps, and so their registers, are spread over these


_KB = 1024
# CUDA C++ Programming Guide, "Technical specifications per compute capability"; the portions in which registers and
# shared memory are given out are those of cuda_occupancy.h of the CUDA toolkit.
LIMITS = {
    75: Limits(16, 1024, 64 * _KB, 64 * _KB, shared_reserved_per_block=0, shared_unit=256),
    80: Limits(32, 2048, 164 * _KB, 163 * _KB),
    86: Limits(16, 1536, 100 * _KB, 99 * _KB),
    89: Limits(24, 1536, 100 * _KB, 99 * _KB),
    90: Limits(32, 2048, 228 * _KB, 227 * _KB),
    100: Limits(32, 2048, 228 * _KB, 227 * _KB),
    120: Limits(24, 1536, 100 * _KB, 99 * _KB),
}


def limits(architecture: str) -> Limits:
    """The limits of an architecture such as "sm_90a"; raises ConfigurationError for one that is not in the table."""
    found = LIMITS.get(capability(architecture))
    if found is None:
        known = ", ".join(f"sm_{number}" for number in LIMITS)
        raise ConfigurationError(f"the limits of {architecture} are not known here, only those of {known}")
    return found


def occupancy(resources: Resources, threads: int, architecture: str, dynamic_shared: int = 0) -> float:
    """The share, 0 to 1, of a multiprocessor's threads that can run at once in blocks of so many threads.

    dynamic_shared: bytes a block. 0: not even one block fits.
    """
    limit = limits(architecture)
    warps = -(-threads // WARP)
    registers = _round_up(max(resources.registers, 1) * WARP, limit.register_unit)
    warps_by_registers = limit.registers // limit.schedulers // registers * limit.schedulers
    shared = _round_up(resources.shared + dynamic_shared + limit.shared_reserved_per_block, limit.shared_unit)
    if threads > limit.threads_per_block or resources.shared + dynamic_shared > limit.shared_per_block:
        return 0.0
    blocks = min(
        limit.blocks,
        limit.threads // WARP // warps,
        warps_by_registers // warps,
        limit.shared // shared if shared else limit.blocks,
    )
    return blocks * warps * WARP / limit.threads


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


# ptxas says, for each kernel:
#   ptxas info    : Compiling entry function 'relu_forward' for 'sm_80'
#   ptxas info    : Function properties for relu_forward
#   ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
#   ptxas info    : Used 30 registers, used 1 barriers, 128 bytes smem, 376 bytes cmem[0]
# with the properties of functions that were not inlined in between, which count for the kernel.
_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_STACK = re.compile(r"(\d+) bytes cumulative stack size")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse(log: str) -> dict[str, Resources]:
    """The resources of each kernel, by name, from the log of a compilation with `--ptxas-options=-v`.

    Raises ConfigurationError where a kernel's part lacks these figures: a compiler that words them otherwise must not
    pass for one without spills.
    """
    found = {}
    pieces = _KERNEL.split(log)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        frames = [tuple(map(int, frame)) for frame in _FRAME.findall(text)]
        registers = _REGISTERS.search(text)
        if registers is None or not frames:
            raise ConfigurationError(f"the compiler's log does not say what {name} takes: {' '.join(text.split())}")
        stacks = [frame[0] for frame in frames] + [int(size) for size in _STACK.findall(text)]
        shared = _SHARED.search(text)
        found[name] = Resources(
            registers=int(registers[1]),
            stack=max(stacks),
            spill_stores=sum(frame[1] for frame in frames),
            spill_loads=sum(frame[2] for frame in frames),
            shared=int(shared[1]) if shared else 0,
        )
    return found
