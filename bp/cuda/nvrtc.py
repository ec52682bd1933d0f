"""NVRTC, NVIDIA's run-time compiler: a kernel file becomes machine code (a cubin) for any GPU, on any machine.

It is reached through ctypes, so one Python package (nvidia-cuda-nvrtc) is all that compiling takes: no CuPy, no CUDA
toolkit, no driver, no GPU. What was compiled is kept in the disk cache.
"""

import ctypes
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bp.cuda.driver import find_driver
from bp.cuda.files import cache_folder, digest, replaced
from bp.cuda.signature import with_includes
from bp.errors import CompilationError, ConfigurationError

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")

# No --use_fast_math: it changes the results of code that did not ask for it. A kernel that can afford an approximation
# calls it by name. ptxas' -v puts registers, stack and spills of each kernel into the log; -lineinfo lets profilers and
# compute-sanitizer name source lines, at no cost in speed; without -no-source-include a header of the current folder
# would be taken where one of the kernels' is missing.
OPTIONS = ("-std=c++17", "-default-device", "-lineinfo", "-no-source-include", "--ptxas-options=-v")


@dataclass(frozen=True)
class Library:
    """A loaded NVRTC. name: path or name of the file; version: (major, minor)."""

    functions: Any
    name: str
    version: tuple[int, int]


@dataclass(frozen=True)
class Compiled:
    """Machine code, and what the compiler said."""

    cubin: bytes
    log: str


# The library ----------------------------------------------------------------------------------------------


def find(cuda: int | None = None) -> Library | None:
    """The first NVRTC that loads, or None. cuda: the newest major version of CUDA that is wanted (None: any).

    A driver for CUDA 12 cannot load what NVRTC 13 compiled, and Python packages often bring both.
    """
    for name in libraries():
        try:
            functions = ctypes.CDLL(name)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        known = functions.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
        if known and (cuda is None or major.value <= cuda):
            return Library(functions, name, (major.value, minor.value))
    return None


def libraries() -> Iterator[str]:
    """Where NVRTC may be: NVIDIA's Python packages first, then a CUDA toolkit, then what the system's loader finds."""
    patterns = ("*/lib/libnvrtc.so.*", "*/bin/nvrtc64_*.dll", "*/bin/*/nvrtc64_*.dll")
    for folder in nvidia_packages():
        yield from _matches(folder, patterns)
    for toolkit in toolkits():
        yield from _matches(toolkit, ("lib64/libnvrtc.so.*", "bin/nvrtc64_*.dll"))
    if sys.platform == "win32":
        yield from ("nvrtc64_130_0.dll", "nvrtc64_120_0.dll")
    else:
        yield from ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12")


def nvidia_packages() -> Iterator[Path]:
    """The folders `nvidia` into which NVIDIA's Python packages install."""
    for entry in sys.path:
        folder = Path(entry) / "nvidia"
        if folder.is_dir():
            yield folder


def toolkits() -> Iterator[Path]:
    """The folders of CUDA toolkits that the environment names."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])


def _matches(folder: Path, patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from (str(path) for path in sorted(folder.glob(pattern)) if "builtins" not in path.name)


@functools.cache
def library() -> Library:
    """The NVRTC that everything here uses; raises ConfigurationError, with what to install, where there is none."""
    driver = find_driver().version
    cuda = None if driver is None else driver[0]
    found = find(cuda)
    if found is None:
        package = "nvidia-cuda-nvrtc" if cuda is not None and cuda >= 13 else "nvidia-cuda-nvrtc-cu12"
        raise ConfigurationError(f"compiling CUDA kernels takes NVRTC, which was not found: pip install {package}")
    return found


def version() -> tuple[int, int]:
    """(major, minor) of NVRTC; raises ConfigurationError where there is none."""
    return library().version


@functools.cache
def capabilities() -> tuple[int, ...]:
    """The compute capabilities, as 75 or 90, that this NVRTC compiles for."""
    functions, count = library().functions, ctypes.c_int()
    _check(functions.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(functions.nvrtcGetSupportedArchs(numbers))
    return tuple(numbers)


def capability(architecture: str) -> int:
    """The compute capability of an architecture: 90 of "sm_90a". Raises ConfigurationError on what is none."""
    match = re.fullmatch(r"sm_(\d+)[af]?", architecture)
    if match is None:
        raise ConfigurationError(f"expected an architecture such as sm_80 or sm_90a, got '{architecture}'")
    return int(match[1])


# Compiling ------------------------------------------------------------------------------------------------


def compile(source: str, name: str, options: Sequence[str], headers: Mapping[str, str]) -> Compiled:
    """Compile the text of a file. name: as messages call it; headers: text by the name under which it is included.

    NVRTC lets go of Python's lock while it compiles, so threads compile side by side.
    Raises CompilationError with file, line and NVRTC's log.
    """
    functions, program = library().functions, ctypes.c_void_p()
    _check(
        functions.nvrtcCreateProgram(
            ctypes.byref(program),
            source.encode(),
            name.encode(),
            len(headers),
            _strings(headers.values()),
            _strings(headers.keys()),
        )
    )
    try:
        status = functions.nvrtcCompileProgram(program, len(options), _strings(options))
        log = _output(functions.nvrtcGetProgramLogSize, functions.nvrtcGetProgramLog, program)
        text = log.rstrip(b"\0").decode(errors="replace")
        if status != 0:
            raise CompilationError(f"{_first_error(text, name, status)}\n{text}")
        return Compiled(_output(functions.nvrtcGetCUBINSize, functions.nvrtcGetCUBIN, program), text)
    finally:
        functions.nvrtcDestroyProgram(ctypes.byref(program))


def _strings(values: Sequence[str] | Any) -> Any:
    encoded = [value.encode() for value in values]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _output(get_size: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(get_size(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    if status != 0:
        raise CompilationError(f"NVRTC {version_text()} failed: {_name_of(status)}")


def _name_of(status: int) -> str:
    function = library().functions.nvrtcGetErrorString
    function.restype = ctypes.c_char_p
    return str(function(status).decode())


def version_text() -> str:
    """The version of NVRTC, as "12.9"."""
    return ".".join(map(str, version()))


_SHARED = re.compile(r"entry function '(\w+)'(?:(?!entry function).)*?(\d+) bytes smem", re.DOTALL)
STATIC_SHARED_LIMIT = 48 * 1024


def _first_error(log: str, name: str, status: int) -> str:
    """The first error of a log, as one line "file:line: message"."""
    match = re.search(r"^(\S+)\((\d+)\): (?:catastrophic )?error: (.*)$", log, re.MULTILINE)
    if match is not None:
        return f"{match[1]}:{match[2]}: {match[3]}"
    for kernel, shared in _SHARED.findall(log):
        if int(shared) > STATIC_SHARED_LIMIT:  # refused without a message
            return (
                f"{name}: {kernel} declares {int(shared):,} bytes of shared memory; {STATIC_SHARED_LIMIT:,} is the "
                "most on every GPU, and what is beyond has to be dynamic"
            )
    match = re.search(r"^.*\b(?:error|fatal)\b.*$", log, re.MULTILINE)
    return f"{name}: {match[0].strip() if match is not None else _name_of(status)}"


# Units: a kernel file and a set of macros -------------------------------------------------------------------


def unit_key(path: Path, defines: Mapping[str, str], architecture: str) -> str:
    """The key of a compilation in the cache: over sources, headers, macros, options, architecture and compiler."""
    texts = with_includes(path)
    return digest(*texts, *texts.values(), _macros(defines), OPTIONS, architecture, version_text())


def compile_file(path: Path, defines: Mapping[str, str], architecture: str) -> Compiled:
    """Compile a kernel file for one set of macros, past the cache; raises as `compile_unit` does."""
    if capability(architecture) not in capabilities():
        raise ConfigurationError(
            f"NVRTC {version_text()} ({library().name}) cannot compile for {architecture}, only for compute "
            f"capabilities {', '.join(map(str, capabilities()))}: install another nvidia-cuda-nvrtc"
        )
    texts = with_includes(path)
    name = f"{path.parent.name}/{path.name}"
    # Macros stand in the source, not among the options: NVRTC reads a header of its own first, and with -DT=float its
    # `template <typename T>` would become `template <typename float>`.
    source = f'{_macros(defines)}#line 1 "{name}"\n{texts[path.name]}'
    headers = {file.removeprefix("include/"): text for file, text in texts.items() if file != path.name}
    try:
        return compile(source, name, [*OPTIONS, f"-arch={architecture}"], headers)
    except CompilationError as error:
        first, _, log = str(error).partition("\n")
        variant = ", ".join((*defines.values(), architecture))
        raise CompilationError(f"{first}\nNVRTC {version_text()} said of {variant}:\n{log}") from None


def compile_unit(path: Path, defines: Mapping[str, str], architecture: str) -> Path:
    """The machine code of a kernel file for one set of macros: a cubin in the disk cache, compiled where it is missing.

    A file of the cache that is not what was compiled (cut short by a full disk, say) is compiled again.
    Raises CompilationError with file, line and the compiler's log, and ConfigurationError where NVRTC is missing or too
    old for the architecture. `read_log(cubin)` is what the compiler said.
    """
    cubin = cache_folder() / f"cuda/{unit_key(path, defines, architecture)}.cubin"
    if _is_whole(cubin):
        return cubin
    compiled = compile_file(path, defines, architecture)
    record = json.dumps({"sha256": hashlib.sha256(compiled.cubin).hexdigest(), "log": compiled.log})
    replaced(cubin.with_suffix(".json"), lambda file: file.write_text(record))
    return replaced(cubin, lambda file: file.write_bytes(compiled.cubin))


def read_log(cubin: Path) -> str:
    """What the compiler said as it made a cubin of the cache."""
    return str(json.loads(cubin.with_suffix(".json").read_text())["log"])


def _is_whole(cubin: Path) -> bool:
    try:
        record = json.loads(cubin.with_suffix(".json").read_text())
        return bool(record["sha256"] == hashlib.sha256(cubin.read_bytes()).hexdigest() and "log" in record)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _macros(defines: Mapping[str, str]) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in defines.items())
