"""Normalisation over the last axis: layer norm and RMS norm."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import norm

EPSILON = 1e-5


@dataclass(frozen=True)
class Norm(Benchmark):
    """What all have in common. rows, columns: of the input; each row is normalised."""

    sampled = ("x", "dy", "residual", "dtotal")
    sizes = Sizes(
        cuda=grid(rows=[8192], columns=[1024, 4096]),
        cpu=grid(rows=[128, 8192], columns=[256, 1024]),
        quick=grid(rows=[64], columns=[256]),
    )
    rows: int
    columns: int

    def draw(self, draw):
        rows, columns = self.rows, self.columns
        return {"x": draw.normal(rows, columns), "gamma": draw.normal(columns), "beta": draw.normal(columns)}

    def length(self):
        return max(self.rows, self.columns)


class Forward(Norm):
    target = 92

    def nbytes(self, itemsize):
        return 2 * self.rows * self.columns * itemsize


class LayerNorm(Forward):
    name = "layer norm"

    def bp(self, x, gamma, beta):
        return lambda: norm.layer_norm(x, gamma, beta, 1, EPSILON)[0]

    def numpy(self, x, gamma, beta):
        def layer_norm():
            centred = x - x.mean(axis=1, keepdims=True)
            variance = np.square(centred).mean(axis=1, keepdims=True)
            return centred / np.sqrt(variance + EPSILON) * gamma + beta

        return layer_norm

    def torch(self, x, gamma, beta):
        from torch.nn.functional import layer_norm

        return lambda: layer_norm(x, gamma.shape, gamma, beta, EPSILON)

    def liger(self, x, gamma, beta):
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        return lambda: LigerLayerNormFunction.apply(x, gamma, beta, EPSILON)


class RmsNorm(Forward):
    """It has no beta."""

    name = "RMS norm"

    def bp(self, x, gamma, beta):
        return lambda: norm.rms_norm(x, gamma, 1, EPSILON)[0]

    def numpy(self, x, gamma, beta):
        return lambda: x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + EPSILON) * gamma

    def torch(self, x, gamma, beta):
        from torch.nn.functional import rms_norm

        return lambda: rms_norm(x, gamma.shape, gamma, EPSILON)

    def liger(self, x, gamma, beta):
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return lambda: LigerRMSNormFunction.apply(x, gamma, EPSILON)
