"""bp train: train a recipe, test it, and leave everything in an output directory."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bp
from bp.callbacks import Callback
from bp.cli import output
from bp.cli.arguments import DEFAULT_RECIPE, split
from bp.cli.session import Session, make_session
from bp.config import Config, resolve
from bp.diagnostics import summary
from bp.errors import BPError
from bp.resuming import kernel_choice
from bp.trainer import Trainer

USAGE = "bp train [RECIPE | FILE.yaml | RUN_FOLDER] [--section.key value ...] [--print-config]"
DESCRIPTION = f"""Train a recipe (default: {DEFAULT_RECIPE}), test it, and leave config, metrics, curves and checkpoints
in runs/<recipe>. The file is read first, the command line changes it; dashes in keys count as underscores.
--print-config prints the resolved configuration as YAML and stops; `bp recipes` lists the built-in recipes."""


def main(argv: Sequence[str]) -> None:
    """Run `bp train` with these arguments."""
    recipe, settings, flags = split(argv, "print-config")
    config = resolve(recipe, settings)
    if "help" in flags:
        print(config.help(USAGE, DESCRIPTION), end="")
    elif "print-config" in flags:
        print(config.to_yaml(), end="")
    else:
        train(config)


def train(config: Config) -> dict[str, Any]:
    """Train and test as configured; returns what summary.json holds."""
    folder, resume = output.choose(config)
    output.require_writable(folder)
    session = make_session(config, output_dir=folder, callbacks=[_KeepConfig(config, folder)])
    report(session, folder, resume)
    made = _claim(folder, fresh=resume is None and config.output_dir is None)
    started = time.perf_counter()
    counter = _Counter()
    session.trainer.callbacks.insert(0, counter)
    try:
        session.trainer.fit(
            session.train,
            session.valid,
            max_epochs=config.trainer.max_epochs,
            max_steps=config.trainer.max_steps,
            resume=resume,
        )
    except KeyboardInterrupt:
        print(f"interrupted after {session.trainer.state.step} steps; go on with: --resume {folder}")
        raise
    except (BPError, OSError):
        _give_up(made)
        raise
    seconds = time.perf_counter() - started
    figures = summarize(session, seconds, counter.samples)
    if counter.samples or not (folder / "summary.json").exists():
        output.write_json(folder / "summary.json", figures)
    else:
        print(f"nothing was left to do: {figures['steps']} steps are done; raise trainer.max_epochs to go on")
    tested = " | ".join(f"{k} {v:.4f}" for k, v in figures.items() if k.startswith("test_"))
    print(f"{tested} | {seconds:.1f} s | {folder}")
    return figures


def summarize(session: Session, seconds: float, samples: int) -> dict[str, Any]:
    """Test the trained model and collect the figures of the run. samples: seen in these seconds."""
    trainer, history = session.trainer, session.trainer.history
    tested = trainer.evaluate(session.test)
    valid = {name: history.last(name) for name in history.names if name.startswith("valid_")}
    return {
        "recipe": session.config.name,
        "data": session.config.data.name,
        "model": session.config.model.name,
        "device": trainer.device.name,
        "precision": trainer.precision,
        **({} if (kernels := kernel_choice(trainer)) is None else {"kernels": kernels}),
        "parameters": session.parameters,
        "steps": trainer.state.step,
        "epochs": trainer.state.epoch + trainer.state.batch / len(session.train),
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "train_loss": history.last("loss"),
        **valid,
        **{f"test_{name}": value for name, value in tested.items()},
        "seed": session.config.trainer.seed,
        "version": bp.__version__,
    }


def report(session: Session, folder: Path, resume: str | None) -> None:
    """Print what was decided, and the layers."""
    config, splits, trainer = session.config, session.splits, session.trainer
    chosen = config.trainer
    steps = -(-len(session.train) // chosen.accumulate_grad_batches)
    limits = [f"{chosen.max_epochs} epochs"] if chosen.max_epochs else []
    limits += [f"{chosen.max_steps} steps"] if chosen.max_steps else []
    kind = f"{len(splits.classes)} classes" if splits.classes else splits.task
    batches = f"{len(session.train)} batches of {config.data.batch_size}"
    rows = {
        "recipe": config.name,
        "device": f"{trainer.device.name}, {_device_note(trainer)}",
        "precision": trainer.precision,
        "data": f"{splits.name}: {len(splits.train):,} train, {len(splits.valid):,} valid, {len(splits.test):,} test; "
        f"samples of shape {session.sample_shape}, {kind}",
        "model": f"{config.model.name}, {session.parameters:,} parameters",
        "loss": config.loss.name,
        "optimizer": f"{config.optimizer.name} ({_listed(config.optimizer.settings)})",
        "schedule": f"{config.schedule.name} ({_listed(config.schedule.settings)})",
        "training": f"{batches} an epoch, {steps} steps an epoch; {', at most '.join(limits)}; seed {chosen.seed}",
        "output": str(folder) + (f" (resume: {resume})" if resume else ""),
    }
    for name, text in rows.items():
        print(f"{name:10} {text}")
    print(summary(session.model, optimizer=trainer.optimizer))
    sys.stdout.flush()


class _KeepConfig(Callback):
    """Writes config.yaml when training starts: later than everything that can be wrong with it."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.folder = folder

    def on_fit_start(self, trainer: Trainer) -> None:
        kept = replace(self.config, output_dir=str(self.folder), resume=None)
        output.write_text(self.folder / "config.yaml", kept.to_yaml())


class _Counter(Callback):
    """Counts the samples of this process alone, which a resumed run needs for its speed."""

    samples = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        self._first = trainer.state.samples

    def on_step_end(self, trainer: Trainer, *, epoch_ended: bool) -> None:
        self.samples = trainer.state.samples - self._first


def _claim(folder: Path, fresh: bool) -> list[Path]:
    """Make the output directory; returns the directories that are new, innermost first.

    fresh: nobody else may have made it since its name was chosen.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=not fresh)
    return new


def _give_up(made: list[Path]) -> None:
    """Remove what `_claim` made, as far as it is empty."""
    for path in made:
        if any(path.iterdir()):
            return
        path.rmdir()


def _device_note(trainer: Trainer) -> str:
    capability = getattr(trainer.device, "capability", None)  # the CPU has none
    if capability is not None:
        return f"compute capability {capability // 10}.{capability % 10}; kernels by {kernel_choice(trainer)}"
    from bp.cpu.native import kernels

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{threads} cores, {'native kernels' if kernels is not None else 'NumPy only (see bp doctor)'}"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in values.items())


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
