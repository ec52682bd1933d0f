"""bp check: compare the backward passes of a recipe's model with central differences."""

from collections.abc import Sequence

import numpy as np

from bp.checking import check
from bp.cli.arguments import split
from bp.cli.session import make_session
from bp.config import resolve

HELP = """usage: bp check [RECIPE | FILE.yaml] [--section.key value ...]

Copy the recipe's model to float64 and compare the backward of every layer, on two real samples, with central
differences of its forward; stop at the first that disagrees and name it."""

SAMPLES = 2


def main(argv: Sequence[str]) -> None:
    """Run `bp check` with these arguments."""
    recipe, settings, flags = split(argv)
    if "help" in flags:
        print(HELP)
        return
    session = make_session(resolve(recipe, settings))
    indices = np.arange(min(SAMPLES, len(session.splits.train)))
    x, y = session.splits.train.batch(indices)
    if session.splits.eval_transform is not None:
        x, y = session.splits.eval_transform(x, y, np.random.default_rng(0))
    comparisons = check(session.model, x)
    for comparison in comparisons:
        error = abs(comparison.backward - comparison.difference)
        print(
            f"ok | {comparison.layer} | {comparison.direction} | error {error:.1e} of {comparison.allowed:.1e} allowed"
        )
    print(f"all {len(comparisons)} derivatives of {session.config.model.name} agree with central differences")
