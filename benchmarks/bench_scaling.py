"""How cost grows: curves over one size, the others held: of the optimizer, and of training steps of a perceptron."""

from dataclasses import dataclass

from bp.bench import Sizes, grid
from bp.benchmarks import bench_optimizer, bench_steps

MILLION = 1 << 20


class OptimizerByParameters(bench_optimizer.AdamW):
    """From what the caches hold to a model of a billion parameters; what the memory does not hold is left out."""

    name = "AdamW by parameters"
    axis = "parameters"
    sizes = Sizes(
        cuda=grid(parameters=[MILLION * 4**power for power in range(6)]),
        cpu=grid(parameters=[MILLION * 4**power for power in range(5)]),
        quick=grid(parameters=[MILLION]),
    )


class Curve(bench_steps.Step):
    """Of training steps; not under torch.compile, which would take longer than all the rest together."""

    precisions = ("bf16", "fp32")
    batch = 128


@dataclass(frozen=True)
class StepByBatch(Curve):
    """Where the launches end and the work begins."""

    name = "training step by batch"
    axis = "batch"
    batches = grid(batch=[1, 4, 16, 64, 256, 1024])
    sizes = Sizes(cuda=batches, cpu=batches, quick=batches[:1])
    network = "mlp-784-512-512-10"
    batch: int


@dataclass(frozen=True)
class StepByWidth(Curve):
    """Both hidden layers of that many."""

    name = "training step by width"
    axis = "width"
    widths = grid(width=[64, 128, 256, 512, 1024, 2048])
    sizes = Sizes(cuda=widths, cpu=widths, quick=widths[:1])
    width: int

    @property
    def network(self):
        return f"mlp-784-{self.width}-{self.width}-10"


@dataclass(frozen=True)
class StepByDepth(Curve):
    """So many hidden layers of 128."""

    name = "training step by depth"
    axis = "depth"
    depths = grid(depth=[2, 4, 8, 16, 32])
    sizes = Sizes(cuda=depths, cpu=depths, quick=depths[:1])
    depth: int

    @property
    def network(self):
        return "-".join(["mlp", "784", *["128"] * self.depth, "10"])
