"""bp bench: every kernel and every training step beside its peers and beside the limits of this machine."""

import importlib
import shlex
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from bp.bench import machine
from bp.bench.against import compare, expect_one_machine
from bp.bench.catalogue import families, load
from bp.bench.reading import read_json
from bp.bench.results import Results, write_csv, write_json
from bp.bench.run import LIMITS, Plan, Run
from bp.bench.shapes import read_shapes
from bp.bench.terminal import Printer
from bp.cli.arguments import Parser
from bp.cli.output import require_file
from bp.errors import ConfigurationError

# Where the first word is one of these, the rest is for them.
ACTIONS = {
    "roofline": ("bp.cli.roofline", "each kernel of one training step of a recipe, and which to improve first"),
    "accuracy": ("bp.cli.accuracy", "time until a recipe has learned to its accuracy, cold and warm"),
    "report": ("bp.cli.report", "one page of HTML from files that --json wrote"),
}

# Not part of a run of everything: minutes each, and of another kind.
ON_REQUEST = ("scaling", "startup", "data")

DESCRIPTION = """Check every kernel and training step against float64, then time it in turn with its peers.

Each library runs in a process of its own. Contestants take turns; the median counts, with the 20 % and 80 % quantiles.
What the machine can do at most is measured in the same run. With options of their own:

"""

QUICK_TURNS, QUICK_SECONDS = 5, 0.5


def main(argv: Sequence[str]) -> None:
    """Run `bp bench` with these arguments.

    Raises SystemExit(1) where a result of bp is wrong, or --against finds what became slower.
    """
    if argv and argv[0] in ACTIONS:
        importlib.import_module(ACTIONS[argv[0]][0]).main(argv[1:])
        return
    arguments = _parser().parse_args(argv)
    if arguments.list:
        _list()
        return
    before = None if arguments.against is None else read_json(arguments.against)
    limited = None if arguments.limits is None else read_json(arguments.limits)
    for path in (arguments.json, arguments.csv, arguments.html):
        if path is not None:
            require_file(path)
    from rich.console import Console

    printer = Printer(Console())
    plan = _plan(arguments)
    run = Run(plan if limited is None else replace(plan, limits=limited.limits), printer.row, printer.limits)
    for results in filter(None, (before, limited)):
        expect_one_machine(results.about, machine.about(run.device, {}, {}, ""))
    results = run.results(shlex.join(["bp", "bench", *argv]))
    printer.end(results)
    _write(results, arguments.json, arguments.csv, arguments.html)
    if "interrupted" in results.about.settings:
        raise KeyboardInterrupt  # what was measured until then is kept
    comparison = None if before is None else compare(before, results)
    if comparison is not None:
        if printer.console.is_terminal:
            printer.console.print(comparison)
        else:
            print(comparison)  # a line a row, of any width
    ours = [entry for row in results.rows for entry in row.entries if entry.ours]
    if any(entry.status in ("wrong", "failed") for entry in ours) or (comparison is not None and comparison.regressed):
        sys.exit(1)


def _parser() -> Parser:
    others = "\n".join(f"  bp bench {name:9} {what}" for name, (_, what) in ACTIONS.items())
    parser = Parser("bench", DESCRIPTION + others)
    parser.formatter_class = RawDescriptionHelpFormatter
    add = parser.add_argument
    add("families", nargs="*", metavar="FAMILY", help="such as norm, or a file of your own; default: all but "
        + ", ".join(ON_REQUEST))  # fmt: skip
    add("--list", action="store_true", help="list families and their benchmarks, with the names of their sizes")
    add("--device", default="auto", help="auto, cpu, cuda, or emulator (checked, not timed)")
    add(
        "--dtype",
        action="append",
        default=[],
        metavar="PRECISION",
        help="fp32, tf32, bf16, fp16 or fp64; may be given again",
    )
    add(
        "--peer", action="append", metavar="NAME", help="such as torch; may be given again; default: all that are there"
    )
    add(
        "--use",
        action="append",
        default=[],
        metavar="NAME=RUNG",
        help="bp once more on that rung, as linear=naive; may be given again",
    )
    add("--shapes", type=Path, metavar="FILE", help="YAML: the sizes of some benchmarks, and only these run")
    add("--quick", action="store_true", help="few small cases, a few turns, nothing compiled: under a minute")
    add("--limits", type=Path, metavar="FILE", help="take those of results of this machine (default: measure)")
    add("--cache", choices=["cold", "warm"], help="default: cold on a GPU, warm on a CPU, which cannot be emptied")
    add("--seconds", type=float, metavar="S", help="begin no further row after so many seconds")
    add("--seed", type=int, help="of the random data; default: another in every run")
    add("--json", type=Path, metavar="FILE", help="write the results")
    add("--csv", type=Path, metavar="FILE", help="write a line for each contestant")
    add("--html", type=Path, metavar="FILE", help="write a page to look at")
    add("--against", type=Path, metavar="FILE", help="compare with results of this machine; exit with 1 where slower")
    return parser


def _plan(arguments: Namespace) -> Plan:
    """What the arguments ask for."""
    for action in ACTIONS:
        if action in arguments.families:
            raise ConfigurationError(f"'{action}' comes first, before any option: bp bench {action} ...")
    if arguments.seconds is not None and not arguments.seconds > 0:
        raise ConfigurationError(f"--seconds expected more than 0, got {arguments.seconds:g}")
    chosen = arguments.families or [name for name in families() if name not in (LIMITS, *ON_REQUEST)]
    sizes = {}
    if arguments.shapes is not None:
        sizes = read_shapes(arguments.shapes, [kind for family in chosen for kind in load(family)])
    settings = {"budget": arguments.seconds} | ({} if arguments.seed is None else {"seed": arguments.seed})
    if arguments.quick:
        settings |= {"repeats": QUICK_TURNS, "seconds": QUICK_SECONDS}
    return Plan(
        chosen,
        arguments.device,
        arguments.dtype,
        arguments.peer,
        arguments.use,
        arguments.quick,
        cold=None if arguments.cache is None else arguments.cache == "cold",
        sizes=sizes,
        **settings,
    )


def _list() -> None:
    """Print the families, what they measure, and its sizes."""
    for family in families():
        print(family)
        for kind in load(family):
            print(f"  {kind.name}: {', '.join(field.name for field in fields(kind))}")  # type: ignore[arg-type]


def _write(results: Results, json: Path | None, csv: Path | None, html: Path | None) -> None:
    if json is not None:
        write_json(results, json)
    if csv is not None:
        write_csv(results, csv)
    if html is not None:
        from bp.bench.report import write_html

        write_html([results], html)
