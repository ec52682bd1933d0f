"""Registry: things that a recipe may name, such as data sets, models and optimizers, found by name."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from bp.errors import ConfigurationError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """A table from name to entry; an unknown name is an error with the nearest known one.

    kind: what the entries are, in the singular, for messages ("data set").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that enters a function or class under `name`; a name is given once."""
        if name in self._entries:
            raise ConfigurationError(f"{self.kind} '{name}' is registered already")

        def enter(entry: Entry) -> Entry:
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> Entry:
        """The entry of that name. Raises ConfigurationError with the nearest name and all known ones."""
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigurationError(f"no {self.kind} '{name}'{hint} (known: {', '.join(self) or 'none'})")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names, sorted."""
        return iter(sorted(self._entries))
