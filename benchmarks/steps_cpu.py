"""Whole training steps on the CPU next to PyTorch, in one run: forward, loss, backward, AdamW.

    python benchmarks/steps_cpu.py [--repeats 15] [--only mlp-small ...]

Both sides train the same architecture in float32 on the same random batch with as many threads as they take themselves.
Each lives in a process of its own, as it does at its users', since two thread pools in one process get in each other's
way; the processes take turns, so that a busy machine slows both, and medians are compared. PyTorch runs eager with its
fused AdamW, images in both of its memory layouts, of which the faster counts. Writes benchmarks/results/steps-cpu.json
and the README's table.
"""

import argparse
import importlib
import json
import multiprocessing
import platform
import statistics
import time
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

from readme import cpu_name, replace_section

RESULTS = Path(__file__).parent / "results" / "steps-cpu.json"
SIDES = ("steps_bp", "steps_torch")
TURN_SECONDS = 0.3  # a turn repeats a short step for about this long
WORKLOADS: dict[str, tuple[str, tuple[int, ...]]] = {
    "mlp-small": ("MLP 64-64-10, batch 32", (32, 64)),
    "mlp": ("MLP 784-512-512-10, batch 128", (128, 784)),
    "cnn": ("CNN 32-64 on 28x28, batch 128", (128, 28, 28, 1)),
    "resnet20": ("ResNet-20 on 32x32, batch 64", (64, 32, 32, 3)),
}


def take_turns(side: str, name: str, pipe: Connection) -> None:
    """The process of one side: after warming up, a turn of each of its contestants whenever it is asked."""
    make_steps = importlib.import_module(side).make_steps  # before NumPy, as bp wants it
    import numpy as np

    generator = np.random.default_rng(0)
    shape = WORKLOADS[name][1]
    x = generator.standard_normal(shape).astype(np.float32)
    steps = make_steps(name, x, generator.integers(0, 10, shape[0]))
    inner = {}
    for who, step in steps.items():
        for _ in range(5):
            start = time.perf_counter()
            step()
        inner[who] = max(1, int(TURN_SECONDS / (time.perf_counter() - start)))
    pipe.send(list(steps))
    while pipe.recv():
        times = {}
        for who, step in steps.items():
            start = time.perf_counter()
            for _ in range(inner[who]):
                step()
            times[who] = 1e3 * (time.perf_counter() - start) / inner[who]
        pipe.send(times)


def measure(name: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a step, by contestant, of each turn."""
    context = multiprocessing.get_context("spawn")
    pipes, times = [], {}
    for side in SIDES:
        ours, theirs = context.Pipe()
        context.Process(target=take_turns, args=(side, name, theirs), daemon=True).start()
        theirs.close()  # so that a process that ends early ends this one too, with an EOFError
        pipes.append(ours)
        times |= {who: [] for who in ours.recv()}
    for _ in range(repeats):
        for pipe in pipes:
            pipe.send(True)
            for who, milliseconds in pipe.recv().items():
                times[who].append(milliseconds)
    for pipe in pipes:
        pipe.send(False)
    return times


def table(results: dict) -> str:
    """The README's table."""
    lines = ["| training step | bp | PyTorch | PyTorch / bp |", "|---|---|---|---|"]
    for name, (title, _) in WORKLOADS.items():
        r = results["workloads"][name]
        lines.append(f"| {title} | {r['bp_ms']:.3g} ms | {r['torch_ms']:.3g} ms | {r['ratio']:.2f} |")
    lines += ["", f"Medians of {results['repeats']} turns of each side: forward, loss, backward, AdamW, fp32. PyTorch"]
    lines.append(f"{results['torch']} runs eager with fused AdamW, in the faster of its memory layouts.")
    lines.append(f"{results['machine']}, {results['date']}. Runs scatter by some 20 %, so a ratio near 1 means level.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(WORKLOADS), default=list(WORKLOADS))
    arguments = parser.parse_args()
    results: dict = {
        "machine": cpu_name(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torch": version("torch"),
        "repeats": arguments.repeats,
        "workloads": {},
    }
    for name in arguments.only:
        times = measure(name, arguments.repeats)
        medians = {who: statistics.median(values) for who, values in times.items()}
        torch_ms = min(ms for who, ms in medians.items() if who != "bp")
        results["workloads"][name] = {
            "bp_ms": medians["bp"],
            "torch_ms": torch_ms,
            "ratio": torch_ms / medians["bp"],
            "quantiles_20_80": {who: statistics.quantiles(v, n=5)[::3] for who, v in times.items()},
        }
        print(f"{name:10s} " + "  ".join(f"{who} {ms:.3f} ms" for who, ms in medians.items()), flush=True)
    if arguments.only == list(WORKLOADS):
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        replace_section("steps", table(results))


if __name__ == "__main__":
    main()
