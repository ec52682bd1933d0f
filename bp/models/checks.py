"""What builders check before they build: errors then name the model and its setting rather than a layer inside."""

from collections.abc import Sequence

from bp.errors import ConfigurationError, ShapeError
from bp.ops.array import Shape


def image_channels(model: str, input_shape: Shape) -> int:
    """The channels of samples that are images; raises ShapeError where they are not."""
    if len(input_shape) != 3:
        raise ShapeError(f"{model} expected images, samples of shape (H, W, C), got samples of shape {input_shape}")
    return input_shape[-1]


def at_least_one(model: str, **sizes: int | Sequence[int]) -> None:
    """Raise ConfigurationError where a size, or one of several, is below 1."""
    for name, size in sizes.items():
        if min([size] if isinstance(size, int) else size, default=1) < 1:
            raise ConfigurationError(f"{model} expected {name} of at least 1, got {size}")
