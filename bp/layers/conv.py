"""Conv2d and ConvTranspose2d: an output pixel is a weighted sum of the input around it, everywhere the same one."""

import bp.ops.conv as ops
from bp.errors import ConfigurationError, ShapeError
from bp.initializers import Initializer, KaimingUniform, Zeros
from bp.layers.context import Context
from bp.layers.layer import Layer
from bp.layers.parameter import Parameter, gradients
from bp.ops.array import Array, Shape
from bp.ops.conv import Padding, Pair

Geometry = tuple[Pair, Padding, Pair, int]


class _Convolution(Layer):
    """What both directions share: settings, checked, and parameters."""

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair,
        padding: int | Pair,
        dilation: int | Pair,
        groups: int,
        bias: bool,
        weight_initializer: Initializer | None,
        bias_initializer: Initializer | None,
    ) -> None:
        self.in_channels = in_channels
        self.out_channels = _at_least("out_channels", out_channels, 1)
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.dilation = _pair("dilation", dilation, 1)
        self.groups = _at_least("groups", groups, 1)
        vertical, horizontal = _pair("padding", padding, 0)
        self.padding: Padding = ((vertical, vertical), (horizontal, horizontal))
        self.weight = Parameter(weight_initializer or KaimingUniform())
        self.bias = Parameter(bias_initializer or Zeros(), decay=False) if bias else None

    @property
    def geometry(self) -> Geometry:
        """(stride, padding, dilation, groups), as the operations take them."""
        return self.stride, self.padding, self.dilation, self.groups

    def _channels(self, input_shape: Shape) -> int:
        """The input channels of a sample (H, W, C), which the groups must divide; declares the bias."""
        if len(input_shape) != 3:
            raise ShapeError(f"expected samples of shape (H, W, C), got {input_shape}")
        in_channels = self.expect("channels", self.in_channels, input_shape, axis=2)
        if in_channels % self.groups or self.out_channels % self.groups:
            raise ShapeError(
                f"expected groups that divide {in_channels} input and {self.out_channels} output channels, "
                f"got {self.groups}"
            )
        if self.bias is not None:
            self.bias.declare((self.out_channels,))
        return in_channels


class Conv2d(_Convolution):
    """Images (N, H, W, in_channels) -> (N, H', W', out_channels).

    in_channels: None infers it from the input at build. kernel_size, stride, padding, dilation: one number, or a
    pair for (H, W). padding: zeros on each side, or "valid" (none), or "same" (stride 1: the output has the size of the
    input; an even kernel puts the odd zero below and right). groups: channels are cut into that many independent
    convolutions. weight: (out_channels, kh, kw, in_channels / groups); bias: (out_channels,).
    Backward: derived in `bp.ops.conv`. Raises ConfigurationError for settings that cannot be, ShapeError at build
    where sizes do not fit.
    """

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        weight_initializer: Initializer | None = None,
        bias_initializer: Initializer | None = None,
    ) -> None:
        zeros = 0 if isinstance(padding, str) else padding
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            zeros,
            dilation,
            groups,
            bias,
            weight_initializer,
            bias_initializer,
        )
        if padding == "same":
            self.padding = self._same_padding()
        elif isinstance(padding, str) and padding != "valid":
            raise ConfigurationError(f'Conv2d expected padding to be numbers, "same" or "valid", got "{padding}"')

    def _same_padding(self) -> Padding:
        if self.stride != (1, 1):
            raise ConfigurationError(f'Conv2d expected stride 1 with padding "same", got {self.stride}')
        rows, columns = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)

    def declare(self, input_shape: Shape) -> Shape:
        in_channels = self._channels(input_shape)
        self.weight.declare((self.out_channels, *self.kernel_size, in_channels // self.groups))
        size = ops.convolved_size("conv2d", input_shape[:2], self.kernel_size, self.stride, self.padding, self.dilation)
        return (*size, self.out_channels)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        bias = None if self.bias is None else self.bias.value
        return ops.conv2d(x, self.weight.value, bias, *self.geometry)

    def backward(self, dy: Array, ctx: Context) -> Array:
        size = self.write_gradients(dy, *ctx.take(self))
        return ops.conv2d_backward_input(dy, self.weight.value, size, *self.geometry)

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        self.write_gradients(dy, *ctx.take(self))

    def write_gradients(self, dy: Array, x: Array) -> Pair:
        """Write the gradients of the parameters; returns the size of the images."""
        dweight, dbias, accumulate = gradients(self.weight, self.bias)
        ops.conv2d_backward_parameters(dy, x, dweight, dbias, accumulate, *self.geometry)
        return x.shape[1], x.shape[2]


class ConvTranspose2d(_Convolution):
    """Images (N, H, W, in_channels) -> (N, H', W', out_channels).

    H' = (H - 1) stride - 2 padding + dilation (kernel_size - 1) + 1 + output_padding, W' likewise.

    The transpose of the Conv2d with the same weight array: it maps images of the sizes that Conv2d gives back to those
    it takes, and is used to upsample. output_padding (less than the stride) picks among the sizes that Conv2d
    maps to one. weight: (in_channels, kh, kw, out_channels / groups); bias: (out_channels,). Other settings and errors
    as in Conv2d. Backward: derived in `bp.ops.conv`.
    """

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        output_padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Pair = 1,
        *,
        weight_initializer: Initializer | None = None,
        bias_initializer: Initializer | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            weight_initializer,
            bias_initializer,
        )
        self.output_padding = _pair("output_padding", output_padding, 0)

    def declare(self, input_shape: Shape) -> Shape:
        in_channels = self._channels(input_shape)
        self.weight.declare((in_channels, *self.kernel_size, self.out_channels // self.groups))
        size = ops.transposed_output_size(
            "conv_transpose2d",
            input_shape[:2],
            self.kernel_size,
            self.output_padding,
            self.stride,
            self.padding,
            self.dilation,
        )
        return (*size, self.out_channels)

    def forward(self, x: Array, ctx: Context) -> Array:
        ctx.save(self, x)
        bias = None if self.bias is None else self.bias.value
        return ops.conv_transpose2d(
            x, self.weight.value, bias, self.output_padding, self.stride, self.padding, self.dilation, self.groups
        )

    def backward(self, dy: Array, ctx: Context) -> Array:
        self.backward_parameters(dy, ctx)
        return ops.conv_transpose2d_backward_input(
            dy, self.weight.value, self.stride, self.padding, self.dilation, self.groups
        )

    def backward_parameters(self, dy: Array, ctx: Context) -> None:
        (x,) = ctx.take(self)
        dweight, dbias, accumulate = gradients(self.weight, self.bias)
        ops.conv_transpose2d_backward_parameters(
            dy, x, dweight, dbias, accumulate, self.stride, self.padding, self.dilation, self.groups
        )


def _at_least(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"a convolution expected {name} to be an integer of at least {least}, got {value!r}")
    return value


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    if not isinstance(value, tuple):
        value = (value, value)
    if len(value) != 2:
        raise ConfigurationError(f"a convolution expected {name} to be one integer or a pair (H, W), got {value}")
    return _at_least(name, value[0], least), _at_least(name, value[1], least)
