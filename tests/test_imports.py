"""Imports run one way, and bp needs nothing that is optional."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bp

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
    ["memory"],
    ["resuming"],
    ["trainer"],
    ["config"],
    [""],  # bp itself: the names that a user sees
    ["doctor", "bench"],
    ["cli"],
    ["__main__"],
]
HEIGHT = {room: height for height, rooms in enumerate(ORDER) for room in rooms}

# Only these may name a device's package; everything else reaches devices through `ops`.
DEVICE_PACKAGES = {"cpu", "cuda"}
KNOW_DEVICES = {"cpu", "cuda", "doctor", "bench", "cli"}

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
# Used by a part of bp: to write, to plot, to print, to download, to compile; no name of bp needs them yet.
DEFERRED = ["rich", "safetensors", "yaml", "jsonargparse", *OPTIONAL[:-1]]
DEFERRED += ["http.client", "concurrent.futures", "importlib.metadata", "bp.bench", "bp.cli", "bp.cuda"]


def test_import_bp_loads_numpy_and_no_more():
    # numpy.random and its like are loaded by NumPy when they are first used
    loaded = python("import sys, numpy; before = set(sys.modules); import bp; print(*set(sys.modules) - before)")
    assert sorted(loaded.split()) == ["bp", "bp.threads"]


def test_names_of_bp_load_nothing_that_they_do_not_need_yet():
    loaded = python("import sys\nfrom bp import *\nprint(*sys.modules)").split()
    assert "bp.trainer" in loaded
    assert [name for name in DEFERRED if name in loaded] == []


def test_type_checkers_read_the_names_that_there_are():
    """What stands under TYPE_CHECKING in bp/__init__.py, carried out, is what its table of names gives."""
    (block,) = [node for node in dict(modules())["bp"].body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    read: dict[str, object] = {}
    exec(compile(ast.Module(block.body, []), "bp/__init__.py", "exec"), read)
    del read["__builtins__"]
    assert sorted([*read, "threads"]) == sorted(bp.__all__)
    assert [name for name, value in read.items() if getattr(bp, name) is not value] == []


def test_names_of_bp_are_listed_and_can_be_taken_all_at_once():
    code = "import bp\nfrom bp import *\nprint(*(name for name in dir(bp) if name not in globals()))"
    assert python(code).split() == ["__version__"]
    assert dir(bp) == sorted({"__version__", *bp.__all__})
    assert len(bp.__all__) == len(set(bp.__all__))


@pytest.mark.parametrize("name", ["schedules", "data", "Linear", "memory_plan"])
def test_a_name_of_bp_is_there_however_it_is_asked_for(name):
    python(f"import bp; first = bp.{name}; assert first is bp.{name}; from bp import {name}; assert {name} is first")
    python(f"import bp.cli.train, bp.planning, bp.memory; from bp import {name}; assert {name} is bp.{name}")


def test_no_name_of_bp_is_also_a_file():
    # import bp.trainer sets the attribute `trainer` of bp; what bears that name has to be that module
    assert [name for name in bp.__all__ if name in HEIGHT and getattr(bp, name).__name__ != f"bp.{name}"] == []


def test_a_misspelled_name_of_bp_is_an_error():
    with pytest.raises(AttributeError, match="module 'bp' has no attribute 'Lineer'"):
        bp.Lineer  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Lineer' from 'bp'"):
        from bp import Lineer  # noqa: F401


def test_mypy_knows_the_names_of_bp(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed: pip install 'bp[dev]'")
    lines = ["import bp", "reveal_type(bp.Linear(1, 2))", "reveal_type(bp.schedules.Linear())", "bp.Lineer"]
    lines += ["from bp import *", "reveal_type(Trainer.fit)"]
    (tmp_path / "user.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "user.py"]
    paths = os.environ | {"MYPYPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    said = dict(line.removeprefix("user.py:").split(": ", 1) for line in done.stdout.splitlines()[:-1])
    assert said["2"] == 'note: Revealed type is "bp.layers.linear.Linear"'
    assert said["3"] == 'note: Revealed type is "bp.schedules.whole_run.Linear"'
    assert said["4"].startswith('error: Module has no attribute "Lineer"')
    assert said["6"].endswith('-> bp.history.History"')
    assert len(said) == 4


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
