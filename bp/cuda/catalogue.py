"""All kernels there are: every file of `kernels/`, as the modules of `bp/cuda` declare it."""

import importlib
import pkgutil

import bp.cuda
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import C_TYPES, SOURCES, Kernel, Source, Unit


def load() -> list[Source]:
    """Every declared source, by name.

    `kernels/norm.cu` and `kernels/norm_groups.cu` are declared by `bp/cuda/norm.py`, which this imports. Modules that
    no file is named after are left alone: they may need a GPU.
    """
    modules = {module.name for module in pkgutil.iter_modules(bp.cuda.__path__)}
    for path in sorted(kernel_folder().glob("*.cu")):
        owners = [name for name in modules if belongs(path.stem, name)]
        if owners:
            importlib.import_module(f"bp.cuda.{max(owners, key=len)}")
    return [SOURCES[name] for name in sorted(SOURCES)]


def belongs(source: str, family: str) -> bool:
    """Whether a file of this name, without `.cu`, is one of the family: `norm` and `norm_groups` are of norm."""
    return source == family or source.startswith(f"{family}_")


def variant_name(kernel: Kernel, unit: Unit) -> str:
    """As "relu_forward[float16]"."""
    return unit.named(kernel.name)


def threads(kernel: Kernel, unit: Unit) -> int:
    """Threads of a block, by the launch bounds."""
    bound = kernel.signature.threads
    return int(dict(unit.defines).get(bound, bound))


def dynamic_shared(kernel: Kernel, unit: Unit) -> int | None:
    """Dynamic shared memory in bytes by the kernel's formula; None where that takes the sizes of a launch."""
    sizes = {axis: C_TYPES[value][1] if value in C_TYPES else int(value) for axis, value in unit.defines}
    if not names_in(kernel.shared) <= sizes.keys() | {"min", "max"}:
        return None
    return int(eval(kernel.shared, {"__builtins__": {}, "min": min, "max": max}, sizes))


def names_in(formula: str) -> set[str]:
    """The names in a formula."""
    return set(compile(formula, "formula", "eval").co_names)
