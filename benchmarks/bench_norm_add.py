"""Layer norm and RMS norm of x + residual, as pre-norm blocks have it: the sum and its norm in one pass."""

from bp.benchmarks.bench_norm import EPSILON, Norm
from bp.ops import norm


class Forward(Norm):
    """Both what is normalised and the sum, which goes on along the residual path."""

    def draw(self, draw):
        return super().draw(draw) | {"residual": draw.normal(self.rows, self.columns)}

    def nbytes(self, itemsize):
        return 4 * self.rows * self.columns * itemsize


class AddLayerNorm(Forward):
    name = "add + layer norm"

    def bp(self, x, gamma, beta, residual):
        return lambda: norm.add_layer_norm(x, residual, gamma, beta, 1, EPSILON)[:2]

    def torch(self, x, gamma, beta, residual):
        from torch.nn.functional import layer_norm

        return lambda: (layer_norm(total := x + residual, gamma.shape, gamma, beta, EPSILON), total)


class AddRmsNorm(Forward):
    name = "add + RMS norm"

    def bp(self, x, gamma, beta, residual):
        return lambda: norm.add_rms_norm(x, residual, gamma, 1, EPSILON)[:2]

    def torch(self, x, gamma, beta, residual):
        from torch.nn.functional import rms_norm

        return lambda: (rms_norm(total := x + residual, gamma.shape, gamma, EPSILON), total)

    def liger(self, x, gamma, beta, residual):
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

        return lambda: LigerFusedAddRMSNormFunction.apply(x, residual, gamma, EPSILON)


class AddLayerNormBackward(Norm):
    """x: the sum; dtotal: the gradient that reaches it along the residual path, added to that through the norm."""

    name = "add + layer norm backward"

    def draw(self, draw):
        gradients = {name: draw.normal(self.rows, self.columns) for name in ("dy", "dtotal")}
        destinations = {name: draw.zeros(self.columns, wide=True) for name in ("dgamma", "dbeta")}
        return super().draw(draw) | gradients | destinations

    def nbytes(self, itemsize):
        return 4 * self.rows * self.columns * itemsize

    def bp(self, x, gamma, beta, dy, dtotal, dgamma, dbeta):
        _, mean, rstd = norm.layer_norm(x, gamma, beta, 1, EPSILON)
        backward = norm.add_layer_norm_backward
        return lambda: (backward(dy, dtotal, x, gamma, mean, rstd, dgamma, dbeta, False), dgamma, dbeta)

    def torch(self, x, gamma, beta, dy, dtotal, dgamma, dbeta):
        from torch.ops import aten

        _, mean, rstd = aten.native_layer_norm(x, gamma.shape, gamma, beta, EPSILON)

        def backward():
            given = (dy, x, gamma.shape, mean, rstd, gamma, beta, [True] * 3)
            dx, *others = aten.native_layer_norm_backward(*given)
            return dx.add_(dtotal), *others

        return backward
