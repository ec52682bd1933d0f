"""bp bench accuracy: train recipes in fresh processes, and tell how long it took until they had learned enough."""

from collections.abc import Sequence
from pathlib import Path

from bp.bench.accuracy import TARGETS, Outcome, keep, measure, read_outcomes
from bp.cli.arguments import Parser
from bp.cli.output import require_file
from bp.errors import ConfigurationError

DESCRIPTION = """Train recipes as `bp train` does, each in a fresh process, and print how long it took from the start of
the process until the end of the first epoch whose held-out samples reached the target: cold, with no kernel compiled
yet, and warm. On the CPU, which compiles none, both are one run. Targets: """


def main(argv: Sequence[str]) -> None:
    """Run `bp bench accuracy` with these arguments."""
    targets = ", ".join(f"{recipe} {_words(target.figure, target.value)}" for recipe, target in TARGETS.items())
    parser = Parser("bench accuracy", f"{DESCRIPTION}{targets}.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or emulator")
    parser.add_argument("--data.root", dest="data_root", metavar="DIR", help="where the data sets lie")
    parser.add_argument("--json", type=Path, metavar="FILE", help="enter the figures here, a recipe an entry")
    arguments = parser.parse_args(argv)
    for recipe in arguments.recipes:
        if recipe not in TARGETS:
            raise ConfigurationError(f"expected a recipe with a target ({', '.join(TARGETS)}), got '{recipe}'")
    if arguments.json is not None:
        require_file(arguments.json)  # before hours of training
        read_outcomes(arguments.json)
    for recipe in arguments.recipes or TARGETS:
        outcome = measure(
            recipe, TARGETS[recipe], device=arguments.device, data_root=arguments.data_root, on_run=_begins
        )
        print(f"{recipe}: {in_words(outcome)}", flush=True)
        if arguments.json is not None:
            keep(arguments.json, recipe, outcome)


def _begins(run: str) -> None:
    print(f"training {run}", flush=True)


def in_words(outcome: Outcome) -> str:
    """What a training reached, and when."""
    wanted, epochs = _words(outcome.figure, outcome.target), f"{outcome.epochs:g}"
    ended = f"test {outcome.figure} {outcome.tested:.4f}, {outcome.samples_per_second:,.0f} samples/s"
    if outcome.epochs_to_target is None:
        return f"{wanted} not reached in {epochs} epochs, best {outcome.best:.4f}; {ended}"
    times = f"{outcome.cold_seconds:.1f} s"
    if outcome.about.device != "cpu":
        times += f" cold, {outcome.warm_seconds:.1f} s warm"
    return f"{wanted} reached in epoch {outcome.epochs_to_target} of {epochs} after {times}; {ended}"


def _words(figure: str, value: float) -> str:
    return f"{100 * value:g}%" if figure == "accuracy" else f"{figure} {value:g}"
