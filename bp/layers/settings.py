"""Checks of what layers are constructed with; each raises ConfigurationError with the class and what was expected."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeVar

from bp.errors import ConfigurationError
from bp.layers.layer import Layer

Value = TypeVar("Value")


def number(layer: Layer, value: Value, expected: str, fits: Callable[[Any], bool]) -> Value:
    """`value`, a real number that `fits`; `expected` says so with the argument's name, as in "a finite eps > 0"."""
    if isinstance(value, bool) or not isinstance(value, Real) or not fits(value):
        raise ConfigurationError(f"{type(layer).__name__} expected {expected}, got {value!r}")
    return value


def size(layer: Layer, name: str, value: Any) -> int:
    """`value`, an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigurationError(f"{type(layer).__name__} expected {name} as an integer >= 1, got {value!r}")
    return int(value)


def size_or_none(layer: Layer, name: str, value: Any) -> int | None:
    """None, which stands for a size that the input tells, or an integer of at least 1."""
    return None if value is None else size(layer, name, value)
