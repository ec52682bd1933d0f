"""Whole training steps: forward, cross-entropy, backward and AdamW on one batch, all from the same parameters.

A step of bp is that of its Trainer without the way of a batch to the device. On a GPU the Trainer replays it as one
graph (`bp`); `bp eager` launches kernel by kernel. FLOPs and bytes are those of all launches of the planned step, so
where "compute" bounds a row, its per cent of the limit is what is called MFU.
"""

import math
from dataclasses import dataclass, replace

from bp.bench import Benchmark, Measured, Sizes, only_on
from bp.benchmarks import steps
from bp.ops.device import device_of

VECTORS = [{"network": "mlp-64-64-10", "batch": 32}, {"network": "mlp-784-512-512-10", "batch": 128}]
IMAGES = [{"network": "cnn", "batch": 128}, {"network": "resnet20", "batch": 64}, {"network": "resnet50", "batch": 128}]
CHECKED_FLOPS = 5e10  # a step
WARM_UP = 3  # steps of everybody before the first that counts; a graph is captured of a step that has run before


class Step(Benchmark):
    """`network`: a name that `steps.network` knows, or a property that gives one; `batch`: samples."""

    precisions = ("bf16", "tf32", "fp32")
    successive = 3
    measures_memory = True
    compiles = False  # as a whole: torch.compile takes what is before the optimizer

    def draw(self, draw):
        _, shape, classes = steps.network(self.network)
        values = steps.initial_parameters(self.network, seed=int(draw.integers(1 << 31, 1).block[0]))
        arrays = {"x": draw.normal(self.batch, *shape), "labels": draw.integers(classes, self.batch)}
        return arrays | {"parameters": draw.exactly(values)}

    def flops(self):
        return steps.costs(self.network, self.batch, "fp32")[0]

    def nbytes(self, itemsize):
        return steps.costs(self.network, self.batch, "bf16" if itemsize == 2 else "fp32")[1] * max(itemsize / 4, 1)

    def length(self):
        """The loss ends a chain of sums whose rounding errors add up: over the inputs of an output in each layer, over
        the pixels of a batch in statistics and gradients, and all that again in each step."""
        model, shape, _ = steps.network(self.network)
        inputs = sum(parameter.size // parameter.shape[0] for _, parameter in model.named_parameters())
        return (WARM_UP + self.successive) * (inputs + self.batch * math.prod(shape[:-1]))

    def bp(self, x, labels, parameters):
        step, device = steps.training_step(self.network, x, labels, parameters), device_of(x)
        if device.name == "cpu":
            return self.measured(steps.after(WARM_UP, step))
        step = steps.Replayed(step, device, WARM_UP)
        return self.measured(step, launches=step.launches)

    @only_on("cuda", "emulator")
    def bp_eager(self, x, labels, parameters):
        step = steps.training_step(self.network, x, labels, parameters)
        ledger, _ = steps.launched(step, device_of(x), WARM_UP)
        return self.measured(step, launches=len(ledger.launches))

    def torch(self, x, labels, parameters):
        return self.measured(steps.after(WARM_UP, self.peer(x, labels, parameters)))

    @only_on("cuda")
    def torch_graph(self, x, labels, parameters):
        from bp.benchmarks.torch_steps import captured

        return self.measured(captured(self.peer(x, labels, parameters, capturable=True), WARM_UP))

    def peer(self, x, labels, parameters, **settings):
        """PyTorch's step; images in its channels_last layout."""
        from bp.benchmarks.torch_steps import training_step, twin

        model, shape, _ = steps.network(self.network)
        return training_step(twin(model, shape, parameters), x, labels, steps.LR, steps.DECAY, **settings)

    def measured(self, step, **facts):
        return Measured(step, lambda: {"samples": self.batch, **facts})


class TrainingStep(Step):
    """With everybody who takes part."""

    def torch_compile(self, x, labels, parameters):
        return self.measured(steps.after(WARM_UP, self.peer(x, labels, parameters, compiled=True)))


@dataclass(frozen=True)
class VectorStep(TrainingStep):
    """Of multilayer perceptrons."""

    name = "training step"
    network: str
    batch: int
    sizes = Sizes(cuda=VECTORS, cpu=VECTORS, quick=VECTORS[:1])


@dataclass(frozen=True)
class ImageStep(TrainingStep):
    """Of convolutional networks; torch-nchw has channels first in memory too."""

    name = "training step on images"
    network: str
    batch: int
    sizes = Sizes(cuda=IMAGES, cpu=IMAGES[:2], quick=[{"network": "cnn", "batch": 4}])

    def checked(self):
        """With fewer samples where float64 on the host would take minutes."""
        most = max(2, int(CHECKED_FLOPS / steps.costs(self.network, 1, "fp32")[0]))
        return self if self.batch <= most else replace(self, batch=most)

    def torch_nchw(self, x, labels, parameters):
        return self.measured(steps.after(WARM_UP, self.peer(x, labels, parameters, channels_last=False)))
