"""What can be seen of a compiled kernel without a GPU: registers, shared memory, spills, warnings, kinds of accesses.

The facts of a compilation are found once and kept in the disk cache; the machine code they were found in is not.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from bp.cuda import disassembler
from bp.cuda.files import cache_folder, digest, replaced
from bp.cuda.kernel import Unit
from bp.cuda.nvrtc import compile_file, unit_key
from bp.cuda.resources import Resources, parse

# C75xx is ptxas' advice, as an "info", on setmaxnreg that it ignored, wgmma that it serialised, and the like: slow code
# without any spill.
_WARNING = re.compile(r"^(?:ptxas warning|.*: warning\b|ptxas.*\(C75\d\d\)).*$", re.MULTILINE)


@dataclass(frozen=True)
class Measurement:
    """The facts of one compilation, by kernel. instructions: of memory and tensor cores; None: not looked at."""

    resources: dict[str, Resources]
    warnings: list[str]
    instructions: dict[str, list[str]] | None


def measure(unit: Unit, architecture: str) -> Measurement:
    """Compile a unit and read its log and, where a kernel asks for it, its machine code; or ask the cache."""
    known = remembered(unit, architecture)
    if known is not None:
        return known
    # The machine code is not kept: it would fill the cache with that of GPUs which are not here.
    compiled = compile_file(unit.source.path, dict(unit.defines), architecture)
    found = disassembler.instructions(compiled.cubin) if _looks(unit) else None
    measured = Measurement(parse(compiled.log), _WARNING.findall(compiled.log), found)
    replaced(_place(unit, architecture), lambda file: file.write_text(json.dumps(asdict(measured))))
    return measured


def remembered(unit: Unit, architecture: str) -> Measurement | None:
    """What the cache has of a unit; None where it was not compiled yet. Takes NVRTC, whose version counts."""
    return _read(_place(unit, architecture))


def _looks(unit: Unit) -> bool:
    """Whether the machine code is looked at."""
    asked = any(kernel.streaming or kernel.instructions for kernel in unit.source.kernels.values())
    return asked and disassembler.find() is not None


def _place(unit: Unit, architecture: str) -> Path:
    tool = (disassembler.version() or "") if _looks(unit) else ""
    key = digest(unit_key(unit.source.path, dict(unit.defines), architecture), _own_text(), tool)
    return cache_folder() / f"gate/{key}.json"


def _own_text() -> str:
    """The code that finds the facts: whoever changes it does not want to see those of before."""
    names = ("measurement", "resources", "disassembler")
    return "".join(Path(__file__).with_name(f"{name}.py").read_text() for name in names)


def _read(path: Path) -> Measurement | None:
    """A measurement of the cache; None where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text())
        resources = {name: Resources(**values) for name, values in content["resources"].items()}
        return Measurement(resources, content["warnings"], content["instructions"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
