"""Optimizer steps that look at whole matrices, one weight of a linear layer each: Muon and Adafactor.

PyTorch's own Muon rounds to bfloat16 before it iterates, whatever the weights are: another result, so `torch` is the
same iteration in the precision of the row.
"""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import control as block
from bp.ops import matrix_optimizer
from bp.ops.device import device_of, new_control
from bp.ops.optimizer import advance_step

LR, DECAY, MOMENTUM, MUON_EPS = 0.02, 0.1, 0.95, 1e-7
A, B, C, ITERATIONS = 3.4445, -4.775, 2.0315, 5
BETA2_DECAY, EPS, THRESHOLD = -0.8, (2.0**-23, 1e-3), 1.0  # of Adafactor
QUICK = grid(rows=[160], columns=[96])


@dataclass(frozen=True)
class OfMatrix(Benchmark):
    sizes = Sizes(grid(rows=[1024, 4096], columns=[4096]), grid(rows=[256, 512], columns=[784]), QUICK)
    rows: int
    columns: int

    def draw(self, draw):
        shape = self.rows, self.columns
        return {"values": draw.normal(*shape, wide=True, scale=0.02), "gradients": draw.normal(*shape, wide=True)}

    def length(self):
        return max(self.rows, self.columns)

    def bp(self, values, gradients, **means):
        device, (operation, decay, rule) = device_of(values), self.in_bp
        settings = device.from_host(np.array([[1, decay, 0, 0]], values.dtype))
        control = new_control(device)
        control[block.LEARNING_RATE : block.LEARNING_RATE + 1] = LR

        def step():
            advance_step(control)
            operation(values, gradients, *means.values(), settings, control, *rule, None, False)
            return (values, *means.values())

        return step


class Muon(OfMatrix):
    name = "Muon"
    precisions = ("tf32", "fp32")
    in_bp = matrix_optimizer.muon, DECAY, (MOMENTUM, True, (A, B, C), ITERATIONS, MUON_EPS, "original")

    def draw(self, draw):
        return super().draw(draw) | {"momentum": draw.zeros(self.rows, self.columns, wide=True)}

    def flops(self):
        side = min(self.rows, self.columns)
        return ITERATIONS * (4.0 * side * self.rows * self.columns + 2.0 * side**3)

    def nbytes(self, itemsize):
        return 5 * max(itemsize, 4) * self.rows * self.columns  # values and momentum in and out, gradients in

    def wide(self, *arrays):
        """With at least as many columns as rows, and the factor of the learning rate."""
        return *(array.T if self.rows > self.columns else array for array in arrays), self.length() / self.columns

    def numpy(self, values, gradients, momentum):
        w, g, m, ratio = self.wide(values, gradients, momentum)

        def step():
            m[...] = MOMENTUM * m + (1 - MOMENTUM) * g
            x = MOMENTUM * m + (1 - MOMENTUM) * g
            x /= max(np.linalg.norm(x), MUON_EPS)
            for _ in range(ITERATIONS):
                gram = x @ x.T
                x = A * x + (B * gram + C * (gram @ gram)) @ x
            w[...] = (1 - LR * DECAY) * w - LR * ratio**0.5 * x
            return values, momentum

        return step

    def torch(self, values, gradients, momentum):
        w, g, m, ratio = self.wide(values, gradients, momentum)

        def step():
            x = g.lerp(m.lerp_(g, 1 - MOMENTUM), MOMENTUM)
            x.div_(x.norm().clamp(min=MUON_EPS))
            for _ in range(ITERATIONS):
                gram = x @ x.T
                x = x.addmm(gram.addmm(gram, gram, beta=B, alpha=C), x, beta=A)
            w.mul_(1 - LR * DECAY).add_(x, alpha=-LR * ratio**0.5)
            return values, momentum

        return step


class Adafactor(OfMatrix):
    name = "Adafactor"
    precisions = ("fp32",)
    compiles = False
    in_bp = matrix_optimizer.adafactor, 0.0, (BETA2_DECAY, EPS, THRESHOLD)

    def draw(self, draw):
        means = {"by_row": draw.zeros(self.rows, wide=True), "by_column": draw.zeros(self.columns, wide=True)}
        return super().draw(draw) | means

    def nbytes(self, itemsize):
        return 3 * max(itemsize, 4) * self.rows * self.columns  # values in and out, gradients in

    def torch(self, values, gradients, by_row, by_column):
        import torch

        parameter = torch.nn.Parameter(values)
        parameter.grad = gradients
        made = torch.optim.Adafactor([parameter], LR, BETA2_DECAY, EPS, THRESHOLD)
        made.state[parameter] = {"step": torch.zeros(()), "row_var": by_row[:, None], "col_var": by_column[None]}
        return lambda: made.step() or (values, by_row, by_column)
