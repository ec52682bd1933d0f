"""The products of a layer, as a command line or a training step names them: described, run, or as a rung takes them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bp.cuda.convolution import Convolution, Sizes
from bp.cuda.device import CudaDevice
from bp.cuda.epilogue import Epilogue
from bp.cuda.ledger import Launch
from bp.cuda.product import Matrices, Product
from bp.errors import ConfigurationError
from bp.ops import conv, linear
from bp.ops.array import Array, Shape, known_dtype
from bp.ops.conv import Padding, Pair
from bp.ops.device import PRECISIONS

ON_GPU = ("fp32", "tf32", "fp16", "bf16")


class Layer(ABC):
    """A layer by its sizes. family: as `bp.cuda.choice` has it; ways: of its products, forward first."""

    family: ClassVar[str]
    ways: ClassVar[tuple[str, ...]]

    @abstractmethod
    def operands(self, way: str) -> dict[str, Shape]:
        """The shapes of what a product reads, by name."""

    @abstractmethod
    def destinations(self, way: str) -> dict[str, Shape]:
        """The shapes of the gradients that it writes, in float32, by name; forward and the input's have results."""

    @abstractmethod
    def compute(self, way: str, arrays: Mapping[str, Array]) -> list[Array]:
        """Run a product as the layer does, bias and bias gradient included; returns what it wrote."""

    @abstractmethod
    def task(self, way: str, device: CudaDevice, precision: str, alignment: int | None = None) -> Product | Convolution:
        """A product as the rungs take it, on new arrays. alignment: of every row of the factors, by gaps between rows
        (None: no gaps)."""

    @property
    @abstractmethod
    def flops(self) -> float:
        """Floating-point operations of each of its products."""

    @abstractmethod
    def words(self, way: str) -> str:
        """What a product computes, in a line."""

    @abstractmethod
    def __str__(self) -> str:
        """The layer, in a line."""


@dataclass(frozen=True)
class LinearLayer(Layer):
    """y = x W^T + b."""

    family = "linear"
    ways = ("nt", "nn", "tn")
    rows: int
    outputs: int
    inputs: int

    def __post_init__(self) -> None:
        _expect_positive(rows=self.rows, outputs=self.outputs, inputs=self.inputs)

    def _shapes(self) -> dict[str, Shape]:
        return {
            "x": (self.rows, self.inputs),
            "dy": (self.rows, self.outputs),
            "weight": (self.outputs, self.inputs),
            "bias": (self.outputs,),
        }

    def operands(self, way: str) -> dict[str, Shape]:
        names = {"nt": ("x", "weight", "bias"), "nn": ("dy", "weight"), "tn": ("dy", "x")}[way]
        return {name: self._shapes()[name] for name in names}

    def destinations(self, way: str) -> dict[str, Shape]:
        shapes = self._shapes()
        return {"dweight": shapes["weight"], "dbias": shapes["bias"]} if way == "tn" else {}

    def compute(self, way: str, arrays: Mapping[str, Array]) -> list[Array]:
        if way == "nt":
            return [linear.linear(arrays["x"], arrays["weight"], arrays["bias"])]
        if way == "nn":
            return [linear.linear_backward_input(arrays["dy"], arrays["weight"])]
        dweight, dbias = arrays["dweight"], arrays["dbias"]
        linear.linear_backward_parameters(arrays["dy"], arrays["x"], dweight, dbias, False)
        return [dweight, dbias]

    def task(self, way: str, device: CudaDevice, precision: str, alignment: int | None = None) -> Product:
        dtype, shapes = known_dtype(PRECISIONS[precision]), self._shapes()

        def matrix(name: str, dtype: Any = dtype, alignment: int | None = alignment) -> Matrices:
            rows, columns = shapes[name]
            stride = _stride(columns, known_dtype(dtype).itemsize, alignment)
            return Matrices(device.allocate((rows * stride,), dtype), rows, columns, stride)

        if way == "nt":
            bias = device.allocate(shapes["bias"], dtype)
            return Product("nt", matrix("x"), matrix("weight"), matrix("dy", alignment=None), Epilogue(bias=bias))
        if way == "nn":
            return Product("nn", matrix("dy"), matrix("weight"), matrix("x", alignment=None))
        return Product("tn", matrix("dy"), matrix("x"), matrix("weight", "float32", None))

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.outputs * self.inputs

    def words(self, way: str) -> str:
        rows, outputs, inputs = self.rows, self.outputs, self.inputs
        return {
            "nt": f"y ({rows}, {outputs}) = x W^T, {_sums(inputs)}",
            "nn": f"dx ({rows}, {inputs}) = dy W, {_sums(outputs)}",
            "tn": f"dW ({outputs}, {inputs}) = dy^T x, {_sums(rows)}",
        }[way]

    def __str__(self) -> str:
        return f"linear, {self.rows} rows, {self.outputs} outputs, {self.inputs} inputs"


@dataclass(frozen=True)
class ConvLayer(Layer):
    """A convolution of `images` of height x width x channels."""

    family = "conv"
    ways = ("forward", "backward_input", "backward_parameters")
    images: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        _expect_positive(images=self.images, height=self.height, width=self.width, channels=self.channels)
        _expect_positive(outputs=self.outputs, kernel=min(self.kernel), stride=min(self.stride))
        _expect_positive(dilation=min(self.dilation), groups=self.groups)
        if self.channels % self.groups or self.outputs % self.groups:
            raise ConfigurationError(
                f"expected groups that divide {self.channels} channels and {self.outputs} outputs, got {self.groups}"
            )

    @property
    def size(self) -> Pair:
        """Of an output image."""
        image = (self.height, self.width)
        return conv.convolved_size("conv", image, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def geometry(self) -> tuple[Pair, Padding, Pair, int]:
        """As the operations take it."""
        return self.stride, self.padding, self.dilation, self.groups

    def _shapes(self) -> dict[str, Shape]:
        return {
            "x": (self.images, self.height, self.width, self.channels),
            "dy": (self.images, *self.size, self.outputs),
            "weight": (self.outputs, *self.kernel, self.channels // self.groups),
            "bias": (self.outputs,),
        }

    def operands(self, way: str) -> dict[str, Shape]:
        names = {"forward": ("x", "weight", "bias"), "backward_input": ("dy", "weight")}.get(way, ("dy", "x"))
        return {name: self._shapes()[name] for name in names}

    def destinations(self, way: str) -> dict[str, Shape]:
        shapes = self._shapes()
        return {"dweight": shapes["weight"], "dbias": shapes["bias"]} if way == "backward_parameters" else {}

    def compute(self, way: str, arrays: Mapping[str, Array]) -> list[Array]:
        if way == "forward":
            return [conv.conv2d(arrays["x"], arrays["weight"], arrays["bias"], *self.geometry)]
        if way == "backward_input":
            size = (self.height, self.width)
            return [conv.conv2d_backward_input(arrays["dy"], arrays["weight"], size, *self.geometry)]
        dweight, dbias = arrays["dweight"], arrays["dbias"]
        conv.conv2d_backward_parameters(arrays["dy"], arrays["x"], dweight, dbias, False, *self.geometry)
        return [dweight, dbias]

    def task(self, way: str, device: CudaDevice, precision: str, alignment: int | None = None) -> Convolution:
        dtype, shapes = known_dtype(PRECISIONS[precision]), self._shapes()
        sizes = Sizes(shapes["x"], shapes["dy"], shapes["weight"], *self.geometry)
        x, dy = (device.allocate(shapes[name], dtype) for name in ("x", "dy"))
        if way == "backward_parameters":
            return Convolution(way, sizes, dy, x, device.allocate(shapes["weight"], "float32"))
        weight = device.allocate(shapes["weight"], dtype)
        if way == "backward_input":
            return Convolution(way, sizes, dy, weight, x)
        return Convolution(way, sizes, x, weight, dy, Epilogue(bias=device.allocate(shapes["bias"], dtype)))

    @property
    def flops(self) -> float:
        return 2.0 * math.prod(self._shapes()["weight"]) * self.images * math.prod(self.size)

    def words(self, way: str) -> str:
        shapes = self._shapes()
        taps, group = self.kernel[0] * self.kernel[1], self.channels // self.groups
        pixels = self.images * self.size[0] * self.size[1]
        return {
            "forward": f"y {shapes['dy']}, {_sums(taps * group)}",
            "backward_input": f"dx {shapes['x']} from dy {shapes['dy']}",
            "backward_parameters": f"dW {shapes['weight']}, {_sums(pixels)}",
        }[way]

    def __str__(self) -> str:
        kernel, stride = ("x".join(map(str, pair)) for pair in (self.kernel, self.stride))
        padding = "x".join(str(sides[0]) for sides in self.padding)
        return (
            f"conv, {self.images} images {self.height}x{self.width}x{self.channels}, {self.outputs} outputs, kernel "
            f"{kernel}, stride {stride}, padding {padding}, dilation {self.dilation[0]}x{self.dilation[1]}, groups "
            f"{self.groups}"
        )


@dataclass(frozen=True)
class LayerProduct:
    """One of the products of a layer, in a precision."""

    layer: Layer
    way: str
    precision: str

    def __str__(self) -> str:
        return f"{self.layer.family} {self.way}: {self.layer.words(self.way)}, {self.precision}"


def _sums(terms: int) -> str:
    return f"sums of {terms:,} term{'s' * (terms != 1)}"


def _expect_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigurationError(f"expected {name} of at least 1, got {size}")


def _stride(columns: int, itemsize: int, alignment: int | None) -> int:
    """The least distance of rows at which they begin at multiples of `alignment` bytes and of no power of two more."""
    if alignment is None:
        return columns
    stride = columns
    while stride * itemsize % alignment or (alignment < 16 and stride * itemsize % (2 * alignment) == 0):
        stride += 1
    return stride


# From a training step ---------------------------------------------------------------------------------------

_PRECISION = {"float16": "fp16", "bfloat16": "bf16"}
# By the kernels of the rung "tiled", on which a step is planned for this.
_WAYS = {f"gemm_{way}": way for way in LinearLayer.ways} | {f"conv_{way}": way for way in ConvLayer.ways}


def products_of(launches: Iterable[Launch]) -> list[LayerProduct]:
    """The products of a step that was planned on the rung "tiled", each once, those with most to compute first."""
    found: dict[LayerProduct, float] = {}
    for launch in launches:
        way = _WAYS.get(launch.variant.kernel.name)
        if way is None:
            continue
        names = (parameter.name for parameter in launch.variant.parameters)
        values: dict[str, Any] = dict(zip(names, launch.values, strict=True))
        precision = _PRECISION.get(dict(launch.variant.unit.defines)["T"], "tf32" if values["tf32"] else "fp32")
        layer = _linear(way, values) if way in LinearLayer.ways else _conv(values)
        if layer is not None:
            found[LayerProduct(layer, way, precision)] = launch.flops
    return sorted(found, key=lambda product: -found[product])


def _linear(way: str, values: Mapping[str, Any]) -> LinearLayer | None:
    """None of several products in one launch, which are of no Linear."""
    m, n, k = values["m"], values["n"], values["k"]
    if values["batch"] != 1 or not m * n * k:
        return None
    return LinearLayer(*{"nt": (m, n, k), "nn": (m, k, n), "tn": (k, m, n)}[way])


def _conv(values: Mapping[str, Any]) -> ConvLayer:
    stride, dilation = (values["stride_h"], values["stride_w"]), (values["dilation_h"], values["dilation_w"])
    kernel = (values["kh"], values["kw"])
    image, result, before = (values["h"], values["w"]), (values["p"], values["q"]), (values["top"], values["left"])
    reached = [(r - 1) * s + (k - 1) * d + 1 for r, s, k, d in zip(result, stride, kernel, dilation, strict=True)]
    after = [max(0, end - size - first) for end, size, first in zip(reached, image, before, strict=True)]
    padding = (before[0], after[0]), (before[1], after[1])
    return ConvLayer(
        *(values["images"], *image, values["channels"], values["out"], kernel, stride, padding, dilation),
        values["groups"],
    )
