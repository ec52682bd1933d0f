"""Training steps of bp for the benchmarks: networks by name, a step as the Trainer does it, and what it costs."""

import functools
import math

import numpy as np

import bp
from bp.errors import ConfigurationError
from bp.initializers import generator_for
from bp.models import MODELS
from bp.ops import control as block
from bp.ops import reduce
from bp.ops.device import device_of
from bp.ops.memory import only_caller_holds
from bp.optimizers import Group
from bp.planning import plan_step

LR, DECAY = 1e-5, 0.01
IMAGES = {"cnn": ((28, 28, 1), 10), "resnet20": ((32, 32, 3), 10), "resnet50": ((224, 224, 3), 1000)}


def network(name):
    """(model, shape of a sample, classes) of one of IMAGES, or of "mlp-INPUTS-HIDDEN-CLASSES" with any number hidden.

    The shapes of the model's parameters are declared. Raises ConfigurationError on another name.
    """
    kind, *widths = name.split("-")
    if kind == "mlp" and len(widths) > 1 and all(width.isdigit() for width in widths):
        inputs, *hidden, classes = map(int, widths)
        shape, model = (inputs,), bp.models.mlp((inputs,), classes=classes, hidden=hidden)
    elif name in IMAGES:
        shape, classes = IMAGES[name]
        model = MODELS.get(name)(shape, classes=classes)
    else:
        raise ConfigurationError(f"expected a network such as mlp-64-32-10, or {', '.join(IMAGES)}, got '{name}'")
    model.declare(shape)
    return model, shape, classes


def initial_parameters(name, seed):
    """All parameters in one flat float32 array, drawn as `model.build` draws them."""
    named = network(name)[0].named_parameters()
    drawn = [parameter.initializer(parameter.shape, generator_for(seed, path)).ravel() for path, parameter in named]
    return np.concatenate(drawn).astype(np.float32)


@functools.cache
def costs(name, batch, precision):
    """(FLOPs, bytes) of all launches of a step together."""
    model, shape, _ = network(name)
    launches = plan_step(model, (batch, *shape), precision=precision).launches
    return sum(launch.flops for launch in launches), sum(launch.nbytes for launch in launches)


def training_step(name, x, labels, parameters):
    """A step, launched kernel by kernel; it returns its loss. parameters: as of `initial_parameters`, on any device."""
    (model, shape, _), device, begin = network(name), device_of(x), 0
    model.build(shape, device=device, dtype=x.dtype)
    for _, parameter in model.named_parameters():
        parameter.value = parameters[begin : begin + parameter.size].reshape(parameter.shape)
        begin += parameter.size
    # All parameters decay, as PyTorch's do.
    loss, optimizer = bp.CrossEntropyLoss(), bp.AdamW(LR, groups=[Group("*", weight_decay=DECAY)]).setup(model)
    control, total = optimizer.control, device.zeros((), np.float64)
    device.copy(control[block.LOSS_DENOMINATOR : block.LOSS_DENOMINATOR + 1], np.array([float(len(labels))]))

    def step():
        ctx = bp.Context(training=True, control_block=control)
        predictions = model.forward(x, ctx)
        ctx.predictions_unneeded = only_caller_holds(predictions)
        value = loss.forward(predictions, labels, ctx)
        reduce.accumulate(total, value, control)
        model.backward_parameters(loss.backward(ctx), ctx)
        if device.name != "cpu":  # a graph has the norm of the gradient in every step; the CPU, where one is logged
            optimizer.clip_by_global_norm(math.inf)
        optimizer.step()
        return value

    return step


def after(times, step):
    """The step, after so many of it."""
    for _ in range(times):
        step()
    return step


def launched(step, device, times):
    """Do so many steps; returns (the ledger of the last one, its loss)."""
    for _ in range(times):
        with device.recording() as ledger:
            loss = step()
    return ledger, loss


class Replayed:
    """A step on a GPU as one graph, on the emulator from its list of launches; `times` of them are done before."""

    def __init__(self, step, device, times):
        self.step, self.memory = step, device.StepMemory()  # whose arrays the launches work on
        with self.memory:
            ledger, self.loss = launched(step, device, times)
        self.launches = len(ledger.launches)
        self.replay = device.replay(ledger)

    def __call__(self):
        self.replay()
        return self.loss
