"""TensorBoard: every record as TensorBoard scalars."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bp.callbacks.callback import Callback
from bp.errors import ConfigurationError
from bp.history import Record

if TYPE_CHECKING:
    from bp.trainer import Trainer


class TensorBoard(Callback):
    """Writes event files to `folder`; needs the extra `bp[tensorboard]`, and says so where it is missing."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise ConfigurationError("TensorBoard is not installed: pip install 'bp[tensorboard]'") from error
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(self.folder))

    def on_log(self, trainer: "Trainer", record: Record) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name not in ("step", "time") and isinstance(value, (int, float))
        ]
        self._writer.add_event(Event(wall_time=record["time"], step=record["step"], summary=Summary(value=values)))

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
