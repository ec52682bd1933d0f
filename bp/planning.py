"""plan_step: one training step on arrays without memory, by the very code that runs on a GPU.

What it would launch and hold is known before the first real step: the memory plan, the kernels to compile beforehand
and the roofline come from here.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

import bp.ops.reduce as reduce
from bp.layers import Context, Layer
from bp.losses import CrossEntropyLoss, Loss, MultiMarginLoss, NLLLoss
from bp.ops import scope
from bp.ops.array import Array, Shape, known_dtype
from bp.ops.device import PRECISIONS, device_of, planning_device
from bp.ops.memory import only_caller_holds
from bp.optimizers import AdamW, Optimizer


@dataclass(frozen=True)
class PlannedStep:
    """model, optimizer: as the step has them, on the planning device. kept: bytes that each layer keeps from forward to
    backward, by label; memory: bytes of all outputs of the step, reused within it; launches: of its kernels, in order
    (`bp.cuda.ledger.Launch`)."""

    model: Layer
    optimizer: Optimizer
    kept: dict[str, int]
    memory: int
    launches: list[Any]


def plan_step(
    model: Layer,
    batch_shape: Shape,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    precision: str = "fp32",
    input_dtype: Any = None,
    fuse: bool = True,
) -> PlannedStep:
    """A training step of `model` on a batch of `batch_shape` (with the batch first), as the Trainer does it.

    The model need not be built, and is left as it is; a built one is planned for in the dtype it was built in. loss,
    optimizer: default cross-entropy and AdamW. input_dtype: of the batch, such as int64 for indices (default: that of
    the precision). fuse: whether layers that follow each other run as one, see `bp.layers.fusion`. Raises ShapeError
    where sizes do not fit.
    """
    device = planning_device()
    batch_shape = tuple(batch_shape)
    if model.built:
        planned = model.copy(device=device)
    else:
        planned = copy.deepcopy(model)
        planned.build(batch_shape[1:], device=device, dtype=PRECISIONS[precision])
    rule = copy.copy(optimizer or AdamW()).setup(planned)
    if planned.arena.dtype == np.float16 and not rule.scales_loss:
        rule.enable_loss_scaling()
    memory = device.StepMemory()
    x = device.zeros(batch_shape, known_dtype(input_dtype or planned.arena.dtype))
    with device.running(precision), device.recording() as ledger, memory:
        kept = _step(planned, x, loss or CrossEntropyLoss(), rule, fuse)
    return PlannedStep(planned, rule, kept, memory.nbytes, ledger.launches)


def _step(model: Layer, x: Array, loss: Loss, optimizer: Optimizer, fuse: bool) -> dict[str, int]:
    """One training step as the Trainer does it; returns the bytes kept for the backward of each layer."""
    device: Any = device_of(x)
    ctx = Context(training=True, fuse=fuse, control_block=optimizer.control)
    predictions = model.forward(x, ctx)
    # Not by `zeros`, whose launches are none of the step's.
    total, targets = device.allocate((), np.float64), _targets(loss, predictions)
    ctx.predictions_unneeded = only_caller_holds(predictions)
    with scope.enter(loss.label, "forward"):
        value = loss.forward(predictions, targets, ctx)
    reduce.accumulate(total, value, optimizer.control)
    kept = _bytes_kept(ctx, x)
    del predictions, value
    model.backward_parameters(loss.backward(ctx), ctx)
    with scope.enter(type(optimizer).__name__, "step"):
        optimizer.clip_by_global_norm()
        optimizer.step()
    return kept


def _targets(loss: Loss, predictions: Array) -> Array:
    """Labels for a loss of a choice among classes, else targets like the predictions."""
    device: Any = device_of(predictions)
    if isinstance(loss, (CrossEntropyLoss, NLLLoss, MultiMarginLoss)):
        return device.allocate(predictions.shape[:-1], np.int64)
    return device.allocate(predictions.shape, predictions.dtype)


def _bytes_kept(ctx: Context, x: Array) -> dict[str, int]:
    """By layer, what the context holds beside the batch: an array that several layers hold counts for the first."""
    counted = {id(x)}
    kept: Counter[str] = Counter()
    for saver, values in ctx.kept:
        kept[saver.label] += 0
        for value in values:
            owner = getattr(value, "owner", None)
            array: Any = owner if hasattr(owner, "nbytes") else value  # a view keeps the whole array
            if hasattr(array, "nbytes") and id(array) not in counted:
                counted.add(id(array))
                kept[saver.label] += array.nbytes
    return dict(kept)
