"""JSONLLog: every record as one line of JSON in a file."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bp.callbacks.callback import Callback
from bp.history import Record

if TYPE_CHECKING:
    from bp.trainer import Trainer


class JSONLLog(Callback):
    """Appends records to `path` as they come, flushed line by line, so a crash loses nothing that was logged.

    A run that resumes at step s drops the lines after s (they will be written again) and keeps the earlier ones; a
    fresh run starts an empty file. Non-finite figures are written as null: JSON has no NaN.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_fit_start(self, trainer: "Trainer") -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if trainer.state.step > 0 and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= trainer.state.step]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, self.path)

    def on_log(self, trainer: "Trainer", record: Record) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")


def _step(line: str) -> float:
    """The step of a line; a line that a crash cut short counts as after everything."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
