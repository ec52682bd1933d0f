"""Normalisation layers: activations of mean 0 and variance 1, then a learned scale and shift."""

import math
from typing import ClassVar

import bp.ops.norm as ops
from bp.errors import ConfigurationError, ShapeError
from bp.initializers import Ones, Zeros
from bp.layers.context import Context
from bp.layers.layer import Layer, _located
from bp.layers.parameter import Buffer, Parameter, gradients
from bp.layers.settings import number, size, size_or_none
from bp.ops.array import Array, Shape


class _Normalisation(Layer):
    """A layer with a scale `weight`, at first 1, and a shift `bias`, at first 0; either may be None.

    Weight decay applies to neither: it would pull the outputs to zero, and the next layer undoes a common scale.
    """

    def __init__(self, eps: float, scale: bool, shift: bool) -> None:
        self.eps = number(self, eps, "a finite eps > 0", lambda eps: 0 < eps < math.inf)
        self.weight = Parameter(Ones(), decay=False) if scale else None
        self.bias = Parameter(Zeros(), decay=False) if shift else None

    @property
    def scale_and_shift(self) -> tuple[Array | None, Array | None]:
        """The values of weight and bias."""
        return (
            None if self.weight is None else self.weight.value,
            None if self.bias is None else self.bias.value,
        )

    def declare_parameters(self, shape: Shape) -> None:
        """Give weight and bias their common shape."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.declare(shape)


class _BatchNorm(_Normalisation):
    """What BatchNorm1d and BatchNorm2d share; they differ in `batch_axes`, the axes by rank of the batch."""

    batch_axes: ClassVar[dict[int, str]]

    def __init__(
        self, num_features: int | None = None, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        super().__init__(eps, affine, affine)
        self.num_features = size_or_none(self, "num_features", num_features)
        self.momentum = number(self, momentum, "momentum in [0, 1]", lambda momentum: 0 <= momentum <= 1)
        self.running_mean = Buffer(0.0)
        self.running_var = Buffer(1.0)

    def declare(self, input_shape: Shape) -> Shape:
        self._check_rank(("N", *input_shape))
        channels = self.expect("channels", self.num_features, input_shape, axis=-1)
        self.declare_parameters((channels,))
        self.running_mean.declare((channels,))
        self.running_var.declare((channels,))
        return input_shape

    def _check_rank(self, shape: tuple[int | str, ...]) -> None:
        if len(shape) not in self.batch_axes:
            expected = " or ".join(self.batch_axes.values())
            raise ShapeError(f"expected a batch with axes {expected}, got shape ({', '.join(map(str, shape))})")

    def forward(self, x: Array, ctx: Context) -> Array:
        self._check_rank(x.shape)
        y, mean, rstd = ops.batch_norm(
            x, *self.scale_and_shift, *self._running(ctx), ctx.training, self.momentum, self.eps
        )
        ctx.save(self, x, mean, rstd, ctx.training)
        return y

    @_located
    def forward_of(self, x: Array, mean: Array, rest: Array | None, variance: Array, ctx: Context) -> Array:
        """`forward` in training, of an x whose statistics are known."""
        y, rstd = ops.batch_norm_of(
            x, mean, rest, variance, *self.scale_and_shift, *self._running(ctx), self.momentum, self.eps
        )
        ctx.save(self, x, mean, rstd, True)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        x, mean, rstd, training = ctx.take(self)
        weight, _ = self.scale_and_shift
        dweight, dbias, accumulate = gradients(self.weight, self.bias)
        return ops.batch_norm_backward(dy, x, weight, mean, rstd, dweight, dbias, accumulate, training)

    def _running(self, ctx: Context) -> tuple[Array | None, Array | None]:
        """The running statistics; None where the first run of this pass has updated them already."""
        if ctx.training and ctx.recomputing:
            return None, None
        return self.running_mean.value, self.running_var.value


class BatchNorm1d(_BatchNorm):
    """Normalise each channel of (N, C) or (B, T, C) over the batch, and over time where there is one.

    num_features: C; None infers it. In training the statistics are those of the batch (at least two values per
    channel), and `running_mean` and `running_var` follow them, new = (1 - momentum) old + momentum batch; in inference
    the running ones are used. affine: with `weight` and `bias`, both (C,). Backward: see `bp.ops.norm.batch_norm`.
    A sample's output depends on its batch, so accumulated micro-batches do not give the gradient of the whole batch.
    """

    batch_axes: ClassVar[dict[int, str]] = {2: "(N, C)", 3: "(B, T, C)"}


class BatchNorm2d(_BatchNorm):
    """Normalise each channel of (N, H, W, C) over the batch and all pixels; otherwise as `BatchNorm1d`."""

    batch_axes: ClassVar[dict[int, str]] = {4: "(N, H, W, C)"}


class LayerNorm(_Normalisation):
    """Normalise each sample or token over its last axes.

    normalized_shape: the sizes of those axes, one number for one axis; None takes the last axis.
    elementwise_affine: with `weight`, and with `bias` unless that is False, both of the normalised shape.
    Backward: see `bp.ops.norm.layer_norm`.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | None = None,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(eps, elementwise_affine, elementwise_affine and bias)
        self.normalized_shape = _sizes(self, normalized_shape)

    def declare(self, input_shape: Shape) -> Shape:
        self.declare_parameters(_trailing(self.normalized_shape, input_shape))
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        axes = len(self.normalized_shape or (None,))
        y, mean, rstd = ops.layer_norm(x, *self.scale_and_shift, axes, self.eps)
        ctx.save(self, x, mean, rstd)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        x, mean, rstd = ctx.take(self)
        weight, _ = self.scale_and_shift
        return ops.layer_norm_backward(dy, x, weight, mean, rstd, *gradients(self.weight, self.bias))


class RMSNorm(_Normalisation):
    """Divide each sample or token by its root mean square over its last axes, then scale; there is no shift.

    normalized_shape: as of `LayerNorm`. elementwise_affine: with `weight`, of the normalised shape.
    Backward: see `bp.ops.norm.rms_norm`.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | None = None,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__(eps, elementwise_affine, False)
        self.normalized_shape = _sizes(self, normalized_shape)

    def declare(self, input_shape: Shape) -> Shape:
        self.declare_parameters(_trailing(self.normalized_shape, input_shape))
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        weight, _ = self.scale_and_shift
        y, rstd = ops.rms_norm(x, weight, len(self.normalized_shape or (None,)), self.eps)
        ctx.save(self, x, rstd)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        x, rstd = ctx.take(self)
        weight, _ = self.scale_and_shift
        return ops.rms_norm_backward(dy, x, weight, rstd, *gradients(self.weight))


class GroupNorm(_Normalisation):
    """Normalise each sample (N, ..., C) over all positions and the channels of a group.

    num_channels: C, which num_groups divides; None infers it. num_groups = 1 normalises whole samples, num_groups = C
    each channel by itself (instance norm). affine: with `weight` and `bias`, both (C,).
    Backward: see `bp.ops.norm.group_norm`.
    """

    def __init__(
        self, num_groups: int, num_channels: int | None = None, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__(eps, affine, affine)
        self.num_groups = size(self, "num_groups", num_groups)
        self.num_channels = size_or_none(self, "num_channels", num_channels)

    def declare(self, input_shape: Shape) -> Shape:
        channels = self.expect("channels", self.num_channels, input_shape, axis=-1)
        if channels % self.num_groups:
            raise ShapeError(f"expected channels that {self.num_groups} groups divide, got samples {input_shape}")
        self.declare_parameters((channels,))
        return input_shape

    def forward(self, x: Array, ctx: Context) -> Array:
        y, mean, rstd = ops.group_norm(x, *self.scale_and_shift, self.num_groups, self.eps)
        ctx.save(self, x, mean, rstd)
        return y

    def backward(self, dy: Array, ctx: Context) -> Array:
        x, mean, rstd = ctx.take(self)
        weight, _ = self.scale_and_shift
        return ops.group_norm_backward(dy, x, weight, mean, rstd, *gradients(self.weight, self.bias))


def _sizes(layer: Layer, normalized_shape: int | tuple[int, ...] | None) -> Shape | None:
    """As a tuple; None stands for the last axis, whatever its size."""
    if normalized_shape is None:
        return None
    sizes = tuple(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if not sizes:
        raise ConfigurationError("expected normalized_shape with at least one axis, got ()")
    return tuple(size(layer, "normalized_shape", axis) for axis in sizes)


def _trailing(normalized_shape: Shape | None, input_shape: Shape) -> Shape:
    """The shape of the last axes of `input_shape`, checked against the given one (None: the last axis)."""
    axes = len(normalized_shape or (None,))
    if len(input_shape) < axes or normalized_shape not in (None, input_shape[-axes:]):
        expected = "at least one axis" if normalized_shape is None else f"the last sizes {normalized_shape}"
        raise ShapeError(f"expected samples with {expected} to normalise over, got shape {input_shape}")
    return input_shape[-axes:]
