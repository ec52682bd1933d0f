"""Layers on a command line: `linear M N K` and `conv N H W C OUT KERNEL`, with a precision behind them."""

from argparse import Namespace
from collections.abc import Sequence

from bp.bench.products import ON_GPU, ConvLayer, Layer, LinearLayer
from bp.cli.arguments import Parser
from bp.errors import ConfigurationError
from bp.ops.conv import Pair

LINEAR, CONV = "linear M N K", "conv N H W C OUT KERNEL"


def add_layer_options(parser: Parser) -> None:
    """Those of a convolution."""
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        of = "rows and columns of zeros around the image" if name == "padding" else f"{name} of a convolution"
        number = "N" if name == "groups" else "N|HxW"
        parser.add_argument(f"--{name}", metavar=number, help=f"{of} (default: {least})")


def read_layer(words: Sequence[str], options: Namespace) -> tuple[Layer, str]:
    """(the layer, the precision) of such words; raises ConfigurationError on any others."""
    family, sizes, precision = words[0] if words else "", list(words[1:-1]), words[-1] if len(words) > 1 else ""
    forms = f"{LINEAR} DTYPE, or {CONV} DTYPE"
    if family not in ("linear", "conv") or len(sizes) != (3 if family == "linear" else 6):
        raise ConfigurationError(f"expected {forms}, got '{' '.join(words)}'")
    if precision not in ON_GPU:
        raise ConfigurationError(f"expected a DTYPE of {', '.join(ON_GPU)} at the end, got '{precision}'")
    given = {name: getattr(options, name) for name in ("stride", "padding", "dilation", "groups")}
    if family == "linear":
        unfit = [name for name, value in given.items() if value is not None]
        if unfit:
            raise ConfigurationError(f"--{unfit[0]} is of a convolution, and this is linear")
        m, n, k = (_number(name, text) for name, text in zip("MNK", sizes, strict=True))
        return LinearLayer(m, n, k), precision
    images, height, width, channels, outputs = (
        _number(name, text) for name, text in zip(("N", "H", "W", "C", "OUT"), sizes, strict=False)
    )
    vertical, horizontal = _pair("--padding", given["padding"] or "0", least=0)
    layer = ConvLayer(
        *(images, height, width, channels, outputs, _pair("KERNEL", sizes[5])),
        _pair("--stride", given["stride"] or "1"),
        ((vertical, vertical), (horizontal, horizontal)),
        _pair("--dilation", given["dilation"] or "1"),
        _number("--groups", given["groups"] or "1"),
    )
    return layer, precision


def _number(name: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigurationError(f"{name} expected a whole number of at least {least}, got '{text}'")
    return int(text)


def _pair(name: str, text: str, least: int = 1) -> Pair:
    """Of "3" or "3x5", along H and W."""
    first, both, second = text.partition("x")
    height = _number(name, first, least)
    return height, _number(name, second, least) if both else height
