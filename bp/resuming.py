"""Resuming: a run as a snapshot, and a Trainer that goes on from one bit for bit."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bp.callbacks import Callback
from bp.checkpoint import Snapshot, find_checkpoint, load_model_arrays, model_arrays
from bp.data import Loader
from bp.errors import BPError, CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from bp.trainer import Trainer


@dataclass
class State:
    """Where a run is. step: optimizer steps done; epoch: whole epochs done; batch: batches of the running epoch
    that were used; samples: seen in all; loss_sum, loss_count: of the terms since the last log step."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    loss_count: float = 0.0


def identity(trainer: "Trainer", train: Loader) -> dict[str, Any]:
    """What has to be the same for a run to go on bit for bit."""
    return {
        "samples": train.num_samples,
        "batch_size": train.batch_size,
        "shuffle": train.shuffle,
        "weighted": train.weighted,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "data_seed": train.seed,
        "seed": trainer.seed,
        "precision": trainer.precision,
        "ema_decay": trainer.ema_decay,
    }


def kernel_choice(trainer: "Trainer") -> str | None:
    """By what kernels are chosen, in words, which may change the last bits of a sum; None on the CPU, which has one."""
    choice: str | None = getattr(trainer.device, "kernel_choice", None)
    return choice


def snapshot(trainer: "Trainer") -> Snapshot:
    """All that another Trainer, made alike, needs to go on from here, whatever the numbers are."""
    trainer.state.loss_sum = float(trainer.device.to_host(trainer.loss_sum))
    state = {
        "position": asdict(trainer.state),
        "identity": trainer.identity,
        "schedule": trainer.schedule.state_dict(),
        "callbacks": {name: callback.state_dict() for name, callback in _named(trainer.callbacks)},
        "history": trainer.history.records,
        "kernels": kernel_choice(trainer),
        "fuse": trainer.fuse,
    }
    return Snapshot(
        model=model_arrays(trainer.model),
        optimizer=trainer.optimizer.state_dict(),
        average={} if trainer.average is None else trainer.average.state_dict(),
        state=state,
    )


def restore(trainer: "Trainer", taken: Snapshot, source: str) -> None:
    """Take over weights, optimizer, schedule, position and history.

    Raises CheckpointError where the run was made with other data or settings; then everything is as it was.
    """
    differing = {k: (taken.state["identity"].get(k), v) for k, v in trainer.identity.items()}
    differing = {k: pair for k, pair in differing.items() if pair[0] != pair[1]}
    if differing:
        told = ", ".join(f"{name} {old} (now {new})" for name, (old, new) in differing.items())
        raise CheckpointError(f"the run was made with {told}: it cannot go on bit for bit").at(source)
    before = snapshot(trainer)
    try:
        _take_over(trainer, taken, source)
    except BPError as error:
        _take_over(trainer, before, source)
        raise error.at(source) from error.__cause__
    for change in _changes(trainer, taken):
        for callback in trainer.callbacks:
            callback.on_message(trainer, f"{source}: {change}: the last bits of results may differ")


def _changes(trainer: "Trainer", taken: Snapshot) -> Iterator[str]:
    """What is rounded otherwise from here on, in words; older checkpoints do not say how it was."""
    then, now = taken.state.get("kernels"), kernel_choice(trainer)
    if then is not None and now is not None and then != now:
        yield f"kernels were chosen by {then}, and are now by {now}"
    fused = taken.state.get("fuse", trainer.fuse)
    if fused != trainer.fuse:
        yield f"fuse was {fused}, and is now {trainer.fuse}"


def _take_over(trainer: "Trainer", taken: Snapshot, source: str) -> None:
    load_model_arrays(trainer.model, taken.model, source)
    trainer.optimizer.load_state_dict(taken.optimizer)
    if trainer.average is not None:
        trainer.average.load_state_dict(taken.average)
    trainer.schedule.load_state_dict(taken.state["schedule"])
    for name, callback in _named(trainer.callbacks):
        if name in taken.state["callbacks"]:
            callback.load_state_dict(taken.state["callbacks"][name])
    try:
        trainer.state = State(**taken.state["position"])
    except TypeError as error:
        raise CheckpointError(f"expected the position of a run, got {taken.state['position']}") from error
    trainer.device.fill(trainer.loss_sum, trainer.state.loss_sum)
    trainer.history.records = list(taken.state["history"])


def _named(callbacks: list[Callback]) -> Iterator[tuple[str, Callback]]:
    """Each with a name that is stable across runs: its class, and a number from the second of a class on."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), callback


def folder_of(resume: str | os.PathLike[str], output_dir: Path | None) -> Path | None:
    """The checkpoint that `resume` names: "auto" for the last of the output directory, if it has one, or a path."""
    if str(resume) != "auto":
        return find_checkpoint(resume) or Path(resume)
    if output_dir is None:
        raise ConfigurationError("resume='auto' expected an output_dir to look for a checkpoint in")
    return find_checkpoint(output_dir)
