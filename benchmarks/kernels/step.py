"""A whole training step of a small network, MLP 784-512-512-10 at batch 128, beside PyTorch's.

    python -m benchmarks.kernels.step [--precision fp32 tf32 bf16] [--out steps.json]

Forward, cross-entropy, backward and AdamW, the batch on the device. bp launches kernel by kernel ("eager") and as one
graph; its step is that of the Trainer, which also sums up the loss and measures the gradient norm. PyTorch runs eager,
under torch.compile, and as one graph of the whole step with a capturable fused AdamW; in bf16 under autocast. Wall time
of many steps in a row, the contestants in turn.
"""

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bp  # before NumPy
import bp.ops.reduce as reduce
from benchmarks.kernels.data import Data
from benchmarks.kernels.timing import Times, summary
from bp.ops import control as block
from bp.ops.array import known_dtype
from bp.ops.device import PRECISIONS, find_device
from bp.planning import plan_step

SIZES, BATCH, CLASSES = (784, 512, 512), 128, 10
MOST_MICROSECONDS, MOST_LAUNCHES, LEAST_OVER_EAGER, LEAST_OVER_GRAPH = 60, 16, 5.0, 1.5

Step = Callable[[], Any]


def network(sizes: tuple[int, ...]) -> bp.Sequential:
    """Linear and ReLU in turn."""
    hidden = [layer for n, m in itertools.pairwise(sizes) for layer in (bp.Linear(n, m), bp.ReLU())]
    return bp.Sequential(*hidden, bp.Linear(sizes[-1], CLASSES))


def our_steps(device: Any, precision: str, x: np.ndarray, y: np.ndarray) -> tuple[dict[str, Step], list[str]]:
    """The step launched kernel by kernel and as one graph, and the names of its kernels."""
    model = network((x.shape[1], *SIZES[1:]))
    model.build((x.shape[1],), device=device, dtype=PRECISIONS[precision], seed=0)
    loss, optimizer = bp.CrossEntropyLoss(), bp.AdamW(lr=1e-4).setup(model)
    inputs, labels = device.from_host(x.astype(known_dtype(PRECISIONS[precision]))), device.from_host(y)
    total, memory = device.zeros((), np.float64), device.StepMemory()
    denominator = optimizer.control[block.LOSS_DENOMINATOR : block.LOSS_DENOMINATOR + 1]
    device.copy(denominator, np.array([float(len(y))]))

    def work() -> None:
        with memory:
            ctx = bp.Context(training=True, control_block=optimizer.control)
            value = loss.forward(model.forward(inputs, ctx), labels, ctx)
            reduce.accumulate(total, value, optimizer.control)
            model.backward_parameters(loss.backward(ctx), ctx)
            optimizer.clip_by_global_norm(math.inf)
            optimizer.step()

    for _ in range(3):
        work()
    with device.recording() as ledger:
        work()
    names = [launch.variant.kernel.name for launch in ledger.launches]
    plan = plan_step(model, x.shape, optimizer=bp.AdamW(), precision=precision)
    planned = [launch.variant.kernel.name for launch in plan.launches]
    if names != planned:
        print(f"the plan of the step differs from what was launched: {planned}", flush=True)
    replay = device.replay(ledger)
    before = float(device.to_host(total))
    replay()
    if not math.isfinite(float(device.to_host(total))) or float(device.to_host(total)) == before:
        raise RuntimeError("the replayed step did nothing")
    return {"bp graph": replay, "bp eager": work}, names


def their_steps(data: Data, precision: str, x: np.ndarray, y: np.ndarray) -> dict[str, Step]:
    """PyTorch's; empty without it."""
    torch = data.torch
    if torch is None:
        return {}
    where = "cuda" if data.device.name == "cuda" else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    inputs, labels = torch.from_numpy(x).to(where), torch.from_numpy(y).to(where)
    cast = functools.partial(torch.autocast, where, torch.bfloat16, enabled=precision == "bf16")

    def make(compiled: bool, capturable: bool) -> Step:
        sizes = (x.shape[1], *SIZES[1:])
        layers = [m for a, b in itertools.pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], CLASSES)).to(where)
        settings = {"fused": True, "capturable": capturable} if where == "cuda" else {}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **settings)

        def loss_of(x: Any, y: Any) -> Any:
            with cast():
                return torch.nn.functional.cross_entropy(model(x), y)

        function = torch.compile(loss_of) if compiled else loss_of

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            function(inputs, labels).backward()
            optimizer.step()

        return step

    steps = {"torch eager": make(False, False)}
    if where == "cuda":
        steps["torch.compile"] = make(True, False)
        steps["torch graph"] = captured(torch, make(False, True))
    return steps


def captured(torch: Any, step: Step) -> Step:
    """The whole step as one CUDA graph, after a warm-up on a stream beside, as PyTorch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(steps: dict[str, Step], synchronize: Step, many: int, turns: int) -> dict[str, Times]:
    """Seconds of a step, of `many` in a row, by contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            synchronize()
            begun = time.perf_counter()
            for _ in range(many):
                step()
            synchronize()
            if turn:  # the first is a warm-up
                seconds[name].append((time.perf_counter() - begun) / many)
    return {name: summary(found) for name, found in seconds.items()}


def judged(times: dict[str, Times], launches: list[str]) -> dict[str, Any]:
    """The figures of one precision, and which targets they reach."""
    ours = times["bp graph"].median
    ratios = {name: times[name].median / ours for name in times if name.startswith("torch")}
    verdicts = {
        f"at most {MOST_MICROSECONDS} us": 1e6 * ours <= MOST_MICROSECONDS,
        f"at most {MOST_LAUNCHES} launches": len(launches) <= MOST_LAUNCHES,
    }
    if "torch eager" in ratios:
        verdicts[f"{LEAST_OVER_EAGER} times eager"] = ratios["torch eager"] >= LEAST_OVER_EAGER
    rivals = [ratio for name, ratio in ratios.items() if name != "torch eager"]
    if rivals:
        verdicts[f"{LEAST_OVER_GRAPH} times the faster of compile and graph"] = min(rivals) >= LEAST_OVER_GRAPH
    microseconds = {
        name: {"median": 1e6 * t.median, "low": 1e6 * t.low, "high": 1e6 * t.high} for name, t in times.items()
    }
    return {"microseconds": microseconds, "ratios": ratios, "reached": verdicts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--precision", nargs="*", help="default: all of fp32, tf32, bf16 that the device has")
    parser.add_argument("--seconds", type=float, default=600.0, help="no precision begins after so many")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    device: Any = find_device(arguments.device)
    begun, results = time.monotonic(), {}
    generator = np.random.default_rng()
    inside = 32 if arguments.quick else SIZES[0]
    x = generator.standard_normal((BATCH, inside)).astype(np.float32)
    y = generator.integers(0, CLASSES, BATCH)
    for precision in arguments.precision or [p for p in ("fp32", "tf32", "bf16") if p in device.precisions]:
        if time.monotonic() - begun > arguments.seconds:
            print(f"no time was left for {precision}")
            break
        with device.running(precision):
            steps, launches = our_steps(device, precision, x, y)
            steps |= their_steps(Data(device), precision, x, y)
            # The streams of bp and of PyTorch are two: wait for the whole GPU.
            wait = device.cupy.cuda.Device().synchronize if device.name == "cuda" else device.synchronize
            times = measure(steps, wait, *((1, 2) if arguments.quick else (200, 15)))
        results[precision] = {"launches": launches}
        print(f"{precision}: {len(launches)} launches: {', '.join(launches)}", flush=True)
        if device.name == "cuda":
            results[precision] |= judged(times, launches)
            for name, t in times.items():
                print(f"  {name:14} {1e6 * t.median:8.1f} us ({1e6 * t.low:.1f} to {1e6 * t.high:.1f})", flush=True)
            for target, reached in results[precision]["reached"].items():
                print(f"  {'reached' if reached else 'NOT reached'}: {target}", flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
