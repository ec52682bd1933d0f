"""Parameter and Buffer: named arrays of a layer, with stable memory once the model is built."""

import copy
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bp.errors import BuildError, ShapeError
from bp.initializers import Initializer
from bp.ops.array import Array, Shape

if TYPE_CHECKING:
    from bp.layers.arena import Arena
    from bp.ops.device import Device


class Parameter:
    """A trained array. A layer makes it in its constructor, gives it a shape in `declare`, and the model's arena
    gives it memory when the model is built.

    decay: whether weight decay applies (not to biases and the scales of normalisations).
    trainable: False freezes it: it gets no gradient and no optimizer state. To be set before the build.
    """

    def __init__(self, initializer: Initializer, *, decay: bool = True, trainable: bool = True) -> None:
        self.initializer = initializer
        self.decay = decay
        self.name = ""
        self.shape: Shape | None = None
        self._trainable = trainable
        self._value: Array | None = None
        self._master: Array | None = None
        self._grad: Array | None = None
        self._arena: Arena | None = None
        self._written = False

    @property
    def trainable(self) -> bool:
        """Whether the optimizer changes it; fixed at build, since frozen parameters have memory of their own."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if self._arena is not None:
            raise BuildError(f"parameter '{self.name}' is built: set trainable before model.build()")
        self._trainable = value

    def declare(self, shape: Shape) -> None:
        """Fix the shape; a parameter that is shared is declared by each of its users, with the same shape."""
        if self.shape is not None and self.shape != shape:
            raise ShapeError(f"a parameter of shape {self.shape} cannot also have shape {shape}")
        self.shape = shape

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape or ():
            count *= length
        return count

    @property
    def value(self) -> Array:
        """The array, of the declared shape; assigning (an array, or lists) copies into it: its memory never moves.

        In a 16-bit precision it is the copy that kernels read; assigning changes the master and the copy.
        """
        if self._value is None:
            raise BuildError("not built yet: call model.build(input_shape) first")
        return self._value

    @value.setter
    def value(self, new: Any) -> None:
        copy_into(self._device, self.master, new, f"parameter '{self.name}' expected a value")
        if self._value is not self._master:
            self._device.copy(self._value, self._master)

    @property
    def master(self) -> Array:
        """What the optimizer updates and checkpoints hold: `value` itself, in float32 where `value` is of 16 bits."""
        if self._master is None:
            raise BuildError("not built yet: call model.build(input_shape) first")
        return self._master

    @property
    def _device(self) -> "Device":
        if self._arena is None:
            raise BuildError("not built yet: call model.build(input_shape) first")
        return self._arena.device

    @property
    def grad(self) -> Array | None:
        """dL/dvalue: the sum of all contributions since the last optimizer step, zero where there were none.

        None for a frozen parameter. Assigning copies.
        """
        if self._grad is not None and not self._written:
            self._device.fill(self._grad, 0)
            self._written = True
        return self._grad

    @grad.setter
    def grad(self, new: Any) -> None:
        if self._grad is None:
            raise BuildError(f"parameter '{self.name}' is frozen or not built: it has no gradient")
        copy_into(self._device, self._grad, new, f"parameter '{self.name}' expected a gradient")
        self._written = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy has its memory, as this one, in an arena: a copy of the whole arena, once for all that it holds."""
        new = memo[id(self)] = object.__new__(type(self))
        vars(new).update(vars(self))
        new.initializer = copy.deepcopy(self.initializer, memo)
        new._value = new._master = new._grad = None
        new._arena = copy.deepcopy(self._arena, memo)  # which gives `new` its views
        return new

    def __getstate__(self) -> dict[str, Any]:
        if self._arena is not None:
            raise TypeError(
                f"parameter '{self.name}' is a view of the memory of its model, which pickle would tear apart: use "
                "bp.save_weights and load_weights, model.copy(), or pickle the model before it is built"
            )
        return dict(vars(self))

    def _release(self) -> None:
        """Let go of the memory that a failed build gave."""
        self._value = self._master = self._grad = self._arena = None
        self._written = False

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.shape}, trainable={self.trainable})"


def gradients(*parameters: Parameter | None) -> tuple[Any, ...]:
    """Where the backward of a layer writes the gradients of `parameters`: one array each, then `accumulate`.

    An absent or frozen parameter gives None. The first contribution after an optimizer step overwrites
    (accumulate is False), so gradients are never cleared in a pass of their own; later ones add. Where the
    parameters disagree (one of them is tied to another layer), the fresh ones are zeroed and all add.
    """
    wanted = [p for p in parameters if p is not None and p.trainable]
    accumulate = any(p._written for p in wanted)
    for parameter in wanted:
        if accumulate and not parameter._written:
            parameter._device.fill(parameter._grad, 0)
        parameter._written = True
    return (*(None if p is None else p._grad for p in parameters), accumulate)


def copy_into(device: "Device", memory: Array, new: Any, expected: str) -> None:
    """Copy `new`, an array of the device or of the host or nested lists of numbers, into memory of the same shape."""
    if not hasattr(new, "shape"):
        try:
            new = np.asarray(new, memory.dtype)
        except (TypeError, ValueError) as error:
            raise ShapeError(f"{expected} of shape {memory.shape}, got what is no array: {new!r:.80}") from error
    if tuple(new.shape) != memory.shape:
        raise ShapeError(f"{expected} of shape {memory.shape}, got {tuple(new.shape)}")
    device.copy(memory, new)


class Buffer:
    """An array that belongs to the model but is not trained, such as a running mean; its memory never moves.

    initial: the value of every element at build.
    """

    def __init__(self, initial: float = 0.0) -> None:
        self.initial = initial
        self.name = ""
        self.shape: Shape | None = None
        self._value: Array | None = None
        self._device: Device | None = None

    def declare(self, shape: Shape) -> None:
        """Fix the shape."""
        if self.shape is not None and self.shape != shape:
            raise ShapeError(f"a buffer of shape {self.shape} cannot also have shape {shape}")
        self.shape = shape

    @property
    def value(self) -> Array:
        """The array; assigning copies into it."""
        if self._value is None:
            raise BuildError("not built yet: call model.build(input_shape) first")
        return self._value

    @value.setter
    def value(self, new: Any) -> None:
        memory = self.value
        if self._device is not None:
            copy_into(self._device, memory, new, f"buffer '{self.name}' expected a value")

    @property
    def master(self) -> Array:
        """`value`: a buffer is float32 also in a 16-bit precision."""
        return self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with memory of its own on the same device."""
        new = memo[id(self)] = object.__new__(type(self))
        vars(new).update(vars(self))
        if self._device is not None and self._value is not None:
            new._value = self._device.zeros(self._value.shape, self._value.dtype)
            self._device.copy(new._value, self._value)
        return new

    def _release(self) -> None:
        """Let go of the memory that a failed build gave."""
        self._value = self._device = None
