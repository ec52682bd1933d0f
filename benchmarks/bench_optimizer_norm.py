"""The norm of all gradients, which clipping takes.

The factor itself costs bp nothing: the optimizer multiplies by it as it reads the gradients. PyTorch measures one
tensor (`torch`); what its users call, `clip_grad_norm_`, also multiplies all gradients of a transformer (`torch-list`).
"""

import math
from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark
from bp.benchmarks.bench_optimizer import Rule, tensors
from bp.ops import control as block
from bp.ops import optimizer
from bp.ops.device import device_of, new_control


@dataclass(frozen=True)
class GlobalNorm(Benchmark):
    name = "global norm"
    precisions = ("fp32",)
    compiles = False
    sizes = Rule.sizes
    parameters: int

    def draw(self, draw):
        return {"gradients": draw.normal(self.parameters, wide=True)}

    def nbytes(self, itemsize):
        return max(itemsize, 4) * self.parameters

    def length(self):
        return self.parameters

    def bp(self, gradients):
        control = new_control(device_of(gradients))
        norm = control[block.GRADIENT_NORM : block.GRADIENT_NORM + 1]
        return lambda: optimizer.clip_by_global_norm(gradients, control, math.inf) or norm

    def numpy(self, gradients):
        return lambda: np.linalg.norm(gradients, keepdims=True)

    def torch(self, gradients):
        from torch.linalg import vector_norm

        return lambda: vector_norm(gradients, keepdim=True)

    def torch_list(self, gradients):
        from torch.nn import Parameter
        from torch.nn.utils import clip_grad_norm_

        parameters = [Parameter(part) for part in tensors(gradients)]
        for parameter in parameters:
            parameter.grad = parameter.data
        return lambda: clip_grad_norm_(parameters, math.inf)[None]
