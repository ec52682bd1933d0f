"""The errors that bp raises on bad input; each says what was expected and what came.

All derive from `BPError`, so the command line can turn any of them into one line and exit code 2; each
also derives from the built-in exception that NumPy or PyTorch would raise in its place.
"""

from typing import Self


class BPError(Exception):
    """Base of every error that bp raises on purpose."""

    place: str | None = None

    def at(self, place: str) -> Self:
        """Prefix the message with the layer or file it concerns; the innermost place stays."""
        if self.place is None:
            self.place = place
            self.args = (f"{place}: {self.args[0] if self.args else ''}",)
        return self


class Notice(RuntimeWarning):
    """What a user should know of, and no error; the command line prints it in one line."""


class ShapeError(BPError, ValueError):
    """An array has the wrong rank or size."""


class DtypeError(BPError, TypeError):
    """An array has the wrong element type."""


class DataError(BPError, ValueError):
    """A data set or file does not hold what it should (truncated, foreign, NaN, label outside the classes)."""


class ConfigurationError(BPError, ValueError):
    """A setting, recipe key or device name that bp does not have or cannot honour here."""


class BuildError(BPError, RuntimeError):
    """A layer was used before it was built, or changed after its parameters were frozen."""


class BackwardError(BPError, RuntimeError):
    """Backward was called without its forward, twice, or in the wrong order."""


class CheckpointError(BPError, ValueError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class CompilationError(BPError, RuntimeError):
    """A kernel does not compile, or what it compiles to breaks a rule of the compile gate."""
