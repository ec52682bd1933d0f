"""Backward of layer norm and RMS norm: dx, and the sums over all rows that are the gradients of the parameters."""

from bp.benchmarks.bench_norm import EPSILON, Norm
from bp.ops import norm


class Backward(Norm):
    target = 80

    def draw(self, draw):
        destinations = {"dgamma": draw.zeros(self.columns, wide=True), "dbeta": draw.zeros(self.columns, wide=True)}
        return super().draw(draw) | {"dy": draw.normal(self.rows, self.columns)} | destinations

    def nbytes(self, itemsize):
        return 3 * self.rows * self.columns * itemsize


class LayerNormBackward(Backward):
    name = "layer norm backward"

    def bp(self, x, gamma, beta, dy, dgamma, dbeta):
        _, mean, rstd = norm.layer_norm(x, gamma, beta, 1, EPSILON)
        backward = norm.layer_norm_backward
        return lambda: (backward(dy, x, gamma, mean, rstd, dgamma, dbeta, False), dgamma, dbeta)

    def torch(self, x, gamma, beta, dy, dgamma, dbeta):
        from torch.ops import aten

        _, mean, rstd = aten.native_layer_norm(x, gamma.shape, gamma, beta, EPSILON)
        backward = aten.native_layer_norm_backward
        return lambda: backward(dy, x, gamma.shape, mean, rstd, gamma, beta, [True] * 3)

    def liger(self, x, gamma, beta, dy, dgamma, dbeta):
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        from torch.autograd import grad

        inputs = [array.requires_grad_() for array in (x, gamma, beta)]
        y = LigerLayerNormFunction.apply(*inputs, EPSILON)
        return lambda: grad(y, inputs, dy, retain_graph=True)


class RmsNormBackward(Backward):
    name = "RMS norm backward"

    def bp(self, x, gamma, beta, dy, dgamma, dbeta):
        _, rstd = norm.rms_norm(x, gamma, 1, EPSILON)
        return lambda: (norm.rms_norm_backward(dy, x, gamma, rstd, dgamma, False), dgamma)

    def torch(self, x, gamma, beta, dy, dgamma, dbeta):
        """Its operation where it has one, which is on a GPU."""
        from torch.ops import aten

        _, rstd = aten._fused_rms_norm(x, gamma.shape, gamma, EPSILON)

        def backward():
            xhat, g = x * rstd, dy * gamma
            return rstd * (g - xhat * (g * xhat).mean(1, keepdim=True)), (dy * xhat).sum(0)

        if x.is_cuda:
            return lambda: aten._fused_rms_norm_backward(dy, x, gamma.shape, rstd, gamma, [True] * 2)
        return backward

    def liger(self, x, gamma, beta, dy, dgamma, dbeta):
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from torch.autograd import grad

        inputs = [array.requires_grad_() for array in (x, gamma)]
        # In place, it would write dx over dy, which the next run needs.
        y = LigerRMSNormFunction.apply(*inputs, EPSILON, 0.0, "llama", False)
        return lambda: grad(y, inputs, dy, retain_graph=True)
