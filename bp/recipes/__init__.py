"""The built-in recipes: YAML files beside this one, each with a first line of comment that says what it trains."""

import difflib
from pathlib import Path

from bp.errors import ConfigurationError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> str:
    """The YAML text of a recipe; raises ConfigurationError with the nearest name."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigurationError(f"no recipe '{name}'{hint} (known: {', '.join(known)}; or the path of a .yaml file)")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def description(name: str) -> str:
    """What it trains, in a line."""
    return read(name).splitlines()[0].removeprefix("#").strip()
