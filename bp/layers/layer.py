"""Layer: the base of everything that has a forward pass and a hand-derived backward pass."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from bp.errors import BPError, BuildError, ConfigurationError, ShapeError
from bp.initializers import generator_for
from bp.layers.arena import Arena
from bp.layers.context import Context
from bp.layers.parameter import Buffer, Parameter
from bp.ops import scope
from bp.ops.array import Array, Shape, known_dtype
from bp.ops.device import PRECISIONS, Device, find_device


class Layer:
    """A forward and a backward pass over arrays.

    A layer of its own writes three methods, and makes its parameters, buffers and inner layers as attributes:

        declare(input_shape) -> output_shape    give the parameters their shapes; shapes are without the batch
        forward(x, ctx) -> y                    compute, and ctx.save(self, ...) what backward needs
        backward(dy, ctx) -> dx                 ... = ctx.take(self); write parameter gradients, return dL/dx

    A layer made of layers calls their three methods in its own (backward in the reverse order of forward), which
    is all it takes to write any directed graph by hand; see `docs/layers.md`.
    """

    _name = ""
    _arena: Arena | None = None
    _frozen_arena: Arena | None = None
    _built = False
    _input_shape: Shape | None = None  # of one sample, as given to build

    # What a layer writes ----------------------------------------------------------------------------------

    def declare(self, input_shape: Shape) -> Shape:
        """Give the parameters their shapes for samples of `input_shape` and return the output's shape.

        Both shapes are of one sample, without the batch. The default suits a layer without parameters whose output
        looks like its input. Called again for a layer that is used twice.
        """
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        """Compute the output for a batch and save on `ctx` what `backward` takes back."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Array, ctx: Context) -> Array:
        """From dL/dy write the parameter gradients and return dL/dx."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        """`backward` where nobody asks for dL/dx, as in the first layer of a network.

        Layers whose input gradient costs a product of its own (Linear, Conv2d) leave it out here.
        """
        self.backward(dy, ctx)

    # What a user calls ------------------------------------------------------------------------------------

    def __call__(self, x: Array) -> Array:
        """The output in inference mode; nothing is kept for a backward pass."""
        return self.forward(x, Context())

    def build(
        self,
        input_shape: Shape,
        *,
        device: str | Device = "cpu",
        dtype: Any = "float32",
        seed: int = 0,
    ) -> Shape:
        """Infer all sizes for samples of `input_shape`, lay out the parameters in one arena and draw their values.

        input_shape: of one sample, without the batch. dtype: of parameters and activations; beside a 16-bit one the
        arena keeps float32 masters. seed: each parameter
        draws from a generator keyed by the seed and its own name, so adding a layer leaves the others' values alone.
        Returns the output's shape. Raises BuildError if already built, ConfigurationError for a dtype that the device
        does not compute in, ShapeError where sizes do not fit; then the model is as it was.
        """
        if self._built:
            raise BuildError(f"{self.label}: already built; parameters cannot be laid out twice")
        owner = find_device(device) if isinstance(device, str) else device
        dtype = _parameter_dtype(dtype, owner)
        undeclared = [owned for owned in self._values() if owned.shape is None]
        layers = list(self.named_layers())
        for _, layer in layers:
            if layer._built:
                raise BuildError(f"{layer.label}: already built as part of another model")
        for name, parameter in self.named_parameters():
            if parameter._arena is not None:
                raise BuildError(f"parameter '{name}' has its memory in another model, as '{parameter.name}'")
        for name, layer in layers:
            layer._name = name
        try:
            output_shape = self.declare(tuple(input_shape))
            for name, parameter in self.named_parameters():
                if parameter.shape is None:
                    raise BuildError(f"parameter '{name}' was given no shape: its layer's declare() was not called")
            self._lay_out(owner, dtype)
            for name, parameter in self.named_parameters():
                drawn = parameter.initializer(parameter.shape, generator_for(seed, name))  # type: ignore[arg-type]
                parameter.value = np.asarray(drawn)
            for _, layer in layers:
                layer._built = True
        finally:
            if not self._built:  # whatever failed, the model can be built again, with other sizes
                self._arena = self._frozen_arena = None
                for owned in self._values():
                    owned._release()
                for owned in undeclared:
                    owned.shape = None
        self._input_shape = tuple(input_shape)
        return output_shape

    def copy(self, *, device: str | Device | None = None, dtype: Any = None) -> Self:
        """A built copy of a built model with the same parameters and buffers, on another device or in another dtype."""
        old = self.arena
        owner = old.device if device is None else find_device(device) if isinstance(device, str) else device
        dtype = old.dtype if dtype is None else _parameter_dtype(dtype, owner)
        new = copy.deepcopy(self)
        if owner is not old.device or dtype != old.dtype:
            values = [np.array(old.device.to_host(owned.master)) for owned in new._values()]
            new._lay_out(owner, dtype)
            for owned, value in zip(new._values(), values, strict=True):
                owned.value = value
        return new

    def _values(self) -> Iterator[Parameter | Buffer]:
        for _, parameter in self.named_parameters():
            yield parameter
        for _, buffer in self.named_buffers():
            yield buffer

    def _lay_out(self, device: Device, dtype: Any) -> None:
        """Give every parameter and buffer of a declared tree its memory."""
        parameters = []
        for name, parameter in self.named_parameters():
            parameter.name = name
            parameters.append(parameter)
        self._arena = Arena((p for p in parameters if p.trainable), device, dtype)
        self._frozen_arena = Arena((p for p in parameters if not p.trainable), device, dtype, trainable=False)
        for name, buffer in self.named_buffers():
            buffer.name = name
            buffer._device = device
            buffer._value = device.zeros(buffer.shape or (), self._arena.values.dtype)
            device.fill(buffer._value, buffer.initial)

    @property
    def arena(self) -> Arena:
        """The memory of the trainable parameters; raises BuildError before `build`."""
        if self._arena is None:
            if self._built:
                raise BuildError(f"{self.label}: its parameters lie in the arena of the model that it is part of")
            raise BuildError(f"{self.label}: not built yet; call model.build(input_shape) first")
        return self._arena

    @property
    def frozen_arena(self) -> Arena:
        """The memory of the parameters that are not trained; raises BuildError before `build`."""
        if self._frozen_arena is None:
            raise BuildError(f"{self.label}: not built yet; call model.build(input_shape) first")
        return self._frozen_arena

    @property
    def built(self) -> bool:
        """Whether the parameters have memory and values."""
        return self._built

    @property
    def label(self) -> str:
        """How errors name this layer: its class and its path in the model."""
        return f"{type(self).__name__} '{self._name}'" if self._name else type(self).__name__

    def expect(self, what: str, declared: int | None, input_shape: Shape, axis: int) -> int:
        """The size of `input_shape` along `axis`, checked against the declared one (None: inferred)."""
        if len(input_shape) < (axis + 1 if axis >= 0 else -axis):
            raise ShapeError(f"expected input samples with an axis {axis} for the {what}, got shape {input_shape}")
        if declared is not None and input_shape[axis] != declared:
            raise ShapeError(f"expected {declared} {what} along axis {axis} of a sample, got shape {input_shape}")
        return input_shape[axis]

    # Walking the tree -------------------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """(name, layer) of the layers directly inside: attributes, and lists or tuples of layers as name.index."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{name}.{index}", item

    def named_layers(self) -> Iterator[tuple[str, "Layer"]]:
        """(path, layer) of this layer and all below, each once, in order of definition."""
        seen: set[int] = set()

        def walk(layer: Layer, path: str) -> Iterator[tuple[str, Layer]]:
            if id(layer) not in seen:
                seen.add(id(layer))
                yield path, layer
                for name, child in layer.children():
                    yield from walk(child, f"{path}.{name}" if path else name)

        return walk(self, "")

    def named_parameters(self, *, aliases: bool = False) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter), in layer order. A tied parameter comes once, under its first name; with `aliases`
        under each of its names."""
        return self._named(Parameter, aliases)

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """(path, buffer), in layer order."""
        return self._named(Buffer, False)

    def _named(self, kind: type, aliases: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, layer in self.named_layers():
            for name, value in vars(layer).items():
                if isinstance(value, kind) and (aliases or id(value) not in seen):
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    # House rules ------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        current = vars(self).get(name)
        held = isinstance(current, (Parameter, Buffer))
        hint = f"; to change its values, assign to .{name}.value" if held else ""
        if self._built and (_holds_parameters(current) or _holds_parameters(value)):
            raise BuildError(f"{self.label}: '{name}' cannot be set after the build, the parameters are laid out{hint}")
        if held and hasattr(value, "shape") and not isinstance(value, (Parameter, Buffer)):
            kind = type(current).__name__
            raise BuildError(f"{self.label}: '{name}' is a {kind} and cannot become an array{hint}, after the build")
        object.__setattr__(self, name, value)

    def __init_subclass__(cls) -> None:
        """Let errors raised inside a layer's own methods name the layer."""
        super().__init_subclass__()
        for method in ("declare", "forward", "backward", "backward_parameters"):
            if method in vars(cls):
                setattr(cls, method, _located(vars(cls)[method]))


def _holds_parameters(value: Any) -> bool:
    """Whether an attribute of this value is part of the tree that a build lays out."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Layer) for item in value)
    return isinstance(value, (Parameter, Buffer, Layer))


def _parameter_dtype(dtype: Any, device: Device) -> np.dtype[Any]:
    """The dtype of parameters, checked: one that the device computes in."""
    names = list(dict.fromkeys(PRECISIONS[precision] for precision in device.precisions))
    try:
        known = known_dtype(dtype)
    except TypeError:
        known = None
    if known is None or known.name not in names or not np.dtype(dtype).isnative:
        raise ConfigurationError(
            f"dtype {dtype} is not one that models compute in on device '{device.name}': expected {' or '.join(names)} "
            "(a gradient is no integer)"
        )
    return known


def _located(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Layer, *arguments: Any, **keywords: Any) -> Any:
        try:
            if scope.watched:
                with scope.enter(self.label, method.__name__.partition("_")[0]):
                    return method(self, *arguments, **keywords)
            return method(self, *arguments, **keywords)
        except BPError as error:
            raise error.at(self.label) from error.__cause__

    return call
