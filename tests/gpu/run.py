"""Everything that takes a GPU, in one go: benchmarks/gpu.sh runs this. See there for how.

Stages run one after the other, each in processes of its own and within its own limit of time; whatever one does, the
next ones run, and the results so far are on disk. With `--device emulator` the same stages run on the CPU, the tests
and the graphs through a stand-in for CuPy (tests/stand_in_cupy.py), and nothing that is measured is written down.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TESTS = ROOT / "tests"

BUDGET = 540  # seconds for everything
FOR_SANITIZER = 110  # of them

# Files whose cases run on the device of BP_TEST_DEVICE; of the layers' tables only the checks that do.
OPERATIONS = sorted(p.name for p in TESTS.glob("test_cuda_*.py") if p.name != "test_cuda_device.py")
LAYERS = ["activation", "conv", "dropout", "embedding", "linear", "norm", "pool", "shape", "containers"]
ON_KERNELS = "matches_on_emulator or matches_in_16_bits"
# In the order of what one wants to know first, should the time not suffice for all.
KERNELS = [
    "linear",
    "activation",
    "norm",
    "loss",
    "optimizer",
    "conv",
    "embedding",
    "dropout",
    "pool",
    "reduce",
    "shape",
]
GRAPHS = ["test_step_graph.py", "test_memory_plan.py", "test_loss_scaling.py"]


@dataclass
class Run:
    """What the stages share. results: what is written to `out` after each."""

    device: str
    quick: bool
    out: Path
    begun: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return BUDGET - (time.monotonic() - self.begun)

    def command(self, arguments: Sequence[str | Path], limit: float, **environment: str) -> dict[str, Any]:
        """Run a command from the root of the checkout within `limit` seconds: its exit code, seconds and output."""
        paths = [str(ROOT), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"} | environment
        begun = time.monotonic()
        limit = max(1.0, min(limit, self.left))
        with subprocess.Popen(
            [str(a) for a in arguments],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit)
                code: int | str = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                output, _ = process.communicate()
                code = f"stopped after {limit:.0f} s"
        return {"exit": code, "seconds": round(time.monotonic() - begun, 1), "output": output}

    def pytest(self, arguments: Sequence[str], limit: float) -> dict[str, Any]:
        """Run tests on the device; the counts, and the names and reasons of those that failed."""
        stand_in = [] if self.device == "cuda" else ["-p", "stand_in_cupy"]
        workers = ["-p", "xdist.plugin", "-n", str(min(os.cpu_count() or 1, 12))] if _has("xdist") else []
        options = ["-p", "no:cacheprovider", "--tb=line", "-r", "f", *stand_in, *workers]
        # Plugins that happen to be installed, and what newer packages warn of, have no say here.
        options += ["-o", "filterwarnings=default", "--disable-warnings"]
        where = {"BP_TEST_DEVICE": "cuda", "BP_NATIVE": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        where |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = self.command([sys.executable, "-m", "pytest", *options, *arguments], limit, **where)
        lines = done.pop("output").splitlines()
        done["failed"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:60]
        counts = [line for line in lines if re.search(r"\d+ (passed|failed|error)", line)]
        done["counts"] = {what: int(n) for n, what in re.findall(r"(\d+) (\w+)", counts[-1])} if counts else {}
        if not counts:
            done["output"] = "\n".join(lines[-30:])
        done["ok"] = done["exit"] == 0 and bool(counts)
        return done


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


# Stages -------------------------------------------------------------------------------------------------------------


def compile_kernels(run: Run) -> dict[str, Any]:
    """Every variant for this GPU, side by side, so that no test waits for the compiler."""
    done = run.command([sys.executable, HERE / "compile_all.py", "--device", run.device], 120)
    return done | {"ok": done["exit"] == 0}


def correctness(run: Run) -> dict[str, Any]:
    """The table of operations, layers and losses."""
    operations = [f"tests/{name}" for name in (OPERATIONS[:3] if run.quick else OPERATIONS)]
    layers = [f"tests/test_{name}.py" for name in (LAYERS[:1] if run.quick else LAYERS)]
    found = {
        "operations": run.pytest([*operations, *(["-k", "dropout or nan or infinite"] if run.quick else [])], 150),
        "layers": run.pytest([*layers, "-k", ON_KERNELS], 100),
    }
    return found | {"ok": all(part["ok"] for part in found.values())}


def graphs(run: Run) -> dict[str, Any]:
    """A step replayed as a graph has bitwise the weights of an eager one; the memory plan holds."""
    names = GRAPHS[:2] if run.quick else GRAPHS
    return run.pytest([f"tests/{name}" for name in names], 90)


def golden(run: Run) -> dict[str, Any]:
    """What the intrinsics return, recorded beside the results, and compared with the emulator."""
    file = run.out.with_name("intrinsics.npz")
    about = json.dumps(run.results["environment"]["about"])
    where = [sys.executable, HERE / "golden.py", "--device", run.device, "--about", about, file]
    done = run.command(where, 60)
    if run.device != "cuda":
        file.unlink(missing_ok=True)
    return done | {"ok": done["exit"] == 0, "file": file.name}


def training(run: Run) -> dict[str, Any]:
    """`digits` to its accuracy, and a network twice."""
    quick = ["--quick"] if run.quick else []
    done = run.command([sys.executable, HERE / "training.py", "--device", run.device, *quick], 90, BP_NATIVE="0")
    lines = done["output"].strip().splitlines()
    if lines and lines[-1].startswith('{"found"'):
        done |= json.loads(lines[-1])
        done.pop("output")
    return done | {"ok": done["exit"] == 0}


def benchmarks(run: Run) -> dict[str, Any]:
    """`bp bench` beside PyTorch, CuPy and what else is there: the training steps, then the kernels."""
    found: dict[str, Any] = {"ok": True}
    for name, limit in (("steps", 90), ("kernels", 170)):
        file = run.out.with_name(f"{name}.json")
        file.unlink(missing_ok=True)
        # It stops by itself between two rows. The rest of the time is for the last stage.
        allowed = max(min(limit, run.left - FOR_SANITIZER), 20.0)
        command = [sys.executable, "-m", "bp", "bench", *(KERNELS if name == "kernels" else [name])]
        command += ["--device", run.device, "--seconds", f"{allowed:.0f}", "--json", file]
        done = run.command([*command, *(["--quick"] if run.quick else [])], allowed + 30, BP_NATIVE="0")
        found[name] = json.loads(file.read_text()) if file.exists() else {}
        found[name] |= {"exit": done["exit"], "seconds": done["seconds"], "output": done["output"][-6000:]}
        found["ok"] &= done["exit"] == 0
        file.unlink(missing_ok=True)
    return found


def sanitizer(run: Run) -> dict[str, Any]:
    """compute-sanitizer over small training steps; the three tools beside each other."""
    tool = shutil.which("compute-sanitizer")
    script = [sys.executable, HERE / "small_cases.py", "--device", run.device, "--precision"]
    script += ["fp32"] if run.quick else ["fp32", "bf16"]
    if run.device != "cuda":  # there is none for the emulator, which has a detector of its own
        done = run.command(script, 300, BP_EMULATOR_DETECTOR="1")
        return done | {"ok": done["exit"] == 0}
    if tool is None:
        return {"ok": True, "skipped": "compute-sanitizer is not on the PATH (it comes with the CUDA toolkit)"}

    def watch(name: str) -> dict[str, Any]:
        done = run.command([tool, "--tool", name, "--error-exitcode", "9", "--print-limit", "20", *script], 140)
        done["summary"] = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", done["output"])
        done["output"] = done["output"][-4000:]
        return done | {"ok": done["exit"] == 0}

    names = ("memcheck", "racecheck", "synccheck")
    with ThreadPoolExecutor(len(names)) as pool:
        found: dict[str, Any] = dict(zip(names, pool.map(watch, names), strict=True))
    return found | {"ok": all(part["ok"] for part in found.values())}


def environment(run: Run) -> dict[str, Any]:
    """What runs here: GPU, driver, versions, date, revision."""
    done = run.command([sys.executable, HERE / "environment.py", "--device", run.device], 60)
    about = json.loads(done["output"].splitlines()[-1]) if done["exit"] == 0 else {}
    return {"ok": done["exit"] == 0, "about": about} | ({} if about else {"output": done["output"]})


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "environment": environment,
    "compile": compile_kernels,
    "golden": golden,
    "correctness": correctness,
    "graphs": graphs,
    "training": training,
    "benchmarks": benchmarks,
    "sanitizer": sanitizer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("gpu-results.json"), help="default: %(default)s")
    parser.add_argument("--device", choices=["cuda", "emulator"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a small part of each stage: whether they run at all")
    parser.add_argument("--only", nargs="*", choices=list(STAGES), default=list(STAGES))
    arguments = parser.parse_args()
    if not _has("pytest"):
        sys.exit("pytest is missing: pip install pytest pytest-xdist, or put a folder that holds them on PYTHONPATH")
    run = Run(arguments.device, arguments.quick, arguments.out.resolve())
    run.out.parent.mkdir(parents=True, exist_ok=True)
    for name in ["environment", *(stage for stage in STAGES if stage in arguments.only and stage != "environment")]:
        begun = time.monotonic()
        if run.left < 20:
            result: dict[str, Any] = {"ok": False, "skipped": "no time was left"}
        else:
            result = STAGES[name](run)
        result["stage_seconds"] = round(time.monotonic() - begun, 1)
        run.results[name] = result
        run.out.write_text(json.dumps(run.results, indent=1) + "\n")
        print(f"{name:12} {'ok' if result['ok'] else 'NOT OK':7} {result['stage_seconds']:6.1f} s", flush=True)
        _show(name, result)
        if name == "environment" and not result["ok"]:
            sys.exit(1)
    bad = [name for name, result in run.results.items() if not result["ok"]]
    print(f"{run.out}: {'all stages hold' if not bad else 'look at ' + ', '.join(bad)}, {BUDGET - run.left:.0f} s")
    sys.exit(1 if bad else 0)


def _show(name: str, result: dict[str, Any]) -> None:
    """What went wrong, and the tables."""
    for part in (result, *(value for value in result.values() if isinstance(value, dict))):
        for line in part.get("failed", [])[:10]:
            print("    " + line[:300], flush=True)
        for line in part.get("problems", []):
            print("    " + line, flush=True)
        if part.get("counts"):
            print("    " + ", ".join(f"{count} {what}" for what, count in part["counts"].items()), flush=True)
        if "skipped" in part and isinstance(part["skipped"], str):
            print("    skipped: " + part["skipped"], flush=True)
        for line in part.get("summary", []):
            print("    " + line, flush=True)
        shown = name in ("benchmarks", "environment") or part.get("exit", 0) != 0
        if shown and part.get("output"):
            print(part["output"][-5000:], flush=True)


if __name__ == "__main__":
    main()
