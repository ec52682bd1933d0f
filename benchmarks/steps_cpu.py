"""Whole training steps on the CPU next to PyTorch, in one run: forward, loss, backward, AdamW.

    python benchmarks/steps_cpu.py [--repeats 15] [--only mlp-small ...]

Both sides train the same architecture in float32 on the same random batch with the same number of threads. The
contestants take turns, so that a busy machine slows both; medians are compared. PyTorch runs eager with fused AdamW,
images in both of its memory layouts, of which the faster counts. Writes benchmarks/results/steps-cpu.json and the
README's table.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from readme import cpu_name, replace_section
from torch import nn

import bp
from bp.cpu.runtime import StepMemory

RESULTS = Path(__file__).parent / "results" / "steps-cpu.json"
Step = Callable[[], None]


def bp_step(model: bp.Layer, x: np.ndarray, y: np.ndarray) -> Step:
    """One step of bp, as the Trainer does it."""
    model.build(x.shape[1:])
    loss, optimizer, memory = bp.CrossEntropyLoss(), bp.AdamW(lr=1e-4).setup(model), StepMemory()

    def step() -> None:
        with memory:
            ctx = bp.Context(training=True)
            loss.forward(model.forward(x, ctx), y, ctx)
            model.backward_parameters(loss.backward(ctx), ctx)
            optimizer.step()

    return step


def torch_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    """The same step of PyTorch."""
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(x), y).backward()
        optimizer.step()

    return step


def torch_mlp(sizes: list[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def torch_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def bp_cnn() -> bp.Layer:
    return bp.Sequential(
        bp.Conv2d(1, 32, 3, padding=1),
        bp.ReLU(),
        bp.MaxPool2d(2),
        bp.Conv2d(None, 64, 3, padding=1),
        bp.ReLU(),
        bp.MaxPool2d(2),
        bp.Flatten(),
        bp.Linear(None, 128),
        bp.ReLU(),
        bp.Linear(None, 10),
    )


class TorchBlock(nn.Module):
    """The basic block of He et al. (2015) with a projection where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def torch_resnet20() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels_in = 16
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(TorchBlock(channels_in, channels, 2 if stage and block == 0 else 1))
            channels_in = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


WORKLOADS: dict[str, tuple[str, tuple[int, ...], Callable[[], bp.Layer], Callable[[], nn.Module]]] = {
    "mlp-small": (
        "MLP 64-64-10, batch 32",
        (32, 64),
        lambda: bp.models.mlp((64,), classes=10, hidden=[64]),
        lambda: torch_mlp([64, 64, 10]),
    ),
    "mlp": (
        "MLP 784-512-512-10, batch 128",
        (128, 784),
        lambda: bp.models.mlp((784,), classes=10, hidden=[512, 512]),
        lambda: torch_mlp([784, 512, 512, 10]),
    ),
    "cnn": ("CNN 32-64 on 28x28, batch 128", (128, 28, 28, 1), bp_cnn, torch_cnn),
    "resnet20": (
        "ResNet-20 on 32x32, batch 64",
        (64, 32, 32, 3),
        lambda: bp.models.resnet20((32, 32, 3), classes=10),
        torch_resnet20,
    ),
}


def contestants(name: str) -> dict[str, Step]:
    """The steps that take turns on one workload."""
    _, shape, ours, theirs = WORKLOADS[name]
    generator = np.random.default_rng(0)
    x = generator.standard_normal(shape).astype(np.float32)
    y = generator.integers(0, 10, shape[0])
    steps = {"bp": bp_step(ours(), x, y)}
    labels = torch.from_numpy(y)
    if x.ndim == 2:
        return steps | {"torch": torch_step(theirs(), torch.from_numpy(x), labels)}
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    steps["torch, NCHW"] = torch_step(theirs(), images.contiguous(), labels)
    nhwc = torch.channels_last
    steps["torch, channels_last"] = torch_step(
        theirs().to(memory_format=nhwc), images.contiguous(memory_format=nhwc), labels
    )
    return steps


def measure(name: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each turn by contestant; a turn is many steps where a step is short."""
    steps = contestants(name)
    inner = 1
    for step in steps.values():
        for _ in range(3):
            step()
    start = time.perf_counter()
    steps["bp"]()
    inner = max(1, int(0.02 / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(repeats):
        for who, step in steps.items():
            start = time.perf_counter()
            for _ in range(inner):
                step()
            times[who].append(1e3 * (time.perf_counter() - start) / inner)
    return times


def table(results: dict) -> str:
    """The README's table."""
    lines = ["| training step | bp | PyTorch | PyTorch / bp |", "|---|---|---|---|"]
    for name, (title, *_) in WORKLOADS.items():
        if name not in results["workloads"]:
            lines.append(f"| {title} | | | not measured yet |")
            continue
        r = results["workloads"][name]
        lines.append(f"| {title} | {r['bp_ms']:.3g} ms | {r['torch_ms']:.3g} ms | {r['ratio']:.2f} |")
    lines.append("")
    lines.append(
        f"Medians of {results['repeats']} turns: forward, loss, backward, AdamW, fp32. PyTorch {results['torch']} runs "
        f"eager with fused AdamW, in its faster memory layout. {results['machine']}, {results['date']}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(WORKLOADS), default=list(WORKLOADS))
    arguments = parser.parse_args()
    results = {
        "machine": cpu_name(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
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
            "quantiles_20_80": {who: list(np.quantile(values, [0.2, 0.8]).round(4)) for who, values in times.items()},
        }
        print(f"{name:10s} " + "  ".join(f"{who} {ms:.3f} ms" for who, ms in medians.items()))
    if arguments.only == list(WORKLOADS):
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        replace_section("steps", table(results))


if __name__ == "__main__":
    main()
