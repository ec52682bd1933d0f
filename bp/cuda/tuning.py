"""The tuned table: which rung was measured to be the fastest for a class of products, as `bp tune` leaves it on disk.

It holds what differs from the built-in rules of `bp.cuda.choice`, for GPUs of one compute capability. Products are of
one class where they agree in everything but their sizes, and each size rounded up to 2^i or 3 2^i is the same. A table
changes which sums are added first, so results differ in their last bits from those of another: its hash stands in
checkpoints and results. How a sum is cut is no matter of the table (`choice.cut`): shape and tile decide it.

The file is `tuning/sm_90.json` in the folder of compiled kernels; BP_TUNING names another, or is "off" for none.
"""

import functools
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bp.cuda import choice
from bp.cuda.choice import RUNGS, SHORT, WAYS, Choice, Problem
from bp.cuda.files import cache_folder, digest, kernel_folder, replaced
from bp.cuda.signature import with_includes
from bp.errors import ConfigurationError, Notice

FORMAT = 1
OFF = "off"
VARIABLE = "BP_TUNING"
# What is launched, and what decides how: beside the files of each family.
LAUNCHING = ("*_tiles.py", "choice.py", "epilogue.py", "product.py", "tensor_map.py")
# What tells classes apart; a device without the library of a choice leaves that choice out.
KEYS = tuple(one for one in fields(Problem) if one.name != "library")


@dataclass(frozen=True)
class Entry:
    """What was measured for a class. choice: the fastest; built_in: that of the built-in rules; seconds of both, None
    where the built-in one is wrong; sizes: (m, n, k) of the product that was measured."""

    choice: Choice
    seconds: float
    built_in: Choice
    built_in_seconds: float | None
    sizes: tuple[int, int, int]


@dataclass(frozen=True)
class Table:
    """capability: of the GPUs that it is for, gpu: the name of the one that measured. version: of the kernels, see
    `version`. entries: by class, which is a problem with rounded sizes."""

    capability: int
    gpu: str
    version: str
    entries: Mapping[Problem, Entry] = field(default_factory=dict)

    def find(self, problem: Problem) -> Choice | None:
        """What it has for products of the class of this one."""
        entry = self.entries.get(shape_class(problem))
        return None if entry is None else entry.choice

    @property
    def hash(self) -> str:
        """The same for two tables that choose the same, however fast it was."""
        lines = sorted(f"{key} {entry.choice}" for key, entry in self.entries.items())
        return digest(str(self.capability), lines)[:12]


def shape_class(problem: Problem) -> Problem:
    """The class of a problem: its sizes rounded up, on whatever device."""
    m, n, k, batch, groups = map(_rounded_up, (problem.m, problem.n, problem.k, problem.batch, problem.groups))
    return replace(problem, m=m, n=n, k=k, batch=batch, groups=groups, library=True)


def _rounded_up(size: int) -> int:
    """To 2^i or 3 2^i."""
    if size < 2:
        return size
    power = 1 << (size - 1).bit_length()
    return 3 * power // 4 if size <= 3 * power // 4 and power > 2 else power


@functools.cache
def version() -> str:
    """Of all that decides how fast a rung is: the sources of the kernels and what cuts and launches them."""
    texts: list[str] = []
    for family in RUNGS:
        for path in sorted(kernel_folder().glob(f"{family}*.cu")):
            texts += [path.name, *with_includes(path).values()]
    for pattern in (*(f"{family}*.py" for family in RUNGS), *LAUNCHING):
        for path in sorted(Path(__file__).parent.glob(pattern)):
            texts += [path.name, path.read_text()]
    return digest(texts)


# Where it lies ----------------------------------------------------------------------------------------------


def named() -> str:
    """What BP_TUNING names in place of the file in the cache: a path, "off", or "" for nothing."""
    return os.environ.get(VARIABLE, "")


def place(capability: int) -> Path:
    """The file of the table for a compute capability, whether it is there or not."""
    chosen = named()
    if chosen == OFF:
        raise ConfigurationError(f"{VARIABLE}={OFF} says that there is no tuned table; set it to a path, or not at all")
    return Path(chosen) if chosen else cache_folder() / f"tuning/sm_{capability}.json"


@functools.cache
def in_use(capability: int) -> Table | None:
    """The table that choices for a compute capability are made by; None where the built-in rules are all there is.

    A table of other kernels than these is left out, with a warning, and so is a file of the cache that is damaged.
    Raises ConfigurationError where BP_TUNING names a file that is missing or no table.
    """
    if named() == OFF or _left_out:
        return None
    path = place(capability)
    if not named() and not path.exists():
        return None
    try:
        table = read(path)
    except ConfigurationError as error:
        if named():
            raise
        warnings.warn(f"{error}; it is not used", Notice, stacklevel=2)
        return None
    if table.capability != capability or not table.entries:
        return None
    if table.version != version():
        warnings.warn(
            f"{path} was measured with other kernels than these and is not used: run bp tune again",
            Notice,
            stacklevel=2,
        )
        return None
    return table


def forget() -> None:
    """Read the file anew at the next choice."""
    in_use.cache_clear()


_left_out: list[bool] = []  # as many as there are blocks of `left_out`


@contextmanager
def left_out() -> Iterator[None]:
    """Within this block no table is used, whether the file is there or not: a new one is being made."""
    _left_out.append(True)
    choice.forget()
    try:
        yield
    finally:
        _left_out.pop()
        choice.forget()


# Reading and writing ----------------------------------------------------------------------------------------


def write(path: Path, table: Table) -> None:
    """Write a table in one step: readers have the old file or the new one, whole."""
    rows = [
        {
            **{one.name: getattr(key, one.name) for one in KEYS},
            "rung": entry.choice.rung,
            "tile": entry.choice.variant,
            "seconds": entry.seconds,
            "built_in": str(entry.built_in),
            "built_in_seconds": entry.built_in_seconds,
            "measured": list(entry.sizes),
        }
        for key, entry in table.entries.items()
    ]
    document = {
        "format": FORMAT,
        "capability": table.capability,
        "gpu": table.gpu,
        "kernels": table.version,
        "entries": rows,
    }
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    replaced(path, lambda file: file.write_text(text, encoding="utf-8"))


def read(path: Path) -> Table:
    """Read a table; raises ConfigurationError, with the file, where it is missing, damaged or something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; bp tune makes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: expected a tuned table, got a file that cannot be read ({error})") from error
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if type(found) is not int or found != FORMAT:
        raise ConfigurationError(f"{path}: expected a tuned table of format {FORMAT}, got {found}")
    try:
        capability, gpu, kernels = (document[name] for name in ("capability", "gpu", "kernels"))
        _expect(capability=(capability, int), gpu=(gpu, str), kernels=(kernels, str))
        entries = dict(map(_entry, document["entries"]))
        for key, entry in entries.items():
            # A table of other kernels may have other rungs: it is stale, not damaged.
            if kernels == version() and entry.choice.rung not in (rung.name for rung in RUNGS[key.family]):
                raise ValueError(f"{key.family} has no rung {entry.choice.rung}")
        return Table(capability, gpu, kernels, entries)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{path}: expected a tuned table, got a damaged one ({error!r})") from error


def _entry(row: dict[str, Any]) -> tuple[Problem, Entry]:
    known: dict[str, Any] = {one.name: row[one.name] for one in KEYS}
    _expect(**{one.name: (known[one.name], one.type) for one in KEYS})
    _expect(**{name: (row[name], str) for name in ("rung", "tile", "built_in")})
    if known["way"] not in WAYS.get(known["family"], ()) or known["dtype"] not in SHORT:
        raise ValueError(f"a product of {known['family']}, {known['way']}, in {known['dtype']}")
    rows, columns, depth = map(int, row["measured"])
    before = row["built_in_seconds"]
    entry = Entry(
        Choice(row["rung"], row["tile"]),
        _seconds(row["seconds"]),
        _choice(row["built_in"]),
        None if before is None else _seconds(before),
        (rows, columns, depth),
    )
    return Problem(**known), entry


def _expect(**given: tuple[Any, Any]) -> None:
    """Raise ValueError for a (value, type) where that is not its type."""
    for name, (value, kind) in given.items():
        if type(value) is not kind:
            raise ValueError(f"{name} = {value!r}")


def _seconds(value: Any) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} seconds")
    return float(value)


def _choice(text: str) -> Choice:
    rung, _, tile = text.partition(":")
    return Choice(rung, tile)
