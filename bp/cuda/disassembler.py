"""Which instructions of memory and of tensor cores a compiled kernel has, as NVIDIA's disassembler lists them."""

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bp.cuda.nvrtc import nvidia_packages, toolkits
from bp.errors import CompilationError

INSTALL = "pip install nvidia-cuda-nvdisasm"

# .section .text.relu_forward,"ax",@progbits ... /*02a0*/ @P0 LDG.E.128 R8, [R14.64] ;
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)", re.MULTILINE)
# Loads, stores, copies from global to shared memory (cp.async, the bulk copies of sm_90), ldmatrix, products.
_INSTRUCTION = re.compile(r"\b((?:LDGSTS|LDG|STG|UTMALDG|UTMASTG|UBLKCP|LDSM|HMMA|HGMMA|QGMMA)(?:\.\w+)*)")
_WIDE = re.compile(r"\.(?:128|256)\b")
_LOADS = ("LDG", "UTMALDG", "UBLKCP")  # LDGSTS too
_STORES = ("STG", "UTMASTG", "UBLKCP")
_BULK = ("UTMA", "UBLKCP")  # their width is that of the tile


@functools.cache
def find() -> Path | None:
    """nvdisasm: on the PATH, in a CUDA toolkit, or in NVIDIA's Python package; None where it is not installed."""
    on_path = shutil.which("nvdisasm")
    return Path(on_path) if on_path else next(_installed(), None)


def _installed() -> Iterator[Path]:
    for toolkit in toolkits():
        yield from (path for name in ("nvdisasm", "nvdisasm.exe") if (path := toolkit / "bin" / name).is_file())
    for folder in nvidia_packages():
        yield from (path for path in sorted(folder.glob("*/bin/nvdisasm*")) if path.suffix in ("", ".exe"))


@functools.cache
def version() -> str | None:
    """What nvdisasm calls its version, or None where it is not installed."""
    tool = find()
    return None if tool is None else _run(tool, "--version").splitlines()[-1].strip()


def instructions(cubin: bytes) -> dict[str, list[str]]:
    """Those of each kernel of a cubin: ["LDG.E.128", "STG.E.128", "STG.E.U16"].

    Raises CompilationError where nvdisasm is missing or fails on it.
    """
    tool = find()
    if tool is None:
        raise CompilationError(f"reading machine code takes nvdisasm, which was not found: {INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        pieces = _SECTION.split(_run(tool, "-c", str(file)))
    kernels = zip(pieces[1::2], pieces[2::2], strict=True)
    return {name: sorted(set(_INSTRUCTION.findall(code))) for name, code in kernels}


def loads_wide(instructions: list[str]) -> bool:
    """Whether one of them reads 16 bytes a thread or more."""
    return any(name.startswith(_LOADS) and _is_wide(name) for name in instructions)


def stores_wide(instructions: list[str]) -> bool:
    """Whether one of them writes 16 bytes a thread or more."""
    return any(name.startswith(_STORES) and _is_wide(name) for name in instructions)


def _is_wide(name: str) -> bool:
    return name.startswith(_BULK) or _WIDE.search(name) is not None


def _run(tool: Path, *arguments: str) -> str:
    done = subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompilationError(f"{tool} {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout
