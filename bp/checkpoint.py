"""Checkpoints: safetensors for arrays and JSON for the rest, never pickle, so reading one runs nobody's code."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bp.errors import CheckpointError
from bp.layers.layer import Layer
from bp.layers.parameter import Buffer, Parameter

FORMAT = 1
STATE_KEYS = ("position", "identity", "schedule", "callbacks", "history")

_Arrays = dict[str, np.ndarray]


@dataclass
class Snapshot:
    """All that a run needs to go on exactly as if it had never stopped.

    model, optimizer, average: host arrays by name (average: of the weights, empty where none is kept). state: plain
    JSON: step, epoch, position in the data, schedule, callbacks, history, by what kernels were chosen, and whether
    layers were fused.
    """

    model: _Arrays
    optimizer: _Arrays = field(default_factory=dict)
    average: _Arrays = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)


def model_arrays(model: Layer) -> _Arrays:
    """Copies of all parameters and buffers of a built model on the host, by name; a tied parameter comes once."""
    device = model.arena.device
    return {name: np.array(device.to_host(holder.master)) for name, holder in _holders(model)}


def load_model_arrays(model: Layer, arrays: Mapping[str, np.ndarray], source: str = "checkpoint") -> None:
    """Copy arrays into a built model by name: order and memory layout do not matter, every name does.

    Tied parameters are found under any of their names. Raises CheckpointError naming what is missing, left over or of
    another shape, before anything is changed.
    """
    aliases: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(aliases=True):
        aliases.setdefault(id(parameter), set()).add(name)
    pairs: list[tuple[Parameter | Buffer, np.ndarray]] = []
    used: set[str] = set()
    missing, misshapen = [], []
    for name, holder in _holders(model):
        names = aliases.get(id(holder), {name})
        found = next((n for n in (name, *sorted(names)) if n in arrays), None)
        if found is None:
            missing.append(name)
            continue
        used |= names & set(arrays)
        array = arrays[found]
        if array.shape != holder.shape:
            misshapen.append(f"{name}: expected shape {holder.shape}, got {array.shape}")
        pairs.append((holder, array))
    problems = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
    unknown = [name for name in arrays if name not in used]
    problems += [f"{len(unknown)} not of this model ({_some(unknown)})"] if unknown else []
    problems += misshapen[:3]
    if problems:
        raise CheckpointError(f"the weights do not fit the model: {'; '.join(problems)}").at(source)
    for holder, array in pairs:
        holder.value = array


def save_weights(path: str | os.PathLike[str], model: Layer) -> None:
    """Write the parameters and buffers of a built model as one safetensors file, atomically."""
    _write_arrays(Path(path), model_arrays(model))


def load_weights(path: str | os.PathLike[str], model: Layer) -> None:
    """Read a file of `save_weights`, or a checkpoint folder, into a built model.

    Where the run kept an average of its weights the folder gives that: the weights that its evaluations judged.
    """
    path = Path(path)
    if not path.is_dir():
        load_model_arrays(model, _read_arrays(path), str(path))
        return
    arrays = _read_arrays(path / "model.safetensors")
    if (path / "average.safetensors").exists():
        averages = _read_arrays(path / "average.safetensors")
        arrays |= {k.removeprefix("average/"): array for k, array in averages.items() if k.startswith("average/")}
    load_model_arrays(model, arrays, str(path))


def write_snapshot(folder: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Write a checkpoint folder: all or nothing, it is renamed into place when every file is on disk."""
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ("model", "optimizer", "average"):
        arrays = getattr(snapshot, name)
        if arrays:
            _write_arrays(partial / f"{name}.safetensors", arrays)
    _write_synced(partial / "state.json", json.dumps({"format": FORMAT, **snapshot.state}, indent=1).encode())
    replaced = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(partial, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def read_snapshot(folder: str | os.PathLike[str]) -> Snapshot:
    """Read a checkpoint folder; raises CheckpointError naming the file that is missing, damaged or foreign."""
    folder = Path(folder)
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError("not a checkpoint: it has no state.json").at(str(folder)) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"expected JSON, got a damaged file ({error})").at(str(path)) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        got = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"expected checkpoint format {FORMAT}, got {got}").at(str(path))
    missing = [key for key in STATE_KEYS if key not in state]
    if missing:
        raise CheckpointError(f"expected the keys {', '.join(STATE_KEYS)}, {', '.join(missing)} missing").at(str(path))
    arrays = {
        name: _read_arrays(folder / f"{name}.safetensors")
        for name in ("model", "optimizer", "average")
        if name != "average" or (folder / "average.safetensors").exists()
    }
    return Snapshot(state=state, **arrays)


def find_checkpoint(output_dir: str | os.PathLike[str], which: str = "last") -> Path | None:
    """The checkpoint folder that `which` ("last" or "best") points to below an output directory, or None.

    Where "last" points nowhere, after a crash, it is the newest step that was saved whole.
    """
    folder = Path(output_dir) / "checkpoints"
    if (folder / which / "state.json").exists():
        return (folder / which).resolve()
    steps = step_folders(folder)
    return steps[-1] if which == "last" and steps else None


def step_folders(folder: Path) -> list[Path]:
    """The step folders of a run, oldest first; unfinished ones are not among them."""
    finished = (path for path in folder.glob("step-*") if path.suffix == "")
    return sorted(path for path in finished if (path / "state.json").exists())


def point_to(pointer: Path, name: str) -> None:
    """Make `pointer` (such as checkpoints/last) name a sibling folder, atomically."""
    if pointer.is_dir() and not pointer.is_symlink():
        shutil.rmtree(pointer)  # a copy that followed the link made a second copy of the step of that name
    partial = pointer.with_name(pointer.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(name, target_is_directory=True)
    os.replace(partial, pointer)


def _holders(model: Layer) -> Iterator[tuple[str, Parameter | Buffer]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _write_arrays(path: Path, arrays: _Arrays) -> None:
    from safetensors.numpy import save

    partial = path.with_name(path.name + ".partial")
    _write_synced(partial, save({name: np.asarray(array, order="C") for name, array in arrays.items()}))
    os.replace(partial, path)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read_arrays(path: Path) -> _Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError("no such file").at(str(path)) from error
    except (SafetensorError, KeyError) as error:  # KeyError: an element type that NumPy does not have
        raise CheckpointError(f"expected a safetensors file, got a damaged or foreign one ({error})").at(
            str(path)
        ) from error
