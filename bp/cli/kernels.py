"""bp kernels: list the CUDA kernels, and compile them for any GPU on a machine that may have none."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from bp.cli.arguments import Parser
from bp.cuda import disassembler, nvrtc
from bp.cuda.catalogue import belongs, dynamic_shared, load, threads, variant_name
from bp.cuda.gate import Result, Violation, check, compilations, judge_declarations, judge_files
from bp.cuda.kernel import Kernel, Source, Unit
from bp.cuda.resources import Resources, limits, occupancy
from bp.errors import CompilationError, ConfigurationError

HELP = """usage: bp kernels list [--family NAME]
       bp kernels compile [--family NAME] [--arch LIST] [--sample]
       bp kernels explain linear M N K DTYPE [--way WAY] [--arch LIST] [--alignment BYTES]
       bp kernels explain conv N H W C OUT KERNEL DTYPE [--stride S] [--padding P] ...

list     every CUDA kernel: its file, variants, least compute capability, FLOPs and bytes of a launch
compile  compile them with NVRTC, which takes no GPU, print what each takes, and say which break a rule:
         no stack, no spills, no warning, shared memory within the limit, 128-bit accesses in streaming kernels
explain  which kernel computes each product of a layer, why that one, and what it takes at best

`bp kernels compile --help` and `bp kernels explain --help` say more."""


def main(argv: Sequence[str]) -> None:
    """Run `bp kernels` with these arguments."""
    actions = {"list": _list, "compile": _compile, "explain": _explain}
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
    elif argv[0] in actions:
        actions[argv[0]](argv[1:])
    else:
        raise ConfigurationError(f"expected bp kernels list, compile or explain, got '{argv[0]}'")


def _explain(argv: Sequence[str]) -> None:
    from bp.cli.explain import main as explain

    explain(argv)


def _sources(family: str | None) -> list[Source]:
    sources = load()
    chosen = [source for source in sources if family is None or belongs(source.name, family)]
    if not chosen:
        raise ConfigurationError(f"no kernels of a family '{family}' (files: {', '.join(s.name for s in sources)})")
    return chosen


def _add_family(parser: Parser) -> None:
    parser.add_argument("--family", metavar="NAME", help="only the files of this family, such as activation")


# bp kernels list ------------------------------------------------------------------------------------------


def _list(argv: Sequence[str]) -> None:
    """Print a line for each kernel."""
    parser = Parser("kernels list", "List the CUDA kernels. In the formulas, T and other axes stand for their bytes.")
    _add_family(parser)
    sources = _sources(parser.parse_args(argv).family)
    rows = [("kernel", "file", "from", "FLOPs", "bytes", "variants")]
    for source in sources:
        choices = source.axes | ({"variant": tuple(source.variants)} if any(source.variants) else {})
        variants = "; ".join(f"{axis} = {', '.join(values)}" for axis, values in choices.items())
        for kernel in source.kernels.values():
            rows.append((kernel.name, source.path.name, _since(source), kernel.flops, kernel.bytes, variants))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _print_row(row, widths)


def _since(source: Source) -> str:
    """The least architecture of its kernels, and of which types another; or the only one."""
    if source.only is not None:
        return f"sm_{source.only} only"
    later: dict[int, list[str]] = {}
    for value, least in source.least_of.items():
        later.setdefault(least, []).append(value)
    return ", ".join([f"sm_{source.least}", *(f"{' and '.join(of)} sm_{least}" for least, of in later.items())])


def _print_row(row: Sequence[str], widths: Sequence[int]) -> None:
    print("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip(), flush=True)


# bp kernels compile ---------------------------------------------------------------------------------------

COLUMNS = ("kernel", "threads", "registers", "shared memory", "occupancy", "stack and spills")


def _compile(argv: Sequence[str]) -> None:
    """Print a line for each variant, from its best to its worst architecture, and then what breaks a rule."""
    parser = Parser(
        "kernels compile",
        "Compile the CUDA kernels with NVRTC, on any machine, and hold the machine code to the rules. A line for each "
        "kernel and variant gives the range over the architectures: registers of a thread, shared memory of a block in "
        "bytes, the share of a multiprocessor's threads that can run at once. The exit code is 0 where all rules hold.",
    )
    _add_family(parser)
    parser.add_argument(
        "--arch",
        metavar="LIST",
        default=",".join(nvrtc.ARCHITECTURES),
        help="architectures with commas between (default: %(default)s)",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="every variant for sm_80 and sm_90a, but only one of each file for the other architectures",
    )
    arguments = parser.parse_args(argv)
    architectures = list(dict.fromkeys(arguments.arch.split(",")))
    for architecture in architectures:
        limits(architecture)  # raises for one that is not known
    library, sources = nvrtc.library(), _sources(arguments.family)
    print(f"NVRTC {nvrtc.version_text()} ({library.name}), for {', '.join(architectures)}")
    violations = [*judge_declarations(sources), *(judge_files(sources) if arguments.family is None else ())]
    sources = [source for source in sources if source.path.is_file()]
    results = _print_results(sources, check(compilations(sources, architectures, arguments.sample)))
    violations += [violation for result in results for violation in result.violations]
    if disassembler.find() is None:
        print(f"not checked: whether streaming kernels move 128 bits at a time; that takes {disassembler.INSTALL}")
    if violations:
        lines = _merged(violations)
        print("\n".join(lines))
        raise CompilationError(f"{len(lines)} violations in {len(results)} compilations")
    print(f"all rules hold in {len(results)} compilations of {len(sources)} files")


def _print_results(sources: Sequence[Source], results: Iterable[Result]) -> list[Result]:
    """Print the results as they come, a line for each kernel and variant of a file, and return them."""
    units = [unit for source in sources for unit in source.units()]
    names = [variant_name(kernel, unit) for unit in units for kernel in unit.source.kernels.values()]
    widths = [max(map(len, names), default=0), *map(len, COLUMNS[1:])]
    _print_row(COLUMNS, widths)
    every = []
    for _, group in groupby(results, key=lambda result: result.unit.source.name):
        of_source = sorted(group, key=lambda result: units.index(result.unit))
        every += of_source
        for unit, of_unit in groupby(of_source, key=lambda result: result.unit):
            measured = list(of_unit)
            for kernel in unit.source.kernels.values():
                _print_row(_row(kernel, unit, measured), widths)
    return every


def _merged(violations: Iterable[Violation]) -> list[str]:
    """A line for each violation; one that is the same on several architectures is said once."""
    architectures: dict[tuple[str, str], list[str]] = {}
    for violation in violations:
        architectures.setdefault((violation.where, violation.what), []).append(violation.architecture)
    lines = []
    for (where, what), found in architectures.items():
        on = f" on {', '.join(found)}" if any(found) else ""
        lines.append(f"violation: {where}{on}: {what}")
    return lines


def _row(kernel: Kernel, unit: Unit, results: Iterable[Result]) -> tuple[str, ...]:
    """A line of the table: the range of each figure over the architectures of the results."""
    found: dict[str, Resources] = {
        result.architecture: result.measurement.resources[kernel.name]
        for result in results
        if result.measurement is not None and kernel.name in result.measurement.resources
    }
    if not found:
        return (variant_name(kernel, unit), "", "does not compile", "", "", "")
    block, dynamic = threads(kernel, unit), dynamic_shared(kernel, unit)
    shares = [occupancy(taken, block, architecture, dynamic or 0) for architecture, taken in found.items()]
    slow = max(taken.stack + taken.spill_stores + taken.spill_loads for taken in found.values())
    return (
        variant_name(kernel, unit),
        str(block),
        _range(taken.registers for taken in found.values()),
        _range(taken.shared + (dynamic or 0) for taken in found.values()) + (f" + {kernel.shared}" * (dynamic is None)),
        _range(round(100 * share) for share in shares) + "%",
        f"{slow} bytes" if slow else "none",
    )


def _range(values: Iterable[int]) -> str:
    found = list(values)
    return f"{min(found):,}" if min(found) == max(found) else f"{min(found):,}-{max(found):,}"
