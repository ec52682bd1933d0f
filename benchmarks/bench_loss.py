"""Cross-entropy and its gradient: the mean over the batch, and what the backward pass begins with."""

from dataclasses import dataclass

import numpy as np

from bp.bench import Benchmark, Sizes, grid
from bp.ops import control as block
from bp.ops import loss
from bp.ops.device import device_of, new_control


def mean_and_gradient(operation, terms, predictions, targets, before=(), after=()):
    """How bp does it. terms: in the mean; before, after: the arguments around the control block."""
    control = new_control(device_of(predictions))
    control[block.LOSS_DENOMINATOR : block.LOSS_DENOMINATOR + 1] = terms

    def work():
        losses, gradient = operation(predictions, targets, *before, control, *after, True)
        return loss.mean_of_terms(losses, control), gradient

    return work


@dataclass(frozen=True)
class CrossEntropy(Benchmark):
    """Of logits and integer labels."""

    name = "cross-entropy"
    target = 90
    sampled = ("logits", "labels")
    sizes = Sizes(
        cuda=grid(rows=[4096, 8192], classes=[50_304]),
        cpu=grid(rows=[128], classes=[10, 1000]) + grid(rows=[8192], classes=[64, 1000]),
        quick=grid(rows=[512], classes=[100]),
    )
    rows: int
    classes: int

    def draw(self, draw):
        return {"logits": draw.normal(self.rows, self.classes), "labels": draw.integers(self.classes, self.rows)}

    def nbytes(self, itemsize):
        return 2 * self.rows * self.classes * itemsize

    def length(self):
        return self.classes

    def bp(self, logits, labels):
        return mean_and_gradient(loss.softmax_cross_entropy, self.rows, logits, labels, [None], [-100, 0.0])

    def numpy(self, logits, labels):
        def work():
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            place = np.arange(self.rows), labels
            mean = -np.log(p[place]).mean()
            p[place] -= 1
            return mean, p / np.float32(self.rows)

        return work

    def torch(self, logits, labels):
        """The functions that cross_entropy and its backward are made of; `mean` is the number of a reduction."""
        from torch.ops import aten

        one, mean = logits.new_ones(()), 1

        def work():
            y = aten._log_softmax(logits, 1, False)
            value, weight = aten.nll_loss_forward(y, labels, None, mean, -100)
            dy = aten.nll_loss_backward(one, y, labels, None, mean, -100, weight)
            return value, aten._log_softmax_backward_data(dy, y, 1, y.dtype)

        return work

    def liger(self, logits, labels):
        """Puts the gradient where the logits were."""
        from liger_kernel.transformers import LigerCrossEntropyLoss
        from torch.autograd import grad

        logits.requires_grad_()
        cross_entropy = LigerCrossEntropyLoss()
        return lambda: (value := cross_entropy(logits, labels), *grad(value, logits))
