"""Output directories: which one a run gets, and files that are never half-written."""

import json
import os
import re
from pathlib import Path
from typing import Any

from bp.config import Config
from bp.errors import ConfigurationError

RUNS = Path("runs")
TRACES = ("config.yaml", "metrics.jsonl", "summary.json", "checkpoints")


def holds_a_run(folder: Path) -> bool:
    """Whether a run left anything there."""
    return any((folder / name).exists() for name in TRACES)


def choose(config: Config) -> tuple[Path, str | None]:
    """The output directory of a run and what to resume from (None: nothing); writes nothing.

    Without output_dir it is runs/<name>, or, where that is taken, runs/<name>-2, runs/<name>-3 and so on; with resume
    "auto" the latest of these. A resume path that is the folder of a run continues in that folder. A directory that was
    named and holds a run is an error unless it is resumed: nothing that was trained is ever overwritten.
    """
    resume = config.resume
    if resume is not None and resume != "auto":
        source = Path(resume)
        if not source.is_dir():
            raise ConfigurationError(f"resume: expected 'auto' or the folder of a run or checkpoint, got '{resume}'")
        if config.output_dir is None and holds_a_run(source):
            return source, resume
    if config.output_dir is None:
        taken = _numbered(config.name)
        if resume == "auto" and taken:
            return taken[max(taken)], resume
        number = max(taken, default=0) + 1
        return RUNS / (config.name if number == 1 else f"{config.name}-{number}"), resume
    folder = Path(config.output_dir)
    if resume is None and holds_a_run(folder):
        raise ConfigurationError(
            f"output_dir: {folder} already holds a run; continue it with --resume auto, or name another directory"
        )
    return folder, resume


def _numbered(name: str) -> dict[int, Path]:
    """The default directories of a recipe that exist, by number."""
    found = {}
    for path in RUNS.glob(f"{name}*") if RUNS.is_dir() else ():
        match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", path.name)
        if match:
            found[int(match[1] or 1)] = path
    return found


def require_writable(folder: Path) -> None:
    """Raise OSError where `folder` cannot be made or written to, before hours of training; leaves nothing behind."""
    present = folder
    while not present.exists() and present != present.parent:
        present = present.parent
    if not present.is_dir():
        raise NotADirectoryError(20, "not a directory", str(present))
    if not os.access(present, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write", str(present))


def require_file(path: Path) -> None:
    """Raise where `path` cannot be written as a file of a folder that is there, before minutes of work.

    ConfigurationError without the folder, OSError where a folder has that name or permission is missing.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise IsADirectoryError(21, "expected a file, got a folder", str(path))
    if not path.exists():
        require_writable(path.absolute().parent)
    elif not os.access(path, os.W_OK):
        raise PermissionError(13, "no permission to write", str(path))


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: readers see the old one or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON in one step; figures that are not finite become null."""
    finite = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in content.items()}
    write_text(path, json.dumps(finite, indent=1, allow_nan=False) + "\n")
