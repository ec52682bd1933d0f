"""Convolution: native kernels, NumPy and PyTorch side by side, one call of each in turn, medians.

    OMP_NUM_THREADS=2 python benchmarks/bench_conv.py [--repeat 30] [--numpy 2] [--only resnet]

For PyTorch the better of its two memory layouts counts. Weight gradients include the bias gradient. The last column is
PyTorch's time over ours: above 1 we are faster. `--clock cpu` reads the CPU time of the calling thread instead of the
wall clock: with OMP_NUM_THREADS=1 it is steady on a machine that others use too.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

import bp.ops.conv as ops
from bp.cpu import native
from bp.cpu.runtime import StepMemory

# Name, batch, image side, input channels, output channels, kernel, stride.
SHAPES = [
    ("mnist first", 128, 28, 1, 32, 3, 1),
    ("mnist second", 128, 14, 32, 64, 3, 1),
    ("resnet stem", 64, 32, 3, 16, 3, 1),
    ("resnet 16", 64, 32, 16, 16, 3, 1),
    ("resnet 16-32", 64, 32, 16, 32, 3, 2),
    ("resnet 32", 64, 16, 32, 32, 3, 1),
    ("resnet 32-64", 64, 16, 32, 64, 3, 2),
    ("resnet 64", 64, 8, 64, 64, 3, 1),
    ("resnet shortcut 16-32", 64, 32, 16, 32, 1, 2),
    ("resnet shortcut 32-64", 64, 16, 32, 64, 1, 2),
]
PASSES = ("forward", "data gradient", "weight gradient")


def medians(contestants: Sequence[Callable[[], object]], repeat: int, clock: Callable[[], float]) -> list[float]:
    """Median seconds of each contestant; they take turns, so that a busy moment of the machine meets all."""
    times: list[list[float]] = [[] for _ in contestants]
    for turn in range(repeat + 2):
        for contestant, measured in zip(contestants, times, strict=True):
            start = clock()
            contestant()
            if turn >= 2:
                measured.append(clock() - start)
    return [statistics.median(measured) for measured in times]


def our_passes(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, dy: np.ndarray, stride: int
) -> list[Callable[[], object]]:
    """The three passes through the operations of bp, writing into memory of the step before."""
    edge = weight.shape[1] // 2
    padding = ((edge, edge), (edge, edge))
    settings = ((stride, stride), padding, (1, 1), 1)
    dweight, dbias = np.empty_like(weight), np.empty_like(bias)
    size = (x.shape[1], x.shape[2])
    return [
        lambda: ops.conv2d(x, weight, bias, *settings),
        lambda: ops.conv2d_backward_input(dy, weight, size, *settings),
        lambda: ops.conv2d_backward_parameters(dy, x, dweight, dbias, False, *settings),
    ]


def torch_passes(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, dy: np.ndarray, stride: int, layout: torch.memory_format
) -> list[Callable[[], object]]:
    """The three passes in PyTorch on arrays of one memory layout."""
    tx, tw, tdy = (torch.tensor(a).movedim(-1, 1).contiguous(memory_format=layout) for a in (x, weight, dy))
    tb, edge, out = torch.tensor(bias), weight.shape[1] // 2, weight.shape[0]

    def gradient(dx: bool, parameters: bool) -> object:
        return torch.ops.aten.convolution_backward(
            tdy, tx, tw, [out], [stride] * 2, [edge] * 2, [1, 1], False, [0, 0], 1, [dx, parameters, parameters]
        )

    return [
        lambda: torch.conv2d(tx, tw, tb, stride, edge),
        lambda: gradient(True, False),
        lambda: gradient(False, True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--numpy", type=int, default=2, help="repetitions of the NumPy reference, which is slow")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.thread_time
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    generator = np.random.default_rng(0)
    print(f"{'shape':22} {'pass':16} {'native':>9} {'NumPy':>9} {'PyTorch':>9}   {'GFLOP/s':>7}  PyTorch / native")
    for name, n, side, channels, out, kernel, stride in SHAPES:
        if arguments.only not in name:
            continue
        x = generator.standard_normal((n, side, side, channels), "float32")
        weight = generator.standard_normal((out, kernel, kernel, channels), "float32")
        dy = generator.standard_normal((n, side // stride, side // stride, out), "float32")
        data = (x, weight, np.zeros(out, "float32"), dy, stride)
        contestants = [our_passes(*data)]
        contestants += [torch_passes(*data, layout) for layout in (torch.contiguous_format, torch.channels_last)]
        kernels = native.kernels
        for label, passes in zip(PASSES, zip(*contestants, strict=True), strict=True):
            with StepMemory(), torch.no_grad():
                ours, *theirs = medians(passes, arguments.repeat, clock)
                native.kernels = None
                (reference,) = medians(passes[:1], arguments.numpy, clock)
                native.kernels = kernels
            flops = 2 * dy.size * kernel * kernel * channels
            times = " ".join(f"{1e3 * t:6.2f} ms" for t in (ours, reference, min(theirs)))
            print(f"{name:22} {label:16} {times}   {flops / ours / 1e9:7.0f}  {min(theirs) / ours:.2f}", flush=True)


if __name__ == "__main__":
    main()
