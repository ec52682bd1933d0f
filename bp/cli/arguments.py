"""What the commands share in reading their arguments."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from bp.errors import ConfigurationError

DEFAULT_RECIPE = "digits"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and raises ConfigurationError, one line, on bad arguments."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"bp {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see {self.prog} --help")


def split(argv: Sequence[str], *flags: str) -> tuple[str, list[str], set[str]]:
    """(recipe, settings, flags) of `[RECIPE] --section.key value ...`. flags: besides "help"."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    for flag in flags:
        parser.add_argument(f"--{flag}", f"--{flag.replace('-', '_')}", dest=flag, action="store_true")
    found, settings = parser.parse_known_args(argv)
    recipe = settings.pop(0) if settings and not settings[0].startswith("-") else DEFAULT_RECIPE
    return recipe, settings, {flag for flag, given in vars(found).items() if given}
