"""bp tune: measures which rung and tile is the fastest for the products of a training step, and keeps what is."""

import math
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bp.bench import units
from bp.bench.libraries.ours import OursOnDevice
from bp.bench.products import LayerProduct, products_of
from bp.bench.trial import NotTried, Trial, Tried, try_all
from bp.cli.arguments import DEFAULT_RECIPE, Parser
from bp.cli.layers import CONV, LINEAR, add_layer_options, read_layer
from bp.cli.session import make_session
from bp.cli.warmup import planning_for
from bp.config import resolve
from bp.cuda import choice, tuning
from bp.cuda.choice import Choice, Problem
from bp.cuda.driver import find_driver
from bp.cuda.plan import device as plan
from bp.cuda.tuning import Entry, Table
from bp.errors import ConfigurationError
from bp.ops.device import resolve_precision
from bp.planning import plan_step

USAGE = f"bp tune [RECIPE | FILE.yaml] [--section.key value ...] | {LINEAR} DTYPE | {CONV} DTYPE [--stride S] ..."
DESCRIPTION = """Find the products of a recipe's training step (default: digits) or of one layer, run each on every
rung and tile that can compute it, check them against the naive rung, time them in turn with empty caches, and keep in a
table what is faster than the built-in choice by more than the noise. Choices of kernels are made by that table from
then on, for products of the same shape class; `bp kernels explain` shows it. What was measured when it is interrupted
is kept. On the emulator everything is checked, and nothing timed."""

HEADS = ("rung", "tile", "time", "20 % to 80 %", "rate", "of built-in", "")


def main(argv: Sequence[str]) -> None:
    """Run `bp tune` with these arguments; raises SystemExit(1) where a rung computes something wrong, or fails."""
    parser = Parser("tune", DESCRIPTION)
    parser.usage = USAGE
    parser.add_argument("--device", default="cuda", help="cuda, or emulator (checked, not timed)")
    parser.add_argument("--seconds", type=float, metavar="S", help="begin with no further product after so many")
    parser.add_argument(
        "--cublas",
        action="store_true",
        help="let cuBLAS into the table where it is faster; a step with cuBLAS is not replayed as a CUDA graph",
    )
    add_layer_options(parser)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.seconds is not None and not arguments.seconds > 0:
        raise ConfigurationError(f"--seconds expected more than 0, got {arguments.seconds:g}")
    if arguments.device not in ("cuda", "emulator"):
        raise ConfigurationError(
            f"bp tune chooses among CUDA kernels: --device cuda or emulator, not {arguments.device}"
        )
    with tuning.left_out():
        clock, timed = open_clock(arguments.device)
        what, products = asked_for(rest, arguments, clock.own)
        classes = by_class(products, clock.own)
        print(what)
        print(f"{units.counted(len(products), 'product')} of {_classes(len(classes))}, on {_name(clock.own)}")
        _tune(classes, clock, timed, arguments)


def open_clock(device: str) -> tuple[OursOnDevice, bool]:
    """(the device with its clock, whether that says anything); ConfigurationError where the device cannot be used."""
    return OursOnDevice(device), device == "cuda"


def asked_for(words: Sequence[str], options: Namespace, device: Any) -> tuple[str, list[LayerProduct]]:
    """(what the products are of, the products) by the arguments that are no options of this command."""
    if words and words[0] in ("linear", "conv"):
        layer, precision = read_layer(words, options)
        resolve_precision(precision, device)
        return f"{layer}, in {precision}", [LayerProduct(layer, way, precision) for way in layer.ways]
    unfit = [name for name in ("stride", "padding", "dilation", "groups") if getattr(options, name) is not None]
    if unfit:
        raise ConfigurationError(f"--{unfit[0]} is of a convolution, and this is a recipe")
    named = bool(words) and not words[0].startswith("-")
    recipe, settings = (words[0], words[1:]) if named else (DEFAULT_RECIPE, words)
    return of_recipe(recipe, settings, device)


def of_recipe(recipe: str, settings: Sequence[str], device: Any) -> tuple[str, list[LayerProduct]]:
    """The products of a training step of the recipe on this device, which is only planned."""
    with ExitStack() as stack:
        stack.enter_context(planning_for(device.capability))
        for family in choice.RUNGS:  # whose launches tell the sizes of every product
            stack.enter_context(choice.only(family, Choice("tiled")))
        config = resolve(recipe, settings, device=plan)
        precision = config.trainer.precision = resolve_precision(config.trainer.precision, device)
        session = make_session(config, device=plan)
        step = plan_step(
            session.model,
            (config.data.batch_size, *session.sample_shape),
            loss=session.trainer.loss,
            optimizer=config.make("optimizer"),
            precision=precision,
            fuse=session.trainer.fuse,
        )
    what = f"{config.name}, a training step of {config.data.batch_size} samples in {precision}"
    return what, products_of(step.launches)


def by_class(products: Sequence[LayerProduct], device: Any) -> dict[Problem, LayerProduct]:
    """One product of each shape class, the one with most to compute."""
    found: dict[Problem, LayerProduct] = {}
    with planning_for(device.capability):
        for product in products:  # which come in that order
            with plan.running(product.precision):
                problem = product.layer.task(product.way, plan, product.precision).problem
            found.setdefault(tuning.shape_class(problem), product)
    return found


# The table --------------------------------------------------------------------------------------------------


def _tune(classes: Mapping[Problem, LayerProduct], clock: OursOnDevice, timed: bool, arguments: Namespace) -> None:
    """Try one product after the other, print what was found, and keep it, whatever ends this."""
    capability = clock.own.capability
    path = tuning.place(capability) if timed else None
    table = None if path is None else _kept(path, capability, _name(clock.own))
    begun, bad, count = time.monotonic(), 0, len(classes)
    reached = tried = 0
    try:
        for key, product in classes.items():
            if arguments.seconds is not None and time.monotonic() - begun > arguments.seconds:
                print(f"\n{count - reached} of {count} were not begun: no time was left")
                break
            reached, trial = reached + 1, None
            try:
                trial = try_all(product, clock, timed=timed, libraries=arguments.cublas)
                found = list(lines(trial))
            except NotTried as problem:
                found = [f"  not tried: {problem}"]
            clock.release()
            print("\n".join(["", f"{reached}/{count} {product}", *found]), flush=True)
            if trial is None:
                continue
            tried += 1
            bad += sum(one.status != "right" for one in trial.tried)
            if path is not None and table is not None:
                table = _with(table, key, trial)
                if table.entries or path.exists():
                    tuning.write(path, table)
    finally:
        print(f"\n{tried} of {count} were tried")
        if path is None or table is None:
            print("nothing was timed: the clock of the emulator says nothing of a GPU")
        else:
            _say_where(path, table)
    if bad:
        print(f"{bad} of the results were wrong, or failed")
        raise SystemExit(1)


def _kept(path: Path, capability: int, gpu: str) -> Table:
    """The table that is there, or a new one in the place of what is of no use. A file that BP_TUNING names and that is
    no table may be something else: ConfigurationError."""
    fresh = Table(capability, gpu, tuning.version())
    if not path.exists():
        return fresh
    try:
        there = tuning.read(path)
    except ConfigurationError as error:
        if tuning.named():
            raise
        print(f"{error}: it is begun anew")
        return fresh
    if (there.capability, there.version) != (capability, fresh.version):
        print(f"{path} was measured with other kernels than these, or for another architecture: it is begun anew")
    elif there.gpu != gpu:
        print(f"{path} was measured on {there.gpu}, and this is {gpu}: it is begun anew")
    else:
        return there
    return fresh


def _with(table: Table, key: Problem, trial: Trial) -> Table:
    """The table after a trial: with its winner, or without what was faster once."""
    entries = {known: entry for known, entry in table.entries.items() if known != key}
    best = trial.winner
    if best is not None and best.times is not None:
        before = trial.of(trial.built_in).times
        entries[key] = Entry(
            best.choice,
            best.times.median,
            trial.built_in,
            None if before is None else before.median,
            (trial.problem.m, trial.problem.n, trial.problem.k),
        )
    return Table(table.capability, table.gpu, table.version, entries)


def _say_where(path: Path, table: Table) -> None:
    if not table.entries:
        print("nothing that is faster than the built-in choice was found: there is no table to keep")
        return
    print(f"{_classes(len(table.entries))} with another choice than the built-in one: {path}")
    print(f"table {table.hash}; BP_TUNING=off leaves it out, and deleting the file removes it")


def _classes(count: int) -> str:
    return f"{count} shape class{'es' * (count != 1)}"


def _name(device: Any) -> str:
    """Of the GPU."""
    gpus = find_driver().gpus if device.name == "cuda" else ()
    return f"{gpus[0].name if gpus else device.name}, compute capability {device.capability / 10}"


# What is printed --------------------------------------------------------------------------------------------


def lines(trial: Trial) -> Iterator[str]:
    """A table of what was tried, the fastest first."""
    rows = [HEADS, *(_cells(trial, one) for one in trial.tried)]
    if all(one.times is None for one in trial.tried):
        rows = [(rung, tile, remark) for rung, tile, *_, remark in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def _cells(trial: Trial, one: Tried) -> tuple[str, ...]:
    names = one.choice.rung, one.choice.variant
    if one.times is None:
        return (*names, "", "", "", "", _remark(trial, one))
    before = trial.of(trial.built_in).times
    ratio = math.nan if before is None else before.median / one.times.median
    return (
        *names,
        units.seconds(one.times.median),
        units.span(one.times.low, one.times.high),
        units.compute(trial.flops / one.times.median),
        "" if math.isnan(ratio) else units.ratio(ratio),
        _remark(trial, one),
    )


def _remark(trial: Trial, one: Tried) -> str:
    if one.status != "right":
        return f"{one.status}: {one.reason}"
    said = [] if one.times is not None else ["right"]
    if one.choice == trial.built_in:
        said.append("built-in")
    if one == trial.winner:
        said.append("kept")
    if choice.find(trial.problem.family, one.choice.rung).library and one != trial.winner:
        said.append("a library, kept with --cublas alone")
    return ", ".join(said)
