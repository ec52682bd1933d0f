"""Diagnostics: a model's layers, sizes and memory as a table."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bp.errors import BuildError
from bp.layers.layer import Layer
from bp.ops.array import Shape
from bp.optimizers import Optimizer

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Row:
    """One use of a layer. depth: of layers around it. parameters: its own, without those counted before."""

    path: str
    kind: str
    depth: int
    output_shape: Shape
    parameters: int


@dataclass(frozen=True)
class Summary:
    """Every layer in the order in which data meets it, with totals; `str()` and print give a table.

    trainable, frozen: numbers of parameters. weight_bytes, gradient_bytes, moment_bytes: memory of the parameters,
    their gradients and the optimizer's moments, with the padding of the arena.
    """

    title: str
    rows: tuple[Row, ...]
    trainable: int
    frozen: int
    weight_bytes: int
    gradient_bytes: int
    moment_bytes: int

    @property
    def parameters(self) -> int:
        """All parameters, a tied one counted once."""
        return self.trainable + self.frozen

    def totals(self) -> str:
        """Parameters and memory, in a line each."""
        frozen = f" ({self.frozen:,} of them frozen)" if self.frozen else ""
        total = self.weight_bytes + self.gradient_bytes + self.moment_bytes
        return (
            f"{self.parameters:,} parameters{frozen}\n"
            f"{size_in_words(total)} for weights ({size_in_words(self.weight_bytes)}), gradients "
            f"({size_in_words(self.gradient_bytes)}) and optimizer moments ({size_in_words(self.moment_bytes)})"
        )

    def __rich__(self) -> "Group":
        """The table as rich prints it."""
        from rich import box
        from rich.console import Group
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("layer", no_wrap=True)
        table.add_column("output", no_wrap=True)
        table.add_column("parameters", justify="right", no_wrap=True)
        for row in self.rows:
            shape = f"(N, {', '.join(map(str, row.output_shape))})" if row.output_shape else "(N,)"
            name = f"{row.path} {row.kind}" if row.path else row.kind
            table.add_row("  " * row.depth + name, shape, f"{row.parameters:,}" if row.parameters else "")
        return Group(self.title, table, self.totals())

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def summary(model: Layer, input_shape: Shape | None = None, *, optimizer: Optimizer | None = None) -> Summary:
    """The layers of a model with output shapes, parameters, and the memory that training them takes.

    input_shape: of one sample, without the batch; None: the one that the model was built for. The model need not be
    built and is left as it is. optimizer: whose moments count as memory (None: none). Raises ShapeError where the sizes
    do not fit.
    """
    if input_shape is None:
        input_shape = model._input_shape
    if input_shape is None:
        raise BuildError(f"{model.label}: not built yet, so summary(model, input_shape) needs the shape of a sample")
    # Declaring gives shapes to parameters, which a model that is not built must not keep.
    walked = model if model.built else copy.deepcopy(model)
    rows = _walk(walked, tuple(input_shape))
    parameters = [p for _, p in walked.named_parameters()]
    trainable = sum(p.size for p in parameters if p.trainable)
    frozen = sum(p.size for p in parameters if not p.trainable)
    if model.built:
        item = np.dtype(model.arena.values.dtype).itemsize
        elements = model.arena.size
    else:
        item, elements = np.dtype(np.float32).itemsize, trainable
    slots = 0 if optimizer is None else len(optimizer.slots)
    return Summary(
        f"{type(model).__name__} for samples of shape {tuple(input_shape)}",
        tuple(rows),
        trainable,
        frozen,
        (elements + frozen) * item,
        elements * item,
        slots * elements * item,
    )


def _walk(model: Layer, input_shape: Shape) -> list[Row]:
    """A row for each layer below `model`, in the order of `declare`, outer ones first; for a lone layer, itself."""
    rows: list[Row | None] = []
    depth = 0
    counted: set[int] = set()

    def watch(path: str, layer: Layer) -> Callable[[Shape], Shape]:
        declare = layer.declare

        def declared(shape: Shape) -> Shape:
            nonlocal depth
            place = len(rows)
            rows.append(None)
            depth += 1
            output = declare(shape)
            depth -= 1
            own = [p for _, p in layer.named_parameters() if id(p) not in counted and _is_own(layer, p)]
            counted.update(id(p) for p in own)
            rows[place] = Row(path, type(layer).__name__, depth, output, sum(p.size for p in own))
            return output

        return declared

    with _replaced({layer: watch(path, layer) for path, layer in model.named_layers()}):
        model.declare(input_shape)
    complete = [row for row in rows if row is not None]
    if len(complete) == 1:
        return complete
    return [Row(r.path, r.kind, r.depth - 1, r.output_shape, r.parameters) for r in complete[1:]]


def _is_own(layer: Layer, parameter: object) -> bool:
    """Whether the layer itself, not one inside it, holds the parameter."""
    return any(value is parameter for value in vars(layer).values())


@contextmanager
def _replaced(methods: dict[Layer, Callable[[Shape], Shape]]) -> Iterator[None]:
    """Let each layer's `declare` be the given one for a while."""
    try:
        for layer, method in methods.items():
            object.__setattr__(layer, "declare", method)
        yield
    finally:
        for layer in methods:
            vars(layer).pop("declare", None)


def size_in_words(count: int) -> str:
    """Bytes with a unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"
