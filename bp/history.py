"""History: the records of a training run, as a table that grows."""

from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]


class History:
    """What `Trainer.fit` returns: one record per log step and per evaluation, in order.

    Every record has "step" (optimizer steps done), "epoch" (epochs done, a fraction within one), "time" (when it was
    made, in seconds since 1970) and some of: "loss", "lr", "grad_norm", "ms_per_step", "samples_per_second" (log
    steps), "valid_loss", "valid_accuracy" and so on (evaluations). `history["loss"]` is the list of all values of that
    name, `history.steps("loss")` their steps.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        """Add a record; `step` never decreases."""
        self.records.append(record)

    def __getitem__(self, name: str) -> list[Any]:
        return [record[name] for record in self.records if name in record]

    def steps(self, name: str) -> list[int]:
        """The steps at which `name` was recorded, aligned with `history[name]`."""
        return [record["step"] for record in self.records if name in record]

    def last(self, name: str) -> Any:
        """The latest value of that name, or None."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    @property
    def names(self) -> list[str]:
        """All recorded names, in order of first appearance."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)
