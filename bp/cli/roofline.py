"""bp bench roofline: each kernel of a recipe's training step beside the limits of the machine."""

import copy
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

import bp
from bp.bench import machine
from bp.bench.results import Limits
from bp.bench.roofline import Roofline, roofline, write_json
from bp.bench.roofline_table import show
from bp.bench.watched_step import HeldBatches, on_cpu, on_gpu, on_plan
from bp.cli.arguments import Parser, split
from bp.cli.output import require_file
from bp.cli.session import make_session
from bp.cli.warmup import planning_for
from bp.config import Config, resolve
from bp.cuda.emulator.device import device as emulator
from bp.cuda.plan import device as plan
from bp.errors import ConfigurationError
from bp.ops.device import find_device, resolve_precision
from bp.trainer import Trainer

USAGE = "bp bench roofline [RECIPE | FILE.yaml] [--json FILE] [--limits FILE] [--section.key value ...]"
DESCRIPTION = """Run some steps of the recipe's training, and print each kernel of a step by layer and pass: time, share
of the step, FLOPs, bytes, percent of what the limits of the machine allow, and which limit that is; then the three
kernels to improve first, and what each is worth. On the CPU it is operations that are timed; what they compute and move
is counted as the CUDA kernels of the same operations do. On the emulator kernels are listed without times."""


def main(argv: Sequence[str]) -> None:
    """Run `bp bench roofline` with these arguments."""
    parser = Parser("bench roofline", DESCRIPTION)
    parser.usage = USAGE
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    parser.add_argument(
        "--limits",
        metavar="FILE",
        type=Path,
        help="take those of a result file of bp bench (default: measure)",
    )
    arguments, rest = parser.parse_known_args(argv)
    recipe, settings, _ = split(rest)
    config = resolve(recipe, settings)
    if arguments.json is not None:
        require_file(arguments.json)
    console = Console()
    with console.status("measuring limits and steps"):  # which only a terminal shows
        found = of_recipe(config, arguments.limits)
    show(found, console)
    if arguments.json is not None:
        versions = {"bp": bp.__version__, "numpy": np.__version__}
        command = shlex.join(["bp", "bench", "roofline", *argv])
        write_json(found, machine.about(found.device, versions, {}, command), arguments.json)


def of_recipe(config: Config, limits_from: Path | None = None) -> Roofline:
    """The roofline of a configuration's training step. limits_from: a result file, None to measure the limits.

    Raises ConfigurationError for fp64, whose work no kernel tells.
    """
    device = find_device(config.device)
    precision = config.trainer.precision = resolve_precision(config.trainer.precision, device)
    if precision == "fp64":
        raise ConfigurationError("bp bench roofline counts by the CUDA kernels, which have no fp64: take fp32")
    emulated = device.name == "emulator"  # whose launches are those of a plan for it
    with planning_for(emulator.capability if emulated else plan.capability):
        session = make_session(config, device=plan if emulated else device)
        batches = HeldBatches(session.train)
        limits = Limits() if emulated else _limits(device.name, precision, limits_from)
        if emulated:
            step = on_plan(session.trainer, batches)
        elif device.name == "cuda":
            step = on_gpu(session.trainer, batches)
        else:
            step = on_cpu(session.trainer, _planned(config), batches)
    parts = config.trainer.accumulate_grad_batches
    return roofline(
        step,
        limits,
        recipe=config.name,
        device=device.name,
        precision=precision,
        samples=parts * batches.samples,
        fetch_seconds=parts * batches.fetch_seconds,
    )


def _limits(device: str, precision: str, path: Path | None) -> Limits:
    """Of a result file of this machine, or measured now, by other processes."""
    if path is not None:
        from bp.bench.against import expect_one_machine
        from bp.bench.reading import read_json

        results = read_json(path)
        expect_one_machine(results.about, machine.about(device, {}, {}, ""))
        return results.limits
    from bp.bench.limits import measure

    return measure(device, list(dict.fromkeys([precision, "fp32"])))


def _planned(config: Config) -> Trainer:
    """The Trainer of a configuration for the CPU, on the planning device."""
    planned = copy.deepcopy(config)
    planned.trainer.cuda_graph = "off"  # of which the CPU has none: a step is not made to be the same every time
    return make_session(planned, device=plan).trainer
