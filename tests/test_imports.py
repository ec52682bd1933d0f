"""Imports run one way, and bp needs nothing that is optional."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bp"

# The rooms of the house from low to high. A room imports rooms of lower lines only. `ops` stands below the devices,
# because a device imports what is declared there; a call goes the other way, through `ops.operation`.
ORDER = [
    ["errors", "threads"],
    ["ops", "registry", "recipes", "schedules", "history", "interruption"],
    ["cpu", "cuda", "initializers", "metrics", "data"],
    ["layers"],
    ["losses", "optimizers", "models", "checkpoint", "checking"],
    ["callbacks", "diagnostics", "planning"],
    ["memory_plan"],
    ["resuming"],
    ["trainer"],
    ["config"],
    [""],  # bp itself: the names that a user sees
    ["doctor"],
    ["cli"],
    ["__main__"],
]
HEIGHT = {room: height for height, rooms in enumerate(ORDER) for room in rooms}

# Only these may name a device's package; everything else reaches devices through `ops`.
DEVICE_PACKAGES = {"cpu", "cuda"}
KNOW_DEVICES = {"cpu", "cuda", "doctor", "cli"}

# `find_device` looks a device up by its name, when it is called.
EXCEPTIONS = {("bp.ops.device", "bp.cpu"), ("bp.ops.device", "bp.cuda"), ("bp.ops.device", "bp.cuda.emulator")}
EXCEPTIONS |= {("bp.ops.device", "bp.cuda.plan")}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("bp", *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(), str(path))


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that the statements below `node` import, at any depth, except for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute"
            # `from bp import x` is an import of bp.x where that is a room, else of bp itself.
            if child.module == "bp":
                yield from (f"bp.{alias.name}" if alias.name in HEIGHT else "bp" for alias in child.names)
            else:
                yield child.module or ""
        else:
            yield from imported(child)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_its_place():
    rooms = {room(name) for name, _ in modules()}
    assert rooms == set(HEIGHT), "a new room takes its line in ORDER"


def test_a_lower_room_never_imports_a_higher_one():
    wrong = []
    for name, tree in modules():
        for target in imported(tree):
            if target.split(".")[0] != "bp" or room(target) == room(name):
                continue
            if HEIGHT[room(target)] >= HEIGHT[room(name)] and (name, target) not in EXCEPTIONS:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_only_operations_know_the_devices():
    wrong = [
        f"{name} imports {target}"
        for name, tree in modules()
        for target in imported(tree)
        if target.startswith("bp.") and room(target) in DEVICE_PACKAGES and room(name) not in KNOW_DEVICES
        if (name, target) not in EXCEPTIONS
    ]
    assert wrong == []


def test_a_family_has_one_name_in_every_room():
    families = {path.stem for path in (PACKAGE / "cpu").glob("*.py")} - {"__init__", "native", "runtime"}
    stated = {path.stem for path in (PACKAGE / "ops").glob("*.py")}
    assert families <= stated
    native = {path.stem for path in (PACKAGE.parent / "csrc" / "native").glob("*.cpp")} - {"module"}
    for name in native:  # a large family has several files
        assert any(name == family or name.startswith(f"{family}_") for family in families), name


def python(code: str) -> str:
    """The output of a fresh interpreter, in which warnings are errors as they are here."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


OPTIONAL = ["torch", "cupy", "matplotlib", "tensorboard", "bp.cpu._native"]
DEFERRED = ["rich", "safetensors", "yaml", "jsonargparse", *OPTIONAL[:-1]]


def test_import_bp_loads_nothing_that_it_does_not_need_yet():
    loaded = python("import sys, bp; print(*sys.modules)").split()
    assert [name for name in DEFERRED if name in loaded] == []


TRAINS = """
import sys
for name in {absent}:
    sys.modules[name] = None  # an import of it raises ModuleNotFoundError
import numpy as np
import bp
from bp.cpu import native
assert native.kernels is None
model = bp.Sequential(bp.Linear(2, 16), bp.GELU(), bp.Dropout(0.1), bp.Residual(bp.Linear(16, 16)), bp.Linear(16, 2))
model.build((2,))
loss, optimizer = bp.CrossEntropyLoss(), bp.AdamW(lr=0.01).setup(model)
x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
labels = (x[:, 0] > x[:, 1]).astype(np.int64)
values = []
for step in range(30):
    ctx = bp.Context(training=True, step=step)
    values.append(float(loss.forward(model.forward(x, ctx), labels, ctx)))
    model.backward(loss.backward(ctx), ctx)
    optimizer.step()
assert values[-1] < 0.5 * values[0], values
"""


def test_trains_without_anything_optional():
    python(TRAINS.format(absent=OPTIONAL))


@pytest.mark.parametrize("name", ["bp", "bp.layers", "bp.ops.activation", "bp.cpu.linear", "bp.losses", "bp.trainer"])
def test_any_room_can_be_imported_first(name):
    python(f"import {name}")
