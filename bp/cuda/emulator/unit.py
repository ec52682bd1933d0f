"""Compiles kernel files and the emulator's engine with the host's C++ compiler, and loads them.

A unit is one kernel file with one set of macros. It becomes a shared library in the cache; its key covers the source,
every header it may include, the macros and the compiler, so nothing stale is ever loaded.
"""

import ctypes
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bp.cuda.files import cached, digest, emulator_folder, kernel_folder
from bp.cuda.signature import Signature, signatures, with_includes
from bp.errors import ConfigurationError

# Contraction to fused multiply-adds differs between processors: without it every machine computes the same. Kernels
# read an array under other types (16 bytes at a time), which CUDA allows and strict aliasing does not.
_COMMON = ("-std=c++17", "-O2", "-g1", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-fno-strict-aliasing")
# A vector at a misaligned address is a trap here too, though the processor would split the access. It costs nothing.
_UNIT = (
    *("-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-DBP_EMULATOR"),
    *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"),
)
# An index beyond an array of known length is a trap: the hooks cannot tell what lies behind it from a neighbour.
_DETECTOR = ("-fsanitize=thread,bounds", "-DBP_DETECTOR")
# The engine's symbols are found when the unit is loaded; Linux allows that without a word.
_LINK = ("-shared", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)

LAUNCH_TABLE = "launch-table"  # the file that the compiler believes the code after a kernel file to be in

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_KERNEL_START = re.compile(r'extern\s+"C"\s+__global__')


class Unit:
    """A compiled and loaded unit."""

    def __init__(self, path: Path, library: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(library))

    def function(self, name: str) -> int:
        """The address that `engine.launch` takes for the kernel `name`; ConfigurationError where there is none."""
        try:
            return ctypes.addressof(ctypes.c_char.in_dll(self._library, f"bp_kernel_{name}"))
        except ValueError:
            raise ConfigurationError(
                f"{self.path.name} has no kernel {name}; it has {', '.join(signatures(self.path))}"
            ) from None


def compile_unit(path: Path, defines: Mapping[str, str], *, detector: bool) -> Unit:
    """The kernels of `path` compiled with these macros (`{"T": "float"}`), from the cache where it has them.

    detector: hook every access to memory, so that a launch finds races. Raises ConfigurationError where there is no C++
    compiler, or with the compiler's words where the file does not compile.
    """
    load_engine()
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]

    def key() -> str:
        source = _source(path, detector)
        return digest(source, _headers(path), macros, compiler_version(), _COMMON, _UNIT, _LINK, str(detector))

    def build(out: Path) -> None:
        _build_unit(path, _source(path, detector), macros, detector, out)
        # The compiler reads the headers itself: an edit in between would be kept under the key of the text before.
        with_includes.cache_clear()
        if key() != name:
            raise ConfigurationError(f"{path.name} or a header of it was changed while it was compiled; run again")

    name = key()
    return _loaded(path, cached(f"emulator/{path.stem}-{name}.so", build))


@functools.cache
def _loaded(path: Path, library: Path) -> Unit:
    return Unit(path, library)


@functools.cache
def load_engine() -> ctypes.CDLL:
    """The engine, compiled at its first use on this machine. Units find its symbols, so it is loaded for all to see."""
    folder = emulator_folder()
    sources = sorted(folder.glob("*.cpp"))
    text = [file.read_text() for file in [*sources, *sorted(folder.glob("*.hpp"))]]

    def build(out: Path) -> None:
        what = "the emulator's engine"
        with tempfile.TemporaryDirectory() as compiled, ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [f"{compiled}/{file.stem}.o" for file in sources]
            commands = [
                [*compiler(), *_COMMON, "-c", str(file), "-o", object_]
                for file, object_ in zip(sources, objects, strict=True)
            ]
            list(pool.map(_run, commands, [what] * len(commands)))
            link = [*_LINK, "-pthread", *(["-ldl"] if sys.platform == "linux" else [])]
            _run([*compiler(), *link, *objects, "-o", str(out)], what)

    library = cached(f"emulator/engine-{digest(text, compiler_version(), _COMMON, _LINK)}.so", build)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, else c++, g++ or clang++, whichever is found first."""
    chosen = os.environ.get("CXX")
    if chosen:
        return shlex.split(chosen)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    install = "xcode-select --install" if sys.platform == "darwin" else "for example: apt install g++"
    raise ConfigurationError(
        f"device 'emulator' expected a C++ compiler, found none of c++, g++, clang++; install one ({install})"
    )


def compiler_version() -> str:
    """What the compiler says about itself: part of every key."""
    return _version(tuple(compiler()))


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    return _run([*command, "--version"], "its version")


def _source(path: Path, detector: bool) -> str:
    """The text to compile: the file, in which each kernel's shared memory has a section, and what `launch` calls."""
    text = path.read_text()
    code = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), text)
    kernels = signatures(path)
    quoted = f"{path.parent.name}/{path.name}"  # the same wherever the tree lies, and so is the key in the cache
    pieces, done = [f'#line 1 "{quoted}"\n'], 0
    for number, match in enumerate(_KERNEL_START.finditer(code)):
        start = match.start()
        line = text.count("\n", 0, start) + 1
        section = f"__DATA,bp_shared_{number}" if sys.platform == "darwin" else f"bp_shared_{number}"
        pieces += [
            text[done:start],
            f'\n#undef BP_SHARED_SECTION\n#define BP_SHARED_SECTION "{section}"\n#line {line} "{quoted}"\n',
        ]
        done = start
    pieces += [text[done:], f'\n#line 1 "{LAUNCH_TABLE}"\n']
    pieces += [_entry(number, kernel, detector) for number, kernel in enumerate(kernels.values())]
    return "".join(pieces)


def _entry(number: int, kernel: Signature, detector: bool) -> str:
    """`bp_kernel_NAME`, the struct Kernel of interface.hpp, and the function that calls the kernel."""
    arguments = ", ".join(
        f"*static_cast<{p.type}{'*' if p.pointer else ''}*>(arguments[{i}])" for i, p in enumerate(kernel.parameters)
    )
    begin, end = (
        (f'__asm("section$start$__DATA$bp_shared_{number}")', f'__asm("section$end$__DATA$bp_shared_{number}")')
        if sys.platform == "darwin"
        else ("", "")
    )
    hidden = '__attribute__((visibility("hidden")))'
    section = f"__DATA,bp_shared_{number}" if sys.platform == "darwin" else f"bp_shared_{number}"
    # A kernel without shared memory gets an empty section, so that its bounds exist.
    return f"""
static char bp_anchor_{number}[0] __attribute__((section("{section}"), used));
extern "C" {hidden} char __start_bp_shared_{number}[] {begin};
extern "C" {hidden} char __stop_bp_shared_{number}[] {end};
__attribute__((no_sanitize("thread"))) static void bp_run_{kernel.name}(void** arguments) {{
    (void)arguments;
    {kernel.name}({arguments});
}}
extern "C" __attribute__((visibility("default"))) const emulator::Kernel bp_kernel_{kernel.name} = {{
    bp_run_{kernel.name}, __start_bp_shared_{number}, __stop_bp_shared_{number}, {int(detector)}, BP_AGENTS}};
"""


def _headers(path: Path) -> list[str]:
    """The text of every header that the compiled result depends on."""
    shim = [file.read_text() for file in sorted(emulator_folder().glob("*.hpp"))]
    return [*with_includes(path).values(), *shim]


def _build_unit(path: Path, source: str, macros: list[str], detector: bool, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # Where debug information names the compiled file rather than the `#line`, it is the same name.
        file, compiled = Path(folder) / path.parent.name / path.name, Path(folder) / f"{path.stem}.o"
        file.parent.mkdir()
        file.write_text(source)
        includes = ["-iquote", str(path.parent), "-I", str(kernel_folder() / "include"), "-I", str(emulator_folder())]
        flags = [*_COMMON, *_UNIT, *(_DETECTOR if detector else ()), "-include", str(emulator_folder() / "shim.hpp")]
        where = f"{path.name} {' '.join(macros)}"
        _run([*compiler(), *flags, *includes, *macros, "-x", "c++", "-c", str(file), "-o", str(compiled)], where)
        # Linked without -fsanitize: the engine has the hooks, the sanitizer's own runtime must not come in.
        _run([*compiler(), *_LINK, str(compiled), "-o", str(out)], where)


def _run(command: list[str], what: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ConfigurationError(f"the C++ compiler {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise ConfigurationError(f"the C++ compiler {command[0]} failed on {what}:\n{done.stderr.strip()[:4000]}")
    return done.stdout
