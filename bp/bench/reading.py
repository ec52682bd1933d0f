"""Reads the JSON of a run of benchmarks back and refuses what is none: each key, type and figure is checked.

What is expected follows from the dataclasses of `bp.bench.results`, as does `json_schema`, for other programs.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bp.bench.results import SCHEMA, Entry, Limits, Results, Row, Times
from bp.errors import ConfigurationError

# What JSON and people call the types that have no parts.
NAMES = {str: "a text", bool: "true or false", int: "an integer", float: "a number", NoneType: "null"}
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}


def read_json(path: Path) -> Results:
    """The run that `write_json` wrote to the file.

    Raises ConfigurationError where it is not JSON, of another schema number, or not as the dataclasses have it, with
    the place in the document, what was expected and what came; OSError where the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not valid JSON: {error}") from None
    try:
        return from_document(document)
    except ConfigurationError as error:
        raise error.at(str(path)) from None


def from_document(document: Any) -> Results:
    """The run that a JSON document describes; raises ConfigurationError as `read_json` does."""
    # The number comes first: of another one, nothing else can be said.
    number = document.get("schema") if isinstance(document, dict) else None
    if type(number) is not int or number != SCHEMA:
        came = f"schema {_shown(number)}" if isinstance(document, dict) and "schema" in document else "none"
        raise ConfigurationError(f"expected results of benchmarks in schema {SCHEMA}, which this bp reads, got {came}")
    results: Results = _read(Results, document, "")
    _check_limits(results.limits)
    _check_rows(results.rows)
    return results


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the documents that `read_json` reads.

    It has the names and types of all fields. What concerns several of them, such as low <= median, or a contestant that
    comes twice, only `read_json` checks.
    """
    definitions: dict[str, Any] = {}
    top = _schema(Results, definitions)
    definitions["Results"]["properties"]["schema"] = {"const": SCHEMA}
    definitions["Results"]["required"].append("schema")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "results of bp bench",
        **top,
        "$defs": definitions,
    }


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_shown(twice)} comes twice")
    return values


def _read(hint: Any, value: Any, place: str) -> Any:
    """The value as its type hint has it: dataclasses from objects, tuples from lists, floats from integers too."""
    if not _fits(hint, value):
        _refuse(place, f"{_named(hint)}, got {_shown(value)}")
    inner = get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _read_object(hint, value, place)
    if get_origin(hint) is UnionType:
        return _read(next(kind for kind in inner if _fits(kind, value)), value, place)
    if get_origin(hint) is list:
        return [_read(inner[0], item, f"{place}[{index}]") for index, item in enumerate(value)]
    if get_origin(hint) is tuple:
        pairs = enumerate(zip(inner, value, strict=True))
        return tuple(_read(kind, item, f"{place}[{index}]") for index, (kind, item) in pairs)
    if get_origin(hint) is dict:
        return {key: _read(inner[1], item, f"{place}[{_shown(key)}]") for key, item in value.items()}
    return float(value) if hint is float else value


def _read_object(kind: Any, value: dict[str, Any], place: str) -> Any:
    hints = get_type_hints(kind)
    prefix = f"{place}." if place else ""
    for key in value:
        if key not in hints:
            _refuse(place, f"no key {_shown(key)} (known: {', '.join(hints)})")
    for key in _required(kind):
        if key not in value:
            _refuse(f"{prefix}{key}", f"{_named(hints[key])}, got no such key")
    return kind(**{key: _read(hints[key], item, f"{prefix}{key}") for key, item in value.items()})


def _required(kind: Any) -> list[str]:
    """The fields without a default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]


def _fits(hint: Any, value: Any) -> bool:
    """Whether the value is of this type, its parts aside."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(kind, value) for kind in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inner)
    if origin is list:
        return isinstance(value, list)
    if origin is dict or dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if hint is float:
        # Infinity comes as 1e999 too, and as an integer of 400 digits.
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is hint


def _named(hint: Any) -> str:
    """The type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return " or ".join(_named(kind) for kind in inner)
    if origin is Literal:
        return f"one of {', '.join(map(_shown, inner))}"
    if origin is tuple:
        return f"a list of {len(inner)}"
    if origin is list:
        return "a list"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "an object"
    return NAMES[hint]


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a type; those of dataclasses go to `definitions`."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        name = getattr(hint, "__name__", "")
        if name not in definitions:
            definitions[name] = {}  # its place, in the order of the document
            properties = {key: _schema(kind, definitions) for key, kind in get_type_hints(hint).items()}
            required = _required(hint)
            definitions[name] = _object(properties=properties, required=required, additionalProperties=False)
        return {"$ref": f"#/$defs/{name}"}
    if origin is UnionType:
        return {"anyOf": [_schema(kind, definitions) for kind in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        items = [_schema(kind, definitions) for kind in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin is list:
        return {"type": "array", "items": _schema(inner[0], definitions)}
    if origin is dict:
        return _object(additionalProperties=_schema(inner[1], definitions))
    return {"type": JSON_TYPES[hint]}


def _object(**words: Any) -> dict[str, Any]:
    return {"type": "object", **words}


def _check_limits(limits: Limits) -> None:
    figures = {f"copy[{index}][{part}]": pair[part] for index, pair in enumerate(limits.copy) for part in (0, 1)}
    figures |= {f"peak[{_shown(precision)}]": flops for precision, flops in limits.peak.items()}
    if limits.launch_seconds is not None:
        figures["launch_seconds"] = limits.launch_seconds
    for place, figure in figures.items():
        if figure <= 0:
            _refuse(f"limits.{place}", f"more than 0, got {figure}")
    sizes = [nbytes for nbytes, _ in limits.copy]
    if sizes != sorted(sizes):
        _refuse("limits.copy", f"copies from small to large, got {', '.join(map(str, sizes))}")


def _check_rows(rows: Sequence[Row]) -> None:
    keys: dict[str, int] = {}
    for index, row in enumerate(rows):
        place = f"rows[{index}]"
        if row.key in keys:
            _refuse(place, f"a row of its own, got '{row.key}' as in rows[{keys[row.key]}]")
        keys[row.key] = index
        for name, figure in (("flops", row.flops), ("nbytes", row.nbytes)):
            if figure < 0:
                _refuse(f"{place}.{name}", f"at least 0, got {figure}")
        contestants: set[str] = set()
        for position, entry in enumerate(row.entries):
            _check_entry(entry, f"{place}.entries[{position}]")
            if entry.contestant in contestants:
                _refuse(f"{place}.entries[{position}].contestant", f"each once, got '{entry.contestant}' again")
            contestants.add(entry.contestant)


def _check_entry(entry: Entry, place: str) -> None:
    # Whose an entry is shows in its name ("bp", "bp linear=naive"; "torch"): no peer passes for bp, nor bp for a peer.
    named_ours = entry.contestant.partition(" ")[0] == "bp"
    if entry.ours != named_ours:
        _refuse(f"{place}.ours", f"{_shown(named_ours)} of '{entry.contestant}', got {_shown(entry.ours)}")
    if (entry.status == "timed") != (entry.times is not None):
        came = "null" if entry.times is None else "times"
        _refuse(f"{place}.times", f"times just where the status is 'timed', got {came} where it is '{entry.status}'")
    if entry.times is not None:
        _check_times(entry.times, f"{place}.times")


def _check_times(times: Times, place: str) -> None:
    if not 0 < times.low <= times.median <= times.high:
        _refuse(place, f"0 < low <= median <= high, got {times.low}, {times.median}, {times.high}")
    if times.runs < 1:
        _refuse(f"{place}.runs", f"at least 1, got {times.runs}")


def _refuse(place: str, message: str) -> None:
    raise ConfigurationError(f"{place}: expected {message}" if place else f"expected {message}")


def _shown(value: Any) -> str:
    """As JSON has it, in a few words."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
