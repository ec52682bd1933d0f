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

    The first record of a run writes the file anew from the history, which after a resume begins with the records of
    the run that goes on. Figures that are not finite are written as null: JSON has no NaN.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._started = False

    def on_fit_start(self, trainer: "Trainer") -> None:
        self._started = False

    def on_log(self, trainer: "Trainer", record: Record) -> None:
        if self._started:
            with self.path.open("a") as file:
                file.write(_line(record))
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(_line(earlier) for earlier in trainer.history))
        os.replace(partial, self.path)
        self._started = True


def _line(record: Record) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
