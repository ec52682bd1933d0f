"""Optimizer steps over all parameters of a model.

bp keeps all parameters in one flat arena, so a step does not know how many tensors there are. PyTorch takes part with
one tensor, which is the best that it can have (`torch`), and with those of a transformer, as its users have them
(`torch-list`), fused where it can be. NumPy loops over the latter.
"""

import itertools
from dataclasses import dataclass
from functools import partial, partialmethod

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import control as block
from bp.ops import optimizer
from bp.ops.device import device_of, new_control

LR, DECAY, BETA1, BETA2, MOMENTUM, ALPHA, EPS = 1e-3, 0.01, 0.9, 0.999, 0.9, 0.99, 1e-8


def tensors(flat):
    """Views of it as 12 blocks of a transformer, four matrices and eight vectors each, and an embedding; aligned."""
    width = max(int((len(flat) / 200) ** 0.5) // 64 * 64, 64)  # 768 for the 124 M parameters of GPT-2
    sizes = [size * width for size in (3 * width, 3, width, 1, 4 * width, 4, 4 * width, 1, 1, 1, 1, 1)]
    return [flat[a:b] for a, b in itertools.pairwise([0, *itertools.accumulate(sizes * 12), len(flat)])]


@dataclass(frozen=True)
class Rule(Benchmark):
    """What the rules have in common. means: their names in bp and in PyTorch; row: the settings of a tile in bp."""

    precisions = ("fp32",)
    compiles = False
    sampled = ("values", "gradients", "first_moment", "second_moment", "velocity", "mean_square")
    target = 92
    sizes = Sizes(grid(parameters=[124_439_808]), grid(parameters=[1 << 20, 1 << 24]), grid(parameters=[1 << 20]))
    parameters: int

    def draw(self, draw):
        means = {name: draw.zeros(self.parameters, wide=True) for name, _ in self.means}
        return {name: draw.normal(self.parameters, wide=True) for name in ("values", "gradients")} | means

    def nbytes(self, itemsize):
        return max(itemsize, 4) * (3 + 2 * len(self.means)) * self.parameters  # values, means in and out, gradients in

    def bp(self, values, gradients, **means):
        device, (name, absent, rule) = device_of(values), self.in_bp
        operation, arrays = getattr(optimizer, name), (values, gradients, *means.values(), *absent)
        settings = device.from_host(np.tile(np.array(self.row, values.dtype), (values.size // optimizer.TILE, 1)))
        control = new_control(device)
        control[block.LEARNING_RATE : block.LEARNING_RATE + 1] = LR

        def step():
            optimizer.advance_step(control)
            operation(*arrays, settings, control, *rule, None, False)
            return (values, *means.values())

        return step

    def numpy(self, values, gradients, **means):
        parts = list(zip(*map(tensors, [values, gradients, *means.values()]), strict=True))

        def steps():
            for t in itertools.count(1):
                for w, *others in parts:
                    w -= LR * self.direction(t, w, *others)
                yield (values, *means.values())

        return partial(next, steps())

    def torch(self, values, gradients, cut=lambda flat: [flat], **means):
        import torch

        parameters = [torch.nn.Parameter(part) for part in cut(values)]
        made = getattr(torch.optim, self.in_torch[0])(parameters, LR, **self.in_torch[1])
        for place, (parameter, parameter.grad) in enumerate(zip(parameters, cut(gradients), strict=True)):
            step = torch.zeros((), device=values.device)
            made.state[parameter] = {"step": step} | {theirs: cut(means[ours])[place] for ours, theirs in self.means}
        return lambda: made.step() or (values, *means.values())

    torch_list = partialmethod(torch, cut=tensors)


class AdamW(Rule):
    name = "AdamW"
    means = ("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")
    row = 1, DECAY, 0, 0
    in_bp = "adam", [None], (BETA1, BETA2, EPS)
    in_torch = "AdamW", {"weight_decay": DECAY, "fused": True}

    def direction(self, t, w, g, m, v):
        m += (1 - BETA1) * (g - m)
        v += (1 - BETA2) * (g * g - v)
        return m / (1 - BETA1**t) / (np.sqrt(v / (1 - BETA2**t)) + EPS) + DECAY * w


class SGD(Rule):
    name = "SGD with momentum"
    means = (("velocity", "momentum_buffer"),)
    row = 1, 0, DECAY, 0
    in_bp = "sgd", [], (MOMENTUM, 0.0, False)
    in_torch = "SGD", {"momentum": MOMENTUM, "weight_decay": DECAY, "fused": True}

    def direction(self, t, w, g, velocity):
        velocity[...] = MOMENTUM * velocity + g + DECAY * w
        return velocity


class RMSprop(Rule):
    name = "RMSprop"
    means = (("mean_square", "square_avg"),)
    row = 1, 0, 0, 0
    in_bp = "rmsprop", [None, None], (ALPHA, EPS, 0.0)
    in_torch = "RMSprop", {"alpha": ALPHA}

    def direction(self, t, w, g, v):
        v += (1 - ALPHA) * (g * g - v)
        return g / (np.sqrt(v) + EPS)
