"""bp kernels explain: which kernel computes a product of a layer, why that one, and what it takes at best."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bp.bench import units
from bp.bench.nominal import nominal
from bp.bench.products import Layer
from bp.bench.results import Limits
from bp.cli.arguments import Parser
from bp.cli.layers import CONV, LINEAR, add_layer_options, read_layer
from bp.cli.warmup import planning_for
from bp.cuda import choice, conv, gpu, linear, measurement, nvrtc, resources
from bp.cuda.choice import Decision, Problem
from bp.cuda.epilogue import ADDING
from bp.cuda.ledger import Launch
from bp.cuda.plan import device as plan
from bp.cuda.product import Product
from bp.errors import ConfigurationError
from bp.ops.array import known_dtype
from bp.ops.device import PRECISIONS

USAGE = f"bp kernels explain {LINEAR} DTYPE [--way WAY] [--arch LIST] [--alignment BYTES] [--limits FILE]\n"
USAGE += f"       bp kernels explain {CONV} DTYPE [--stride S] [--padding P] [--dilation D] [--groups G] ..."
DESCRIPTION = """Print which kernel computes each product of a layer: the rung and tile, the rule that chose it, how its
sums are cut, blocks and waves, work and bytes, what it takes at best, and why other rungs were passed over. linear:
M rows of x, N outputs, K inputs; its products are nt (y = x W^T), nn (dx = dy W) and tn (dW = dy^T x). conv: N images
of H x W x C, OUT outputs, a KERNEL of 3 or 3x5; forward, backward_input, backward_parameters. DTYPE: fp32, tf32, fp16
or bf16."""

WIDTH = 100
INDENT = 2
LABEL = 13  # characters of a label, with the space behind it
WITHOUT_GPU = "sm_80,sm_90a"


@dataclass(frozen=True)
class Machine:
    """A GPU to explain for. name: of it, found: whether it is the one of this machine; limits: what it can do at most,
    measured: on which GPU that was measured, "" where it stands in a data sheet."""

    architecture: str
    name: str
    found: bool
    multiprocessors: int
    limits: Limits
    measured: str

    @property
    def capability(self) -> int:
        """Its compute capability, as 90 for 9.0."""
        return nvrtc.capability(self.architecture)


def main(argv: Sequence[str]) -> None:
    """Run `bp kernels explain` with these arguments."""
    parser = Parser("kernels explain", DESCRIPTION)
    parser.usage = USAGE
    parser.add_argument("layer", nargs="+", metavar="LAYER", help=f"{LINEAR} DTYPE, or {CONV} DTYPE")
    parser.add_argument("--way", metavar="WAY", help="this product alone (default: all three)")
    parser.add_argument(
        "--arch",
        metavar="LIST",
        help=f"architectures with commas between (default: that of the GPU here, else {WITHOUT_GPU})",
    )
    parser.add_argument(
        "--alignment", metavar="BYTES", type=int, help="of the rows of a linear layer's factors (default: no gaps)"
    )
    parser.add_argument(
        "--limits", metavar="FILE", type=Path, help="a result file of bp bench, for limits that were measured"
    )
    add_layer_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    layer, precision = read_layer(arguments.layer, arguments)
    ways = _ways(layer, arguments.way)
    _expect_alignment(layer, precision, arguments.alignment)
    # All of it before the first line, so that what is refused says nothing else.
    found = [
        "\n".join(explanation(layer, ways, precision, arguments.alignment, machine))
        for machine in machines(arguments.arch, arguments.limits)
    ]
    print("\n\n".join(found))


def _ways(layer: Layer, wanted: str | None) -> Sequence[str]:
    if wanted is not None and wanted not in layer.ways:
        raise ConfigurationError(f"--way expected one of {', '.join(layer.ways)} for {layer.family}, got '{wanted}'")
    return layer.ways if wanted is None else (wanted,)


def _expect_alignment(layer: Layer, precision: str, alignment: int | None) -> None:
    if alignment is None:
        return
    if layer.family != "linear":
        raise ConfigurationError("--alignment is of a linear layer: that of a convolution is its channels'")
    known = sorted({16, 4, known_dtype(PRECISIONS[precision]).itemsize}, reverse=True)
    if alignment not in known:
        raise ConfigurationError(f"--alignment expected one of {', '.join(map(str, known))}, got {alignment}")


def machines(wanted: str | None, limits_from: Path | None) -> Iterator[Machine]:
    """Those asked for, or the GPU that is here, or two common ones."""
    here = gpu.device() if gpu.problem() is None else None
    if wanted is None:
        wanted = WITHOUT_GPU if here is None else here.architecture
    measured, where = (None, "") if limits_from is None else _limits(limits_from)
    for architecture in dict.fromkeys(wanted.split(",")):
        sheet = nominal(nvrtc.capability(architecture))
        limits = measured or sheet.limits
        if here is not None and here.architecture == architecture:
            yield Machine(architecture, here.model, True, here.multiprocessors, limits, where)
        else:
            yield Machine(architecture, sheet.name, False, sheet.multiprocessors, limits, where)


def _limits(path: Path) -> tuple[Limits, str]:
    """(those of a result file, the GPU that it names); ConfigurationError where they are no GPU's."""
    from bp.bench.reading import read_json

    results = read_json(path)
    if results.about.device != "cuda":
        raise ConfigurationError(f"{path}: expected the limits of device 'cuda', got those of '{results.about.device}'")
    return results.limits, results.about.machine.get("GPU", "a GPU without a name")


def explanation(
    layer: Layer, ways: Sequence[str], precision: str, alignment: int | None, machine: Machine
) -> Iterator[str]:
    """The lines for one GPU."""
    yield from _wrapped(f"{layer}, in {precision}")
    yield from _wrapped(f"on {machine.architecture}, {_figures(machine, precision)}")
    for way in ways:
        yield ""
        yield from _wrapped(f"{way}: {layer.words(way)}")
        with planning_for(machine.capability):
            if precision not in plan.precisions:
                raise ConfigurationError(f"--arch {machine.architecture}: {plan.refusal(precision)}")
            with plan.running(precision):
                task = layer.task(way, plan, precision, alignment)
                problem = task.problem  # which, being tf32 or not, depends on what runs
                decision = choice.decide(problem, machine.capability)
                with plan.recording() as ledger:
                    linear.multiply(task) if isinstance(task, Product) else conv.convolve(task)
        for label, text in _rows(problem, decision, ledger.launches, precision, machine):
            yield from _wrapped(text, label)


def _figures(machine: Machine, precision: str) -> str:
    """What the GPU is taken for."""
    limits, sheet = machine.limits, nominal(machine.capability).name
    rates = [units.compute(limits.peak[precision])] if precision in limits.peak else []
    rates += [units.bandwidth(limits.copy[-1][1])] if limits.copy else []
    count = f"{machine.multiprocessors} multiprocessors"
    if machine.measured:
        return f"{machine.name}: {count}; {', '.join(rates) or 'no limits'} as measured on {machine.measured}"
    if machine.found:
        return f"the {machine.name} here: {count}; {', '.join(rates)} by the data sheet of the {sheet}"
    return f"{machine.name} by its data sheet: {', '.join([count, *rates])}"


def _rows(
    problem: Problem, decision: Decision, launches: Sequence[Launch], precision: str, machine: Machine
) -> Iterator[tuple[str, str]]:
    """(what, in words) of one product."""
    chosen = decision.choice
    yield "rung", chosen.rung + (f", tile {chosen.variant}" if chosen.variant else "")
    yield "because", _because(problem, decision, machine.capability)
    with_sums = {"tn": linear.WITH_SUMS, "backward_parameters": conv.WITH_SUMS}.get(problem.way)
    if with_sums is not None:
        along = chosen.rung in with_sums and problem.dtype != "tf32"
        yield "bias", f"its gradient {'comes with this product' if along else 'takes a launch of its own'}"
    yield "alignment", f"{'rows' if problem.family == 'linear' else 'pixels'} at multiples of {problem.alignment} bytes"
    main = next((launch for launch in launches if launch.variant.kernel.name not in ADDING), None)
    if main is not None:
        adding = next((launch for launch in launches if launch.variant.kernel.name in ADDING), None)
        yield "depth", _depth(problem, main, adding)
        yield from _blocks(main, machine)
        more = "" if adding is None else f"; for the parts {units.nbytes(adding.nbytes)} more"
        rate = f"{main.flops / main.nbytes:.3g} FLOP a byte"
        yield "work", f"{units.flops(main.flops)}, {units.nbytes(main.nbytes)}, {rate}{more}"
        yield "at best", _at_best(main, precision, machine)
    width = max(len(name) for name, _ in decision.passed)
    for number, (name, reason) in enumerate(decision.passed):
        yield "" if number else "passed over", f"{name:{width}}  {reason}"


def _because(problem: Problem, decision: Decision, capability: int) -> str:
    if decision.by == "forced":
        return f"BP_{problem.family.upper()} asks for it"
    if decision.by == "tuned":
        return f"it was measured to be the fastest for products like this ({choice.in_use(capability)})"
    rule = choice.find(problem.family, decision.choice.rung).because
    return f"{rule or 'no rung before it takes this'} (a built-in rule; bp tune measures)"


def _depth(problem: Problem, main: Launch, adding: Launch | None) -> str:
    """How it is cut."""
    if adding is None:
        return f"{problem.k:,}, whole"
    count, part = _value(adding, "count"), _value(main, "part")
    name = adding.variant.kernel.name
    return f"{problem.k:,}, in {count:,} parts of {part:,} that {name} adds in a fixed order"


def _value(launch: Launch, name: str) -> float:
    names = [parameter.name for parameter in launch.variant.parameters]
    value = launch.values[names.index(name)]
    assert not isinstance(value, bytes)
    return value


def _blocks(main: Launch, machine: Machine) -> Iterator[tuple[str, str]]:
    """Blocks, and in how many waves they run."""
    blocks, count = math.prod(main.grid), machine.multiprocessors
    yield "kernel", f"{main.variant}, {blocks:,} blocks of {main.variant.threads} threads"
    at_once, why = _at_once(main, machine.architecture)
    if at_once:
        room = at_once * count
        yield "waves", f"{blocks / room:.3g} of {room:,} blocks: {at_once} on each of {count} multiprocessors, {why}"


def _at_once(main: Launch, architecture: str) -> tuple[int, str]:
    """(blocks that a multiprocessor runs at once, by what): by the registers that the compiler gave, where this kernel
    was compiled before; else as many as its launch bounds promise."""
    variant = main.variant
    measured = measurement.remembered(variant.unit, architecture) if nvrtc.find() is not None else None
    if measured is None or variant.kernel.name not in measured.resources:
        bound = variant.kernel.signature.min_blocks
        return int(dict(variant.unit.defines).get(bound, bound)), "or more (by its launch bounds)"
    shared = variant.shared_bytes(main.values)
    share = resources.occupancy(measured.resources[variant.kernel.name], variant.threads, architecture, shared)
    return round(share * resources.limits(architecture).threads / variant.threads), "by its registers and shared memory"


def _at_best(main: Launch, precision: str, machine: Machine) -> str:
    """The least time for its arithmetic and for its bytes."""
    limits, parts = machine.limits, []
    if precision in limits.peak:
        parts.append(f"{units.seconds(main.flops / limits.peak[precision])} for the arithmetic")
    bandwidth = limits.bandwidth(main.nbytes)
    if bandwidth is not None:
        parts.append(f"{units.seconds(main.nbytes / bandwidth)} for the bytes")
    if not parts:
        return "not known: the file has no limits"
    by = f"as measured on {machine.measured}" if machine.measured else "by the data sheet"
    return f"{', '.join(parts)}, {by}"


def _wrapped(text: str, label: str | None = None) -> list[str]:
    """Lines of at most `WIDTH` characters; with a label in front of the first, and the others under the text."""
    if label is None:
        return textwrap.wrap(text, WIDTH, subsequent_indent=" " * 2 * INDENT)
    first = " " * INDENT + f"{label:{LABEL}}"
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * (len(first) + INDENT))
