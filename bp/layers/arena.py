"""Arena: all parameters of a model in one flat array, their gradients in a second of the same layout."""

import copy
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from bp.layers.parameter import Parameter
from bp.ops.array import Array, known_dtype
from bp.ops.device import Device
from bp.ops.optimizer import TILE


class Arena:
    """Flat memory for parameters, in the order given; padding between them is zero and stays zero.

    Every parameter starts at a multiple of TILE elements (512 bytes in float32): views are aligned for any vector
    access, and a tile belongs to one parameter, so the optimizer finds its group by tile.

    Optimizer moments, averages and low-precision copies take the same layout (`zeros_like`), so an optimizer step,
    a gradient norm or a cast is one pass over flat memory for the whole model.

    dtype: of what layers compute with. values, gradients: arrays of `size` elements (gradients None for an arena of
    frozen parameters), float32 where `dtype` is a 16-bit float: a step is often smaller than half a unit in the last
    place of such a weight. low_precision: then the copy of the values in `dtype`, else None. offsets: first element by
    parameter name.
    """

    def __init__(self, parameters: Iterable[Parameter], device: Device, dtype: Any, *, trainable: bool = True) -> None:
        self.parameters = list(parameters)
        self.device = device
        self.offsets: dict[str, int] = {}
        offset = 0
        for parameter in self.parameters:
            self.offsets[parameter.name] = offset
            offset += -(-parameter.size // TILE) * TILE
        self.size = offset
        self.dtype = known_dtype(dtype)
        narrow = self.dtype.itemsize == 2
        wide = np.dtype(np.float32) if narrow else self.dtype
        self.values = device.zeros((offset,), wide)
        self.low_precision: Array | None = device.zeros((offset,), self.dtype) if narrow else None
        self.gradients: Array | None = device.zeros((offset,), wide) if trainable else None
        self._give_memory()

    def _give_memory(self) -> None:
        for parameter in self.parameters:
            parameter._arena = self
            parameter._master = parameter._value = self.view(self.values, parameter)
            if self.low_precision is not None:
                parameter._value = self.view(self.low_precision, parameter)
            if self.gradients is not None:
                parameter._grad = self.view(self.gradients, parameter)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy whose parameters are copied with it, and lie in the copy as the old ones do in this one."""
        new = memo[id(self)] = object.__new__(type(self))
        vars(new).update(vars(self))
        new.offsets = dict(self.offsets)
        new.parameters = copy.deepcopy(self.parameters, memo)
        for name in ("values", "low_precision", "gradients"):
            flat = getattr(self, name)
            if flat is not None:
                setattr(new, name, self.device.zeros(flat.shape, flat.dtype))
                self.device.copy(getattr(new, name), flat)
        new._give_memory()
        return new

    def view(self, flat: Array, parameter: Parameter) -> Array:
        """The part of an array of this layout that belongs to `parameter`, in its shape."""
        start = self.offsets[parameter.name]
        return flat[start : start + parameter.size].reshape(parameter.shape)

    def refresh_low_precision(self) -> None:
        """Round the values to the low-precision copy anew, where there is one: after they were written as a whole."""
        if self.low_precision is not None:
            self.device.copy(self.low_precision, self.values)

    def zeros_like(self) -> Array:
        """A new array of this layout, for a moment or an average."""
        return self.device.zeros((self.size,), self.values.dtype)

    def complete_gradients(self) -> None:
        """Zero the gradients that no backward wrote since the last step: their old values must not count."""
        for parameter in self.parameters:
            if not parameter._written:
                self.device.fill(parameter._grad, 0)
                parameter._written = True

    def consume_gradients(self) -> None:
        """Mark every gradient as used: the next contribution overwrites."""
        for parameter in self.parameters:
            parameter._written = False
