"""What a `.cu` file says about its kernels, and it alone: names, parameters, launch bounds."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from bp.cuda.files import kernel_folder
from bp.errors import ConfigurationError

# extern "C" __global__ __launch_bounds__(THREADS, MIN_BLOCKS) void name(parameters) {
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+__launch_bounds__\(\s*([^(),]+?)\s*(?:,\s*([^(),]+?)\s*)?\)\s+void\s+(\w+)\s*\(([^)]*)\)\s*\{'
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_CONSTANT = re.compile(r"constexpr\s+int\s+(\w+)\s*=\s*(\d+)\s*;")
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_PARAMETER = re.compile(r"(?:const\s+)?(?:__grid_constant__\s+)?(\w+)\s*(\*?)\s*(?:__restrict__\s+)?(\w+)")
# Parameters that several kernels have in common stand in a header: #define EPILOGUE_PARAMETERS const T *bias, ...
_COMMON = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+_PARAMETERS)[ \t]+((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)


@dataclass(frozen=True)
class Parameter:
    """One parameter. type: its C type without const and star ("T", "int64"); pointer: whether it points to such."""

    name: str
    type: str
    pointer: bool


@dataclass(frozen=True)
class Signature:
    """A kernel as its source states it. threads, min_blocks: of the launch bounds, a number or the name of a macro."""

    name: str
    threads: str
    min_blocks: str
    parameters: tuple[Parameter, ...]


@functools.cache
def signatures(path: Path) -> dict[str, Signature]:
    """The kernels of a source file by name, in its order.

    Raises ConfigurationError on a `__global__` that is not written in the one form that is understood here.
    """
    text = _COMMENT.sub(" ", path.read_text())
    for included in with_includes(path).values():
        for name, common in _COMMON.findall(_COMMENT.sub(" ", included)):
            text = re.sub(rf"\b{name}\b", common.replace("\\\n", " "), text)
    constants = dict(_CONSTANT.findall(text))
    found = {}
    for threads, min_blocks, name, parameters in _KERNEL.findall(text):
        threads, min_blocks = (constants.get(bound, bound) for bound in (threads, min_blocks or "1"))
        found[name] = Signature(name, threads, min_blocks, tuple(_parameters(path, name, parameters)))
    if len(found) != text.count("__global__"):
        raise ConfigurationError(
            f"{path.name}: expected each of its {text.count('__global__')} kernels once, as "
            'extern "C" __global__ __launch_bounds__(THREADS[, BLOCKS]) void name(...) {, and understood '
            f"{len(found)}: {', '.join(found)}"
        )
    return found


def _parameters(path: Path, kernel: str, text: str) -> list[Parameter]:
    parameters = []
    for part in filter(None, (" ".join(p.split()) for p in text.split(","))):
        match = _PARAMETER.fullmatch(part)
        if match is None:
            raise ConfigurationError(f"{path.name}: {kernel} has a parameter that is no type and name: '{part}'")
        # The copy engine reads a map where the launch put it; a kernel that has a copy of its own compiles, and fails.
        if match[1] == "TensorMap" and not part.startswith("const __grid_constant__ TensorMap "):
            raise ConfigurationError(
                f"{path.name}: {kernel} expected 'const __grid_constant__ TensorMap {match[3]}', got '{part}'"
            )
        parameters.append(Parameter(match[3], match[1], bool(match[2])))
    return parameters


@functools.cache
def with_includes(path: Path) -> dict[str, str]:
    """The text of a source and of all that it includes with quotes, at any depth, by path below the kernels' folder.

    These are what the compiled result depends on, so they are part of its key in the cache.
    """
    folder = path.parent
    while folder.name != "kernels" and folder.parent != folder:
        folder = folder.parent
    found: dict[str, str] = {}

    def read(file: Path, name: str) -> None:
        if name in found:
            return
        found[name] = text = file.read_text()
        for included in _INCLUDE.findall(text):
            for candidate in (f / included for f in (file.parent, folder / "include", kernel_folder() / "include")):
                if candidate.is_file():
                    read(candidate, f"include/{candidate.name}" if candidate.parent.name == "include" else included)
                    break

    read(path, path.name)
    return found
