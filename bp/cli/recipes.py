"""bp recipes: list the built-in recipes."""

from collections.abc import Sequence

from bp import recipes
from bp.cli.arguments import Parser


def main(argv: Sequence[str]) -> None:
    """Run `bp recipes` with these arguments."""
    Parser("recipes", "List the built-in recipes; `bp train RECIPE --print-config` shows one.").parse_args(argv)
    width = max(map(len, recipes.names()))
    for name in recipes.names():
        print(f"{name:{width}}  {recipes.description(name)}")
