"""Launches on the emulator's engine, and its memory: the C ABI of csrc/emulator/launch.cpp and memory.cpp in Python."""

import ctypes
import functools
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bp.cuda.emulator.unit import LAUNCH_TABLE, load_engine
from bp.errors import BPError, ConfigurationError

_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_THREADS = 1024
_MAX_SHARED = 227 * 1024  # of a block on sm_90, the most there is
TIMEOUT = 300.0


class KernelFault(BPError, RuntimeError):
    """A kernel did what a GPU would not forgive, or what would make its result depend on timing.

    kernel: its name. block, thread: (x, y, z), None where no single one is meant. address: of the access, None where it
    is about none. line: "file:line", None where it is not known. reason: what is wrong.
    """

    def __init__(
        self,
        kernel: str,
        reason: str,
        *,
        block: tuple[int, int, int] | None = None,
        thread: tuple[int, int, int] | None = None,
        address: int | None = None,
        line: str | None = None,
    ) -> None:
        self.kernel, self.reason, self.block, self.thread = kernel, reason, block, thread
        self.address, self.line = address, line
        parts = [f"kernel {kernel}"]
        if block is not None:
            parts.append(f"block {','.join(map(str, block))}")
        if thread is not None:
            parts.append(f"thread {','.join(map(str, thread))}")
        if line is not None:
            parts.append(line)
        if address is not None:
            parts.append(f"address 0x{address:x}")
        super().__init__(f"{', '.join(parts)}: {reason}")


class _Request(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint * 3),
        ("shared", ctypes.c_ulonglong),
        ("seed", ctypes.c_ulonglong),
        ("first_block", ctypes.c_ulonglong),
        ("block_count", ctypes.c_ulonglong),
        ("timeout", ctypes.c_double),
    ]


class _Place(ctypes.Structure):
    _fields_ = [("module", ctypes.c_char * 512), ("offset", ctypes.c_ulonglong)]


class _Report(ctypes.Structure):
    _fields_ = [
        ("reason", ctypes.c_char * 1536),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
        ("in_thread", ctypes.c_int),
        ("address", ctypes.c_ulonglong),
        ("has_address", ctypes.c_int),
        ("file", ctypes.c_char * 512),
        ("line", ctypes.c_int),
        ("has_place", ctypes.c_int),
        ("places", _Place * 2),
    ]


class _Damage(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_ulonglong), ("bytes", ctypes.c_ulonglong), ("address", ctypes.c_ulonglong)]


@functools.cache
def _engine() -> ctypes.CDLL:
    library = load_engine()
    library.bp_launch.argtypes = [ctypes.POINTER(_Request), ctypes.POINTER(_Report)]
    library.bp_launch.restype = ctypes.c_int
    library.bp_allocate.argtypes = [ctypes.c_ulonglong, ctypes.c_int]
    library.bp_allocate.restype = ctypes.c_ulonglong
    library.bp_free.argtypes = [ctypes.c_ulonglong]
    library.bp_free.restype = _Damage
    library.bp_check_canaries.argtypes = []
    library.bp_check_canaries.restype = _Damage
    library.bp_check_array.argtypes = [ctypes.c_ulonglong]
    library.bp_check_array.restype = _Damage
    return library


def launch(
    function: int,
    name: str,
    values: Sequence[Any],
    grid: tuple[int, int, int],
    threads: int | tuple[int, int, int],
    shared: int = 0,
    *,
    seed: int = 0,
    first_block: int = 0,
    block_count: int | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Run a kernel to its end.

    function: `Unit.function(name)`. values: one ctypes object for each parameter. threads: of a block. shared: bytes of
    dynamic shared memory. seed: of the order in which blocks and threads run; 0 takes them by number. first_block,
    block_count: run only these blocks of the grid, numbered with x fastest. timeout: seconds of processor time after
    which a launch counts as one that never ends; 0: never.
    Raises KernelFault where the kernel goes wrong (arrays then hold what was written before), ConfigurationError for a
    launch that no GPU would take.
    """
    size = (threads, 1, 1) if isinstance(threads, int) else threads
    if min(size) < 1 or math.prod(size) > _MAX_THREADS:
        raise ConfigurationError(f"kernel {name} expected 1 to {_MAX_THREADS} threads a block, got {size}")
    if any(not 1 <= g <= most for g, most in zip(grid, _MAX_GRID, strict=True)):
        raise ConfigurationError(f"kernel {name} expected a grid of 1 to {_MAX_GRID}, got {grid}")
    if not 0 <= shared <= _MAX_SHARED:
        raise ConfigurationError(f"kernel {name} expected at most {_MAX_SHARED} bytes of shared memory, got {shared}")
    blocks = math.prod(grid)
    count = blocks - first_block if block_count is None else block_count
    if first_block < 0 or count < 0 or first_block + count > blocks:
        raise ConfigurationError(f"kernel {name} has {blocks} blocks, asked for {count} from {first_block} on")
    arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    request = _Request(function, ctypes.addressof(arguments), grid, size, shared, seed, first_block, count, timeout)
    engine = _engine()
    report = _Report()
    if engine.bp_launch(request, report):
        raise _fault(name, report)
    for value in values:
        if isinstance(value, ctypes.c_void_p) and value.value:
            _raise_damage(engine.bp_check_array(value.value), name)


def _fault(name: str, report: _Report) -> KernelFault:
    line = _line(report.places[0]) if report.has_place else None
    if report.file:
        line = f"{_short(report.file.decode())}:{report.line}"
    reason = report.reason.decode()
    for index in range(2):
        if f"{{{index}}}" in reason:
            reason = reason.replace(f"{{{index}}}", _line(report.places[index]) or "an unknown line")
    return KernelFault(
        name,
        reason,
        block=tuple(report.block),
        thread=tuple(report.thread) if report.in_thread else None,
        address=report.address if report.has_address else None,
        line=line,
    )


def _short(path: str) -> str:
    """The last two parts of a path: enough to find the file."""
    return "/".join(Path(path).parts[-2:])


def _line(place: _Place) -> str | None:
    """Where in the source a machine address is: the line of the kernel's file, and that of a header within it.

    Of several lines of the kernel's file that led there by inlining, the innermost.
    """
    module = place.module.decode()
    if not module:
        return None
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    unknown = f"{Path(module).name}+0x{place.offset:x}"
    if tool is None:
        return unknown
    done = subprocess.run([tool, "-i", "-e", module, hex(place.offset)], capture_output=True, text=True)
    frames = (line.split(" (")[0] for line in done.stdout.split("\n") if line and not line.startswith("?"))
    lines = [_short(frame) for frame in frames if LAUNCH_TABLE not in frame]
    if not lines:
        return unknown
    kernel = next((line for line in lines if line.split(":")[0].endswith(".cu")), lines[-1])
    return kernel if kernel == lines[0] else f"{kernel} (in {lines[0]})"


_found_at_free: list[_Damage] = []  # a destructor cannot raise; check_canaries does


class Allocation:
    """Memory of the emulator; it is freed with the object. pointer: its address. nbytes: its size."""

    __slots__ = ("nbytes", "pointer")

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.pointer, self.nbytes = pointer, nbytes

    # The defaults keep what it needs alive while the interpreter shuts down.
    def __del__(self, engine: Any = _engine, found: list[_Damage] = _found_at_free) -> None:
        damage = engine().bp_free(self.pointer)
        if damage.pointer:
            found.append(damage)


def allocate(nbytes: int, *, zeros: bool = False, sparse: bool = False) -> Allocation:
    """Memory that starts at a multiple of 16 and ends, up to that rounding, at a page that cannot be touched.

    It holds 0xff, which is NaN in every floating-point type, or zeros. sparse: zeros that take memory only where they
    are written, for arrays far larger than the machine's memory. Raises MemoryError where there is no more.
    """
    pointer = _engine().bp_allocate(nbytes, 2 if sparse else int(zeros))
    if not pointer:
        raise MemoryError(f"the emulator cannot reserve {nbytes} bytes")
    return Allocation(pointer, nbytes)


def check_canaries() -> None:
    """Raise KernelFault where the bytes around an array have been written: of all that exist or were freed since.

    Each damage is reported once. A launch looks at its own arguments without being asked.
    """
    while _found_at_free:
        _raise_damage(_found_at_free.pop(), "unknown")
    _raise_damage(_engine().bp_check_canaries(), "unknown")


def _raise_damage(damage: _Damage, kernel: str) -> None:
    if damage.pointer and not damage.address:
        raise KernelFault(kernel, f"an argument is an array of {damage.bytes} bytes that was released before")
    if damage.pointer:
        past = damage.address - damage.pointer
        where = f"byte {past} of" if past >= 0 else f"{-past} bytes before"
        raise KernelFault(
            kernel,
            f"out-of-bounds write: {where} an array of {damage.bytes} bytes at 0x{damage.pointer:x} was overwritten",
            address=damage.address,
        )
