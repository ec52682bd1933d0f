"""Everything that takes a GPU, in one go: benchmarks/gpu.sh runs this. See there for how.

Stages run one after the other, each in processes of its own and within its own limit of time; whatever one does, the
next ones run, and the results so far are on disk. What products of matrices and convolutions need comes first: they are
verified, tuned and timed; the rest follows as long as there is time. With `--device emulator` the same stages run on
the CPU, the tests and the graphs through a stand-in for CuPy (tests/stand_in_cupy.py), and nothing that is measured is
written down.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import verdict

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TESTS = ROOT / "tests"

BUDGET = 540  # seconds for everything
LAST_WORDS = 5  # seconds in which a command that took too long may still write down what it has

# Files whose cases run on the device of BP_TEST_DEVICE; of the layers' tables only the checks that do.
OPERATIONS = sorted(p.name for p in TESTS.glob("test_cuda_*.py") if p.name != "test_cuda_device.py")
LAYERS = ["activation", "conv", "dropout", "embedding", "linear", "norm", "pool", "shape", "containers"]
ON_KERNELS = "matches_on_emulator or matches_in_16_bits"
# Beside linear and conv, which have stages of their own; in the order of what one wants to know first.
KERNELS = ["activation", "norm", "loss", "optimizer", "embedding", "dropout", "pool", "reduce", "shape"]
GRAPHS = ["test_step_graph.py", "test_memory_plan.py", "test_loss_scaling.py"]


@dataclass
class Run:
    """What the stages share. results: what is written to `out` after each; unfit: rungs that did not hold, as
    (family, rung), with their exit codes; limits: of the machine, as the first benchmarks measured them."""

    device: str
    quick: bool
    out: Path
    begun: float = field(default_factory=time.monotonic)
    results: dict[str, Any] = field(default_factory=dict)
    unfit: dict[tuple[str, str], int | str] = field(default_factory=dict)
    limits: Path | None = None

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return BUDGET - (time.monotonic() - self.begun)

    def command(self, arguments: Sequence[str | Path], limit: float, **environment: str) -> dict[str, Any]:
        """Run a command from the root of the checkout within `limit` seconds: its exit code, seconds and output.

        After that it is interrupted, as by Ctrl-C, and some seconds later ended with all that it started.
        """
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
                code = f"stopped after {limit:.0f} s"
                os.killpg(process.pid, signal.SIGINT)
                try:
                    output, _ = process.communicate(timeout=LAST_WORDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    output, _ = process.communicate()
        return {"exit": code, "seconds": round(time.monotonic() - begun, 1), "output": output}

    def pytest(self, arguments: Sequence[str], limit: float) -> dict[str, Any]:
        """Run tests on the device; the counts, and the names and reasons of those that failed."""
        stand_in = [] if self.device == "cuda" else ["-p", "stand_in_cupy"]
        workers = ["-p", "xdist.plugin", "-n", str(min(os.cpu_count() or 1, 12))] if _has("xdist") else []
        options = ["-p", "no:cacheprovider", "--tb=line", "-r", "f", *stand_in, *workers]
        # Plugins that happen to be installed, and what newer packages warn of, have no say here.
        options += ["-o", "filterwarnings=default", "--disable-warnings"]
        where = {"BP_TEST_DEVICE": "cuda", "BP_NATIVE": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        where |= {"BP_TUNING": "off"}  # the built-in choice, whatever was measured here before
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
    quick = ["--quick"] if run.quick else []
    done = run.command([sys.executable, HERE / "compile_all.py", "--device", run.device, *quick], 100)
    return done | {"ok": done["exit"] == 0}


def products(run: Run) -> dict[str, Any]:
    """Each rung of the ladders of products, exact and beside cuBLAS and PyTorch, in a process of its own.

    Those whose instructions no GPU has run yet come first, one after the other and within their own limit of time: what
    hangs or crashes there costs a minute, and takes nothing else along.
    """
    script = [sys.executable, HERE / "every_rung.py", "--device", run.device]
    listed = run.command([*script, "--list"], 60)
    if listed["exit"] != 0:
        return listed | {"ok": False}
    rungs = json.loads(listed["output"].splitlines()[-1])

    def check(family: str, rung: str) -> dict[str, Any]:
        seconds = 2 if run.quick else 25
        command = [*script, "--family", family, "--rung", rung, "--seconds", str(seconds)]
        done = run.command([*command, *(["--quick"] if run.quick else [])], seconds + 35, BP_NATIVE="0")
        lines = done["output"].strip().splitlines()
        if lines and lines[-1].startswith('{"version"'):
            done |= json.loads(lines[-1])
            done.pop("output")
        else:
            done["output"] = done["output"][-3000:]
        if done["exit"] != 0:
            run.unfit[family, rung] = done["exit"]
        return done | {"ok": done["exit"] == 0}

    found = {f"{family} {rung}": check(family, rung) for family, rung, verified in rungs if not verified}
    others = [(family, rung) for family, rung, verified in rungs if verified]
    with ThreadPoolExecutor(max(1, min(6, (os.cpu_count() or 2) - 1))) as pool:
        checked = list(pool.map(lambda one: check(*one), others))
    found |= {f"{family} {rung}": done for (family, rung), done in zip(others, checked, strict=True)}
    return found | {"ok": all(part["ok"] for part in found.values())}


def tune(run: Run) -> dict[str, Any]:
    """`bp tune` for the products that are timed next; what runs after it takes its table, which comes back too."""
    hung = [" ".join(name) for name, code in run.unfit.items() if code != 1]
    if hung:
        return {"ok": True, "skipped": f"bp tune tries every rung, and {', '.join(hung)} hung or crashed"}
    seconds = 5 if run.quick else 50
    command = [sys.executable, HERE / "tuned.py", "--device", run.device, "--seconds", str(seconds)]
    done = run.command([*command, *(["--quick"] if run.quick else [])], seconds + 30, BP_NATIVE="0")
    table = Path(done["output"].strip().rpartition("\n")[2])
    if table.is_file():
        shutil.copyfile(table, run.out.with_name("tuning.json"))
        done |= {"file": "tuning.json", "table": json.loads(table.read_text())}
    return done | {"ok": done["exit"] == 0}


def correctness(run: Run) -> dict[str, Any]:
    """The table of operations, layers and losses."""
    unfit = [f"test_cuda_{family}_{rung}" for family, rung in run.unfit]  # whose tests may hang
    holding = [name for name in OPERATIONS if not name.startswith(tuple(unfit))]
    operations = [f"tests/{name}" for name in (holding[:3] if run.quick else holding)]
    layers = [f"tests/test_{name}.py" for name in (LAYERS[:1] if run.quick else LAYERS)]
    found = {
        "operations": run.pytest([*operations, *(["-k", "dropout or nan or infinite"] if run.quick else [])], 110),
        "layers": run.pytest([*layers, "-k", ON_KERNELS], 80),
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


def benchmark(run: Run, name: str, words: Sequence[str], limit: float) -> dict[str, Any]:
    """`bp bench` with these words, beside PyTorch, CuPy and what else is there; limits are measured once for all."""
    file = run.out.with_name(f"{name}.json")
    file.unlink(missing_ok=True)
    # It stops by itself between two rows; measuring the limits, and a row that is slow to begin, are not counted.
    allowed = max(min(12.0 if run.quick else limit, run.left - 60), 12.0)
    command = [sys.executable, "-m", "bp", "bench", *words, "--device", run.device]
    command += ["--seconds", f"{allowed:.0f}", "--json", str(file)]
    command += ["--quick"] if run.quick else []
    command += [] if run.limits is None else ["--limits", str(run.limits)]
    done = run.command(command, allowed + 90, BP_NATIVE="0")
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if found.get("limits", {}).get("peak") and run.limits is None:
        run.limits = file.rename(file.with_name("limits.json"))
    file.unlink(missing_ok=True)
    rows = found.get("rows", [])
    found |= {"gates": list(verdict.gates(rows)), "losses": verdict.losses(rows)}
    return found | {"ok": done["exit"] == 0, "exit": done["exit"], "seconds": done["seconds"], "output": done["output"]}


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
    "products": products,
    "tune": tune,
    # fp8, which rounds further than what it runs beside, takes part only where it is asked for.
    "linear": lambda run: benchmark(run, "linear", ["linear", *([] if run.quick else ["--use", "linear=fp8"])], 110),
    "conv": lambda run: benchmark(run, "conv", ["conv"], 110),
    "correctness": correctness,
    "graphs": graphs,
    "training": training,
    "steps": lambda run: benchmark(run, "steps", ["steps"], 60),
    "kernels": lambda run: benchmark(run, "kernels", KERNELS, 90),
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
    if run.limits is not None:
        run.limits.unlink()
    bad = [name for name, result in run.results.items() if not result["ok"]]
    print(f"{run.out}: {'all stages hold' if not bad else 'look at ' + ', '.join(bad)}, {BUDGET - run.left:.0f} s")
    sys.exit(1 if bad else 0)


def _show(name: str, result: dict[str, Any]) -> None:
    """What went wrong, and the tables."""
    for part in (result, *(value for value in result.values() if isinstance(value, dict))):
        failed = part.get("failed", [])  # a number, where it is one of the counts
        for line in failed[:10] if isinstance(failed, list) else ():
            print("    " + line[:300], flush=True)
        for line in part.get("problems", []):
            print("    " + line, flush=True)
        if part.get("counts"):
            print("    " + ", ".join(f"{count} {what}" for what, count in part["counts"].items()), flush=True)
        if "skipped" in part and isinstance(part["skipped"], str):
            print("    skipped: " + part["skipped"], flush=True)
        for line in part.get("summary", []):
            print("    " + line, flush=True)
        if (name == "environment" or part.get("exit", 0) != 0) and part.get("output"):
            print(part["output"][-3000:], flush=True)
        for line in verdict.lines(part.get("rows", []), 12):
            print("    " + line[:300], flush=True)


if __name__ == "__main__":
    main()
