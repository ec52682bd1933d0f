"""memory_plan: what one training step will hold in memory, before the first step runs.

The step is carried out on arrays without memory (`bp.planning`), so the figures are those of the run: the same
allocations in the same order, reused by the same rule.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bp.diagnostics import size_in_words
from bp.layers import Layer
from bp.losses import Loss
from bp.ops.array import Shape
from bp.optimizers import Optimizer
from bp.planning import plan_step

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what they are for; `str()` and print give a table.

    parameters: the weights as the optimizer has them; low_precision: their 16-bit copies; buffers: such as running
    statistics; gradients; moments: all state of the optimizer; activations: what layers keep from forward to backward;
    workspace: the rest that a step needs at once, such as outputs and gradients between layers. by_layer: bytes kept
    for the backward of each layer.
    """

    title: str
    parameters: int
    low_precision: int
    buffers: int
    gradients: int
    moments: int
    activations: int
    workspace: int
    by_layer: tuple[tuple[str, int], ...]

    @property
    def step(self) -> int:
        """What a step takes on top of the model and the optimizer: activations and workspace."""
        return self.activations + self.workspace

    @property
    def total(self) -> int:
        """All of it."""
        held = self.parameters + self.low_precision + self.buffers + self.gradients + self.moments
        return held + self.step

    def __rich__(self) -> "Group":
        """The tables as rich prints them."""
        from rich import box
        from rich.console import Group
        from rich.table import Table

        def table(*columns: str) -> Table:
            made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            made.add_column(columns[0], no_wrap=True)
            for column in columns[1:]:
                made.add_column(column, justify="right", no_wrap=True)
            return made

        sums = table("memory", "bytes", "")
        rows = ("parameters", "low_precision", "buffers", "gradients", "moments", "activations", "workspace", "total")
        for row in rows:
            count = getattr(self, row)
            sums.add_row(row.replace("_", " "), f"{count:,}", size_in_words(count), end_section=row == "workspace")
        kept = table("kept for the backward of", "bytes", "of all")
        for label, count in sorted(self.by_layer, key=lambda pair: -pair[1])[:12]:
            kept.add_row(label, f"{count:,}", f"{100 * count / max(self.activations, 1):.0f}%")
        return Group(self.title, sums, kept)

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=120, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def memory_plan(
    model: Layer,
    batch_shape: Shape,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    precision: str = "fp32",
    input_dtype: Any = None,
    fuse: bool = True,
) -> MemoryPlan:
    """The memory that a training step of `model` takes on a GPU, for batches of `batch_shape` (with the batch first).

    The arguments are those of `bp.planning.plan_step`: the model need not be built, and is left as it is. To save
    activations, wrap a layer in `bp.Recompute`.
    """
    step = plan_step(
        model,
        batch_shape,
        loss=loss,
        optimizer=optimizer,
        precision=precision,
        input_dtype=input_dtype,
        fuse=fuse,
    )
    planned, rule = step.model, step.optimizer
    arena, activations = planned.arena, sum(step.kept.values())
    frozen = planned.frozen_arena
    return MemoryPlan(
        title=f"{type(model).__name__}, batches of shape {tuple(batch_shape)} in {arena.dtype}",
        parameters=arena.values.nbytes + frozen.values.nbytes,
        low_precision=sum(a.low_precision.nbytes for a in (arena, frozen) if a.low_precision is not None),
        buffers=sum(buffer.value.nbytes for _, buffer in planned.named_buffers()),
        gradients=0 if arena.gradients is None else arena.gradients.nbytes,
        moments=sum(array.nbytes for array in rule.moments.values()) + rule.settings.nbytes + rule.control.nbytes,
        activations=activations,
        workspace=step.memory - activations,
        by_layer=tuple(step.kept.items()),
    )
