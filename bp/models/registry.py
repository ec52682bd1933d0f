"""The models that a recipe can name."""

from collections.abc import Callable

from bp.layers.containers import Sequential
from bp.registry import Registry

# A builder takes the shape of a sample, `classes` (the size of the output) and settings by keyword.
Builder = Callable[..., Sequential]

MODELS: Registry[Builder] = Registry("model")
