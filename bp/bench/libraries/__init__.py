"""The libraries that take part: where their arrays live, their clock, and what they are called; one file each."""

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bp.bench.libraries.library import Library


class Entrant(NamedTuple):
    """file: beside this one; first: what its process imports first, as its users do; devices: it has arrays on."""

    file: str
    first: str
    devices: tuple[str, ...]


LIBRARIES = {
    "bp": Entrant("ours", "bp", ("cpu", "cuda", "emulator")),
    "numpy": Entrant("with_numpy", "numpy", ("cpu",)),
    "torch": Entrant("with_torch", "torch", ("cpu", "cuda")),
    "cupy": Entrant("with_cupy", "cupy", ("cuda",)),
    "triton": Entrant("with_triton", "torch", ("cuda",)),
    "liger": Entrant("with_liger", "torch", ("cuda",)),
}

# PyTorch's compiler makes a second contestant of the same function.
COMPILED = "torch-compile"


def library_of(method: str) -> str | None:
    """The library that a method of a benchmark is of: "torch" for torch and torch_nchw; None for other methods."""
    name = method.partition("_")[0]
    return name if name in LIBRARIES else None


def open_library(name: str, device: str) -> "Library":
    """The library, on a device; raises ConfigurationError, with what to install, where it cannot take part."""
    library: Library = importlib.import_module(f"{__name__}.{LIBRARIES[name].file}").open_on(device)
    return library
