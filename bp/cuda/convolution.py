"""A convolution as every rung takes it: its sizes, which of the three products, the arrays, what follows."""

import math
from dataclasses import dataclass
from typing import Any

from bp.cuda.choice import Problem
from bp.cuda.device import device_of, empty
from bp.cuda.epilogue import PLAIN, Destination, Epilogue
from bp.cuda.product import uses_tf32
from bp.cuda.tensor_map import can_load_pixels
from bp.cuda.wgmma_tiles import MOST
from bp.errors import ShapeError
from bp.ops.array import Array, Shape
from bp.ops.conv import Padding, Pair

# For the FLOPs and bytes of a launch, in the names of CONVOLUTION_PARAMETERS in kernels/include/convolution.cuh.
_X, _Y, _WEIGHTS = "images * h * w * channels", "images * p * q * out", "out * kh * kw * (channels // groups)"
FLOPS = f"2 * images * p * q * {_WEIGHTS}"
# Forward and backward_input: an epilogue has `before` beside y, `kept` beside dx, and a bias of one of the two.
BYTES = f"({_X} * (1 + given(kept)) + {_Y} * (1 + given(before)) + {_WEIGHTS} + given(bias) * min(out, channels)) * T"
WIDE_BYTES = f"({_X} + {_Y}) * T + {_WEIGHTS} * (1 + given(beta)) * 4"  # gradients of weights are float32
BYTES_OF = {"forward": BYTES, "backward_input": BYTES, "backward_parameters": WIDE_BYTES}  # by way

SLICE = 64  # channels of the patches that the copy engine brings at a time, in 16 bits


@dataclass(frozen=True)
class Sizes:
    """Of a convolution, in whichever direction it is run. wide: of what it reads, narrow: of its result.

    Raises ShapeError for images of 2^31 rows or columns.
    """

    wide: Shape
    narrow: Shape
    weight: Shape
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int

    def __post_init__(self) -> None:
        if max(*self.wide[1:3], *self.narrow[1:3]) + max(map(sum, self.padding)) >= 2**31:
            raise ShapeError(f"convolutions expected padded images of less than 2^31 rows and columns, got {self.wide}")

    @property
    def group_in(self) -> int:
        """Channels that one output channel sees."""
        return self.weight[3]

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.narrow[3] // self.groups

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return self.weight[1] * self.weight[2]

    @property
    def pixels(self) -> int:
        """Of all results."""
        return math.prod(self.narrow[:3])

    @property
    def counted(self) -> bool:
        """Whether the counters of kernels/include/conv_walk.cuh hold it: 16 bits for the taps along an axis, 32 for
        pixels and for the weights of a group, where the channels of a tap are filled up to whole slices."""
        lines, columns = (size + sum(padding) for size, padding in zip(self.wide[1:3], self.padding, strict=True))
        pixels = max(self.wide[0] * lines * columns, self.pixels)
        weights = self.taps * (self.group_in + SLICE) * (self.group_out + SLICE)
        return max(self.weight[1:3]) <= 16 and pixels < 2**30 and max(weights, self.wide[3], self.narrow[3]) < 2**31

    @property
    def periods(self) -> Pair:
        """Along each axis, from a tap that a pixel of the input is seen through to the next (Residue)."""
        vertical, horizontal = (s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))
        return vertical, horizontal


@dataclass(frozen=True)
class Windows:
    """Of a product along one axis, as the copy engine sees them (`bp.cuda.tensor_map.im2col`).

    positions: how many; lower, upper: of the first tap of the first and of the last one, from the first pixel and from
    the last one on; farthest: from a window's first tap to its last. taps: that fit them, of the kernel from first_tap
    on every period-th. first: of the pixels of backward_input.
    """

    positions: int
    lower: int
    upper: int
    farthest: int
    taps: int
    first: int = 0
    first_tap: int = 0
    period: int = 1


@dataclass
class Moments:
    """Of the channels of y, tile by tile, as a kernel gathered them while it stored y (tile_moments.cuh).

    array: None as long as no kernel did.
    """

    array: Array | None = None
    tiles: int = 0


@dataclass(frozen=True)
class Convolution:
    """One of the three products of a convolution, with checked operands.

        way                   a   b       c     rows of c, columns, depth (of one group)
        forward               x   weight  y     pixels of y, out, taps in
        backward_input        dy  weight  dx    pixels of x, in, taps out
        backward_parameters   dy  x       dW    out, taps in, pixels of y

    sums: with backward_parameters, (out,) float32: receives the sums of dy's columns, added to what it holds by beta.
    moments: with forward and an epilogue of a bias or nothing: receives those of y, if the rung gathers them.
    """

    way: str
    sizes: Sizes
    a: Array
    b: Array
    c: Array
    epilogue: Epilogue = PLAIN
    sums: Array | None = None
    moments: Moments | None = None

    def room(self, tiles: int) -> Array | None:
        """Where the kernel writes the moments of so many tiles; None where they are not wanted."""
        if self.moments is None:
            return None
        self.moments.tiles = tiles
        self.moments.array = empty(self.a, (tiles * (3 * self.sizes.narrow[3] + 1),), "float32")
        return self.moments.array

    @property
    def tf32(self) -> bool:
        """Whether the factors are rounded to tf32."""
        return uses_tf32(self.a)

    @property
    def product(self) -> tuple[int, int, int]:
        """(m, n, k) of one group; of backward_input those of the largest class of pixels (Residue)."""
        sizes = self.sizes
        if self.way == "forward":
            return sizes.pixels, sizes.group_out, sizes.taps * sizes.group_in
        if self.way == "backward_parameters":
            return sizes.group_out, sizes.taps * sizes.group_in, sizes.pixels
        (height, width), kernel = sizes.wide[1:3], sizes.weight[1:3]
        pixels = sizes.wide[0] * -(-height // sizes.stride[0]) * -(-width // sizes.stride[1])
        taps = math.prod(-(-k // period) for k, period in zip(kernel, sizes.periods, strict=True))
        return pixels, sizes.group_in, taps * sizes.group_out

    @property
    def products(self) -> int:
        """How many there are of that size: one for each group, and of backward_input for each class of pixels."""
        return self.sizes.groups * (math.prod(self.sizes.stride) if self.way == "backward_input" else 1)

    def windows(self, axis: int) -> tuple[Windows, ...]:
        """Along an axis (0: lines, 1: pixels of a line): one, or of backward_input one for each class of pixels.

        Those of a class see dy under the taps that fit them, in the other order (Residue in
        kernels/include/conv_operands.cuh); a class without pixels is left out.
        """
        sizes = self.sizes
        wide, narrow, kernel = sizes.wide[1 + axis], sizes.narrow[1 + axis], sizes.weight[1 + axis]
        stride, before, dilation = sizes.stride[axis], sizes.padding[axis][0], sizes.dilation[axis]
        if self.way != "backward_input":
            upper = (narrow - 1) * stride + 1 - before - wide
            return (Windows(narrow, -before, upper, (kernel - 1) * dilation, kernel),)
        period, found = sizes.periods[axis], []
        for first in range(min(stride, wide)):
            positions = -(-(wide - first) // stride)
            fitting = (u for u in range(min(period, kernel)) if (first + before - u * dilation) % stride == 0)
            first_tap = next(fitting, None)
            if first_tap is None:
                found.append(Windows(positions, 0, positions - narrow, 0, 0, first))
                continue
            taps = -(-(kernel - first_tap) // period)
            farthest = (taps - 1) * (dilation * period // stride)
            lower = (first + before - first_tap * dilation) // stride - farthest
            found.append(
                Windows(positions, lower, lower + positions - narrow, farthest, taps, first, first_tap, period)
            )
        return tuple(found)

    @property
    def im2col(self) -> bool:
        """Whether the copy engine of sm_90 can bring the patches.

        It cannot stop within a slice at the last channel of a group.
        """
        sizes, images = self.sizes, self.b if self.way == "backward_parameters" else self.a
        channels = sizes.group_out if self.way == "backward_input" else sizes.group_in
        if max(math.prod(self.c.shape[:3]), sizes.pixels, sizes.taps * (channels + SLICE)) > MOST:
            return False
        windows = [windows for axis in (0, 1) for windows in self.windows(axis)]
        corners = (corner for one in windows for corner in (one.lower, one.upper))
        farthest = max((one.farthest for one in windows), default=0)
        return (sizes.groups == 1 or channels % SLICE == 0) and can_load_pixels(
            corners, farthest, sizes.stride, images.nbytes
        )

    @property
    def problem(self) -> Problem:
        """It as the choice of a kernel sees it."""
        sizes, itemsize = self.sizes, self.a.itemsize
        places = device_of(self.a).pointer(self.a) | device_of(self.b).pointer(self.b)
        for channels in (sizes.wide[3], sizes.narrow[3], sizes.group_in, sizes.group_out):
            places |= channels * itemsize
        alignment = next((bytes for bytes in (16, 4) if places % bytes == 0), itemsize)
        dtype = "tf32" if self.tf32 else self.a.dtype.name
        return Problem(
            *("conv", self.way, *self.product, 1, dtype, alignment, sizes.groups),
            depthwise=sizes.group_in == 1,
            im2col=self.im2col,
            counted=sizes.counted,
        )

    @property
    def destination(self) -> Destination:
        """c as a matrix: a row for each pixel, or for each output channel; and the sums."""
        rows = self.c.shape[0] if self.way == "backward_parameters" else math.prod(self.c.shape[:3])
        columns = self.c.size // rows
        y, wide = (self.c, None) if self.c.dtype == self.a.dtype else (None, self.c)
        return Destination(y, wide, rows, columns, columns, sums=self.sums)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of CONVOLUTION_PARAMETERS."""
        sizes = self.sizes
        return (
            *(*sizes.wide[:3], *sizes.narrow[1:3], sizes.wide[3], sizes.narrow[3], *sizes.weight[1:3], sizes.groups),
            *(*sizes.stride, sizes.padding[0][0], sizes.padding[1][0], *sizes.dilation, self.tf32),
        )
