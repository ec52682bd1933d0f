"""Sizes of a user's own in place of those of the benchmarks: `--shapes FILE`."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bp.bench.benchmark import Benchmark, grid
from bp.bench.results import Size
from bp.errors import ConfigurationError


def read_shapes(path: Path, kinds: Iterable[type[Benchmark]]) -> dict[str, list[dict[str, Size]]]:
    """The cases of each benchmark that the file names, by the name of its class. The file is YAML:

        layer norm:                        # the name of a benchmark, as in the table
          - {rows: 1000, columns: 300}     # the fields of a case
          - {rows: [1, 64], columns: 300}  # a list stands for a case of each

    Raises ConfigurationError on a benchmark, a field or a value that there cannot be, OSError where there is no file.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if not isinstance(document, dict) or not document:
        raise ConfigurationError(f"{path}: expected benchmarks with their sizes, got {type(document).__name__}")
    by_name = {kind.name: kind for kind in kinds}
    found: dict[str, list[dict[str, Size]]] = {}
    for name, cases in document.items():
        kind = by_name.get(name)
        if kind is None:
            raise ConfigurationError(f"{path}: no benchmark '{name}' (known: {', '.join(sorted(by_name))})")
        if not isinstance(cases, list) or not cases:
            raise ConfigurationError(f"{path}: {name}: expected a list of sizes, got {cases!r}")
        found[kind.__name__] = [sizes for case in cases for sizes in _expanded(path, kind, case)]
    return found


def _expanded(path: Path, kind: type[Benchmark], case: Any) -> list[dict[str, Size]]:
    """The cases that one line stands for."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    names = ", ".join(f"{name} ({_type_name(field)})" for name, field in fields.items())
    if not isinstance(case, dict) or set(case) - set(fields):
        raise ConfigurationError(f"{path}: {kind.name}: expected the sizes {names}, got {case!r}")
    lists = {name: value if isinstance(value, list) else [value] for name, value in case.items()}
    for name, field in fields.items():
        if name not in lists and field.default is dataclasses.MISSING:
            raise ConfigurationError(f"{path}: {kind.name}: '{name}' is missing; expected {names}")
        for value in lists.get(name, ()):
            if type(value).__name__ != _type_name(field) or (isinstance(value, int) and value < 0):
                raise ConfigurationError(f"{path}: {kind.name}: '{name}' expected {_type_name(field)}, got {value!r}")
    return grid(**lists)


def _type_name(field: "dataclasses.Field[Any]") -> str:
    return field.type if isinstance(field.type, str) else field.type.__name__
