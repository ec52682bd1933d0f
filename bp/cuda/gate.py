"""The compile gate: what must hold of every kernel on every architecture, seen without a GPU.

A kernel that compiles can still be slow in silence: registers that spill to memory, shared memory that no GPU of an
architecture has, 2-byte accesses where 16 were meant. The facts are those of `bp.cuda.measurement`; here they are held
against the limits of the architectures and against what the kernels declare.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bp.cuda import disassembler
from bp.cuda.catalogue import dynamic_shared, names_in, threads, variant_name
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Kernel, Source, Unit
from bp.cuda.measurement import Measurement, measure
from bp.cuda.nvrtc import capability
from bp.cuda.resources import Resources, limits, occupancy
from bp.cuda.signature import signatures
from bp.errors import CompilationError

SAMPLED_IN_FULL = ("sm_80", "sm_90a")
_JOBS = 2  # more gain little: NVRTC compiles in part behind a lock of its own


@dataclass(frozen=True)
class Violation:
    """A rule that a kernel breaks. where: its file or variant; architecture: "" where it is broken on all."""

    where: str
    what: str
    architecture: str = ""


@dataclass(frozen=True)
class Result:
    """One compilation: its unit, what was measured (None: it does not compile), and the rules that it breaks."""

    unit: Unit
    architecture: str
    measurement: Measurement | None
    violations: list[Violation]


# What to compile --------------------------------------------------------------------------------------------


def compilations(sources: Iterable[Source], architectures: Sequence[str], sample: bool) -> Iterator[tuple[Unit, str]]:
    """Every unit for every architecture that its source is for.

    sample: all units for sm_80 and sm_90a, and one of a source for the others, not the same for all of them.
    """
    for source in sources:
        units = list(source.units())
        one_of = itertools.cycle(units)
        for architecture in architectures:
            able = [unit for unit in units if unit.runs_on(capability(architecture))]
            if able and sample and architecture not in SAMPLED_IN_FULL:
                able = [next(unit for unit in one_of if unit in able)]
            yield from ((unit, architecture) for unit in able)


def check(todo: Iterable[tuple[Unit, str]]) -> Iterator[Result]:
    """The results of compilations, in their order, a few at a time beside each other."""
    pool = ThreadPoolExecutor(_JOBS)
    try:
        yield from pool.map(lambda job: check_unit(*job), todo)
    finally:
        pool.shutdown(cancel_futures=True)


def check_unit(unit: Unit, architecture: str) -> Result:
    """Compile one unit, or take what the cache knows of it, and judge it."""
    try:
        measurement = measure(unit, architecture)
    except CompilationError as error:
        first, _, _ = str(error).partition("\n")
        return Result(unit, architecture, None, [Violation(str(unit), first, architecture)])
    return Result(unit, architecture, measurement, list(judge(unit, architecture, measurement)))


# The rules --------------------------------------------------------------------------------------------------


def judge(unit: Unit, architecture: str, measured: Measurement) -> Iterator[Violation]:
    """The rules that a compilation breaks."""
    for warning in measured.warnings:
        yield Violation(str(unit), " ".join(warning.split()), architecture)
    for kernel in unit.source.kernels.values():
        for what in _broken_by(kernel, unit, architecture, measured):
            yield Violation(variant_name(kernel, unit), what, architecture)


def _broken_by(kernel: Kernel, unit: Unit, architecture: str, measured: Measurement) -> Iterator[str]:
    resources = measured.resources.get(kernel.name)
    if resources is None:
        yield f"the file compiles without this kernel, to {', '.join(measured.resources) or 'nothing'}"
        return
    yield from _slow_memory(kernel, resources)
    yield from _shared_memory(kernel, unit, architecture, resources)
    if measured.instructions is not None:
        found = measured.instructions.get(kernel.name, [])
        if kernel.streaming:
            yield from _narrow(found)
        missing = [name for name in kernel.instructions if not any(one.startswith(name) for one in found)]
        if missing:
            yield f"machine code without {' and '.join(missing)}; it has {', '.join(found) or 'none of these'}"


def _slow_memory(kernel: Kernel, resources: Resources) -> Iterator[str]:
    spilled = resources.spill_stores or resources.spill_loads
    if (resources.stack or spilled) and not kernel.waiver:
        yield (
            f"{resources.stack} bytes of stack, {resources.spill_stores} of spill stores, {resources.spill_loads} of "
            f"spill loads a thread, at {resources.registers} registers; only a waiver with a reason permits them"
        )


def _shared_memory(kernel: Kernel, unit: Unit, architecture: str, resources: Resources) -> Iterator[str]:
    limit, dynamic = limits(architecture), dynamic_shared(kernel, unit) or 0
    total = resources.shared + dynamic
    if total > limit.shared_per_block:
        yield f"{total:,} bytes of shared memory a block; {architecture} has {limit.shared_per_block:,}"
    elif occupancy(resources, threads(kernel, unit), architecture, dynamic) == 0:
        yield f"no block of {threads(kernel, unit)} threads with {resources.registers} registers each fits"


def _narrow(instructions: list[str]) -> Iterator[str]:
    missing = [
        what
        for what, found in (
            ("loads", disassembler.loads_wide(instructions)),
            ("stores", disassembler.stores_wide(instructions)),
        )
        if not found
    ]
    if missing:
        yield f"a streaming kernel without 128-bit {' and '.join(missing)}; it has {', '.join(instructions) or 'none'}"


def judge_files(sources: Iterable[Source]) -> Iterator[Violation]:
    """The files of `kernels/` that none of these sources, which are all there are, declares."""
    declared = {source.path for source in sources}
    for path in sorted(kernel_folder().glob("*.cu")):
        if path not in declared:
            yield Violation(path.name, "no Source in bp/cuda declares this file, so nothing can launch its kernels")


def judge_declarations(sources: Iterable[Source]) -> Iterator[Violation]:
    """What is wrong between files of `kernels/` and their declarations in `bp/cuda`, before anything is compiled.

    A kernel on one side only, or a formula with a name that is neither a scalar parameter nor an axis; that of the
    bytes may name arrays too.
    """
    for source in sources:
        if not source.path.is_file():
            yield Violation(source.path.name, "declared in bp/cuda, but there is no such file")
            continue
        stated = signatures(source.path)
        for name in sorted(stated.keys() - source.kernels.keys()):
            yield Violation(source.path.name, f"kernel {name} is not declared in bp/cuda, so nothing can launch it")
        for name, kernel in source.kernels.items():
            if name not in stated:
                yield Violation(source.path.name, f"kernel {name} is declared in bp/cuda, but not in the file")
                continue
            scalars = {parameter.name for parameter in stated[name].parameters if not parameter.pointer}
            arrays = {parameter.name for parameter in stated[name].parameters if parameter.pointer}
            macros = {name for variant in source.variants.values() for name in variant}
            known = scalars | source.axes.keys() | macros | {"min", "max"}
            for what, formula, more in (
                ("flops", kernel.flops, set()),
                ("bytes", kernel.bytes, arrays | {"given"}),
                ("shared", kernel.shared, set()),
            ):
                unknown = ", ".join(sorted(names_in(formula) - known - more))
                if unknown:
                    yield Violation(source.path.name, f"{name}: no such parameter in its formula of {what}: {unknown}")
