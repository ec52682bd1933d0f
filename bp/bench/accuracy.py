"""Time to accuracy: how long a recipe takes, from the start of a fresh process, until it has learned enough.

A training is `bp train RECIPE` as a user types it, to its last epoch. What it reached on held-out samples at the end of
each epoch stands in its metrics.jsonl, with the time. Cold is with no kernel compiled yet, warm once more with those
that the cold run compiled. The CPU compiles none while it trains: there one run says it all.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bp.data
from bp.bench import machine
from bp.bench.results import About
from bp.config import resolve
from bp.errors import ConfigurationError
from bp.ops.device import find_device


@dataclass(frozen=True)
class Target:
    """What a recipe has to reach. figure: of held-out samples, "accuracy" or "r2"; settings: of `bp train`, where the
    recipe's own do not suffice; on_gpu: further ones, where they would take a CPU an hour."""

    figure: str
    value: float
    settings: tuple[str, ...] = ()
    on_gpu: tuple[str, ...] = ()


TARGETS = {
    "digits": Target("accuracy", 0.97),
    "diabetes": Target("r2", 0.5),
    "mnist-mlp": Target("accuracy", 0.98),
    "fashion-cnn": Target("accuracy", 0.92, ("--trainer.max_epochs", "15")),
    "cifar10-resnet20": Target("accuracy", 0.94, on_gpu=("--trainer.max_epochs", "60")),
}


@dataclass(frozen=True)
class Reached:
    """How far a training came. seconds, epochs: until the end of the first epoch that reached the target, None where
    none did; best: the highest figure of any epoch."""

    seconds: float | None
    epochs: int | None
    best: float


@dataclass(frozen=True)
class Outcome:
    """How the training of a recipe went.

    tested: the figure of the target on the test samples, in the end; best, epochs_to_target: on held-out samples, see
    `Reached`. cold_seconds, warm_seconds: to the target, from the start of the process; None where it was not reached.
    Without a warm run both are those of the one run. epochs, seconds, samples_per_second: of the whole last training.
    """

    command: str
    precision: str
    parameters: int
    epochs: float
    seconds: float
    samples_per_second: float
    figure: str
    target: float
    tested: float
    best: float
    epochs_to_target: int | None
    cold_seconds: float | None
    warm_seconds: float | None
    about: About


def first_to_reach(records: Sequence[dict[str, Any]], figure: str, target: float, begun: float) -> Reached:
    """How far a training came by its records (see `bp.history`). begun: when its process was started, as their "time".

    Raises ConfigurationError where no record has that figure as a number.
    """
    name = f"valid_{figure}"
    measured = [record for record in records if record.get(name) is not None]
    if not measured:
        raise ConfigurationError(f"expected records with '{name}', got {len(records)} records without")
    best = max(record[name] for record in measured)
    first = next((record for record in measured if record[name] >= target), None)
    if first is None:
        return Reached(None, None, best)
    return Reached(first["time"] - begun, round(first["epoch"]), best)


def measure(
    recipe: str,
    target: Target,
    *,
    device: str = "auto",
    data_root: str | None = None,
    on_run: Callable[[str], object] = id,
) -> Outcome:
    """Train a recipe cold and, on a device that compiles kernels, warm. on_run: called with what begins, in words.

    The data is there before the clock starts. Raises ConfigurationError where the device is not, or with the last line
    of a training that failed; DataError where the data cannot be had.
    """
    device = find_device(device).name
    place = [] if data_root is None else ["--data.root", data_root]
    arguments = [recipe, *target.settings, *(target.on_gpu if device == "cuda" else ())]
    config = resolve(recipe, [*arguments[1:], *place])
    bp.data.load(config.data.name, config.data.root)
    reached = []
    with tempfile.TemporaryDirectory() as folder:
        for run in ("cold",) if device == "cpu" else ("cold", "warm"):
            on_run(f"{recipe} on {device}" + ("" if device == "cpu" else f", {run}"))
            output = Path(folder, run)
            settings = [*arguments, *place, "--device", device, "--output_dir", str(output)]
            begun = time.time()
            _train(settings, cache=Path(folder, "cache"))
            lines = (output / "metrics.jsonl").read_text().splitlines()
            reached.append(first_to_reach([json.loads(line) for line in lines], target.figure, target.value, begun))
        summary = json.loads((output / "summary.json").read_text())
    return Outcome(
        command=" ".join(["bp", "train", *arguments]),
        figure=target.figure,
        target=target.value,
        tested=summary[f"test_{target.figure}"],
        best=reached[-1].best,
        epochs_to_target=reached[-1].epochs,
        cold_seconds=reached[0].seconds,
        warm_seconds=reached[-1].seconds,
        about=machine.about(device, {"bp": bp.__version__}, {}, f"bp bench accuracy {recipe}"),
        **{key: summary[key] for key in ("precision", "parameters", "epochs", "seconds", "samples_per_second")},
    )


def _train(settings: Sequence[str], cache: Path) -> None:
    """`bp train` in a process of its own. cache: where its compiled kernels are."""
    done = subprocess.run(
        [sys.executable, "-m", "bp", "train", *settings],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "BP_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise ConfigurationError(f"bp train {settings[0]} failed: {said.removeprefix('bp: error: ')}")


def read_outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """The outcomes by recipe that a file has, each as a plain dictionary; none where there is no such file.

    Raises ConfigurationError where it has something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigurationError(f"{path}: not valid JSON: {error}") from None
    wanted = set(Outcome.__dataclass_fields__)
    if not isinstance(found, dict) or not all(isinstance(o, dict) and set(o) == wanted for o in found.values()):
        raise ConfigurationError(f"{path}: expected outcomes of bp bench accuracy by recipe")
    return found


def keep(path: Path, recipe: str, outcome: Outcome) -> None:
    """Enter an outcome into a file, beside those of other recipes that are there."""
    known = read_outcomes(path) | {recipe: asdict(outcome)}
    path.write_text(json.dumps(known, indent=1, allow_nan=False) + "\n")
