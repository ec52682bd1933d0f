"""Trigger: when a callback acts, written as users say it: "every 100 steps", "every 1 epoch"."""

import re
from dataclasses import dataclass

from bp.errors import ConfigurationError

_FORM = re.compile(r"every\s+(\d+)?\s*(step|epoch)s?", re.IGNORECASE)


@dataclass(frozen=True)
class Trigger:
    """Fires after every `period` steps or epochs."""

    period: int
    unit: str

    @classmethod
    def parse(cls, text: "str | Trigger") -> "Trigger":
        """From "every 100 steps", "every 2 epochs" or "every epoch"; raises ConfigurationError on anything else."""
        if isinstance(text, Trigger):
            return text
        match = _FORM.fullmatch(text.strip())
        if match is None or match[1] == "0":
            raise ConfigurationError(f"trigger {text!r}: expected 'every N steps' or 'every N epochs', with N >= 1")
        return cls(int(match[1] or 1), match[2].lower())

    def fires(self, step: int, epoch: int, *, epoch_ended: bool) -> bool:
        """Whether to act now, with `step` steps and `epoch` whole epochs done; `epoch_ended`: by the last step."""
        if self.unit == "step":
            return step > 0 and step % self.period == 0
        return epoch_ended and epoch % self.period == 0

    def __str__(self) -> str:
        return f"every {self.period} {self.unit}{'s' if self.period > 1 else ''}"
