"""The cases of the losses: each with an independent formula, PyTorch's function, and how it is run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import bp
from bp.ops.device import find_device

# Independent formulas: (predictions, targets) -> (the loss of each term, what the mean divides by) ---------------


def softmax(x):
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(weight=None, ignore=-100, smoothing=0.0):
    def formula(x, labels):
        classes = x.shape[-1]
        w = np.ones(classes) if weight is None else np.array(weight)
        kept = labels != ignore
        safe = np.where(kept, labels, 0)
        target = (1 - smoothing) * np.eye(classes)[safe] * w[safe][..., None] + smoothing / classes * w
        return -(target * np.log(softmax(x))).sum(axis=-1) * kept, (w[safe] * kept).sum()

    return formula


def soft_cross_entropy(weight=None, smoothing=0.0):
    def formula(x, t):
        w = np.ones(x.shape[-1]) if weight is None else np.array(weight)
        t = (1 - smoothing) * t + smoothing / x.shape[-1]
        return -(w * t * np.log(softmax(x))).sum(axis=-1), t[..., 0].size

    return formula


def likelihood(weight=None, ignore=-100):
    def formula(x, labels):
        w = np.ones(x.shape[-1]) if weight is None else np.array(weight)
        kept = labels != ignore
        safe = np.where(kept, labels, 0)
        return -np.take_along_axis(x, safe[..., None], -1)[..., 0] * w[safe] * kept, (w[safe] * kept).sum()

    return formula


def multi_margin(p=1, margin=1.0):
    def formula(x, labels):
        own = np.take_along_axis(x, labels[..., None], -1)
        others = np.arange(x.shape[-1]) != labels[..., None]
        return (np.maximum(0, margin - own + x) ** p * others).mean(axis=-1), labels.size

    return formula


def elementwise(function):
    return lambda x, t: (function(x, t), t.size)


def binary_cross_entropy(pos_weight=1.0):
    def formula(x, t):
        p = 1 / (1 + np.exp(-x))
        return -np.array(pos_weight) * t * np.log(p) - (1 - t) * np.log(1 - p)

    return elementwise(formula)


# Targets: (generator, shape of the predictions) -> array -------------------------------------------------------


def labels(ignore=None, dtype=np.int64):
    def draw(generator, shape):
        drawn = generator.integers(0, shape[-1], shape[:-1])
        if ignore is not None:
            drawn = np.where(generator.random(shape[:-1]) < 0.4, ignore, drawn)
        return np.asarray(drawn, dtype)

    return draw


def normal(generator, shape):
    return generator.standard_normal(shape)


def probabilities(generator, shape):
    return generator.random(shape)


def signs(generator, shape):
    return generator.choice([-1.0, 1.0], shape)


def distributions(generator, shape):
    return softmax(generator.standard_normal(shape))


def log_distributions(generator, shape):
    return np.log(distributions(generator, shape))


# PyTorch: (functional, predictions, targets, reduction) -> loss; its classes are flattened to (rows, C) ----------


def in_rows(function, **settings):
    def loss(functional, x, t, reduction):
        value = getattr(functional, function)(
            x.reshape(-1, x.shape[-1]), t.reshape(-1) if t.ndim < x.ndim else t.reshape(-1, t.shape[-1]),
            reduction=reduction, **settings,
        )  # fmt: skip
        return value.reshape(x.shape[:-1]) if reduction == "none" else value

    return loss


def in_torch(function, **settings):
    return lambda functional, x, t, reduction: getattr(functional, function)(x, t, reduction=reduction, **settings)


@dataclass
class Case:
    """One loss on predictions of one shape."""

    make: Callable[..., bp.Loss]
    shape: tuple[int, ...]
    targets: Callable[..., np.ndarray]
    reference: Callable[..., Any]
    torch: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = "-".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.make.__name__}-{self.targets.__name__}-{'x'.join(map(str, self.shape))}-{settings}"

    def loss(self, reduction):
        return self.make(**self.settings, reduction=reduction)

    def batch(self, dtype="float64"):
        """Predictions and targets of the float32 values, so that every dtype has the same ones."""
        generator = np.random.default_rng(3)
        x, t = generator.standard_normal(self.shape), self.targets(generator, self.shape)
        if t.dtype.kind == "f":
            t = t.astype("float32").astype(dtype)
        return x.astype("float32").astype(dtype), t

    def run(self, reduction, dtype="float64", part=None, denominator=None):
        """(loss, gradient) of a part of the batch; reduction none is summed up with weights of its own."""
        x, t = self.batch(dtype)
        if part is not None:
            x, t = x[part], t[part]
        loss, ctx = self.loss(reduction), bp.Context(training=True, denominator=denominator)
        loss.check(x.shape, t)
        value = loss.forward(x, t, ctx)
        assert isinstance(value, np.ndarray) and value.dtype == dtype
        gradient = loss.backward(ctx, term_weights(value).astype(dtype) if reduction == "none" else None)
        assert ctx.open_layers == []
        assert gradient.dtype == dtype and gradient.shape == x.shape and gradient.flags.c_contiguous
        np.testing.assert_array_equal(loss.forward(x, t, bp.Context(denominator=denominator)), value)
        return value, gradient


def term_weights(losses):
    return np.random.default_rng(4).standard_normal(losses.shape)


W7 = (0.5, 2.0, 1.0, 0.25, 0.0, 3.0, 1.5)
ROWS, IMAGE = (6, 7), (2, 3, 2, 7)


def cross_entropy_case(shape, draw, **settings):
    weight, smoothing = settings.get("weight"), settings.get("label_smoothing", 0.0)
    ignore = settings.get("ignore_index", -100)
    formula = (
        soft_cross_entropy(weight, smoothing) if draw is distributions else cross_entropy(weight, ignore, smoothing)
    )

    def torch(functional, x, t, reduction):
        tensors = settings | ({"weight": x.new_tensor(weight)} if weight else {})
        return in_rows("cross_entropy", **tensors)(functional, x, t, reduction)

    return Case(bp.CrossEntropyLoss, shape, draw, formula, torch, settings)


def likelihood_case(shape, draw, **settings):
    def torch(functional, x, t, reduction):
        tensors = settings | ({"weight": x.new_tensor(settings["weight"])} if "weight" in settings else {})
        return in_rows("nll_loss", **tensors)(functional, x, t, reduction)

    formula = likelihood(settings.get("weight"), settings.get("ignore_index", -100))
    return Case(bp.NLLLoss, shape, draw, formula, torch, settings)


def binary_case(shape, **settings):
    def torch(functional, x, t, reduction):
        weight = x.new_tensor(settings["pos_weight"]) if settings else None
        return functional.binary_cross_entropy_with_logits(x, t, reduction=reduction, pos_weight=weight)

    return Case(bp.BCEWithLogitsLoss, shape, probabilities, binary_cross_entropy(**settings), torch, settings)


def squared_hinge(functional, x, t, reduction):
    terms = functional.relu(1 - x * t) ** 2
    return terms if reduction == "none" else getattr(terms, reduction)()


def plain_hinge(functional, x, t, reduction):
    terms = functional.relu(1 - x * t)
    return terms if reduction == "none" else getattr(terms, reduction)()


CASES = [
    cross_entropy_case(ROWS, labels()),
    cross_entropy_case((1, 1), labels()),
    cross_entropy_case((5, 1), labels(), label_smoothing=0.1),
    cross_entropy_case((7,), labels()),
    cross_entropy_case((3, 4, 5), labels(-100)),
    cross_entropy_case(IMAGE, labels(-100, np.int32), weight=W7),
    cross_entropy_case(ROWS, labels(2), ignore_index=2),
    cross_entropy_case(ROWS, labels(200, np.uint8), ignore_index=200),
    cross_entropy_case(ROWS, labels(), label_smoothing=0.1),
    cross_entropy_case(ROWS, labels(), label_smoothing=1.0),
    cross_entropy_case((9, 7), labels(-100), label_smoothing=0.3, weight=W7),
    cross_entropy_case((37, 129), labels(-1), ignore_index=-1),
    cross_entropy_case((11, 1009), labels(), label_smoothing=0.1),  # blocks of 4 rows in the native kernel
    cross_entropy_case((1030, 131), labels()),  # more than one thread there
    cross_entropy_case(ROWS, distributions),
    cross_entropy_case((7,), distributions, label_smoothing=0.2),
    cross_entropy_case((4, 1), distributions),
    cross_entropy_case(IMAGE, distributions, label_smoothing=0.2, weight=W7),
    likelihood_case(ROWS, labels()),
    likelihood_case((7,), labels()),
    likelihood_case(IMAGE, labels(-100), weight=W7),
    likelihood_case(ROWS, labels(3), ignore_index=3),
    Case(bp.MultiMarginLoss, ROWS, labels(), multi_margin(), in_rows("multi_margin_loss")),
    Case(bp.MultiMarginLoss, (7,), labels(), multi_margin(), in_rows("multi_margin_loss")),
    Case(
        bp.MultiMarginLoss, (2, 3, 5), labels(), multi_margin(2, 0.7), in_rows("multi_margin_loss", p=2, margin=0.7),
        {"p": 2, "margin": 0.7},
    ),
    Case(bp.MSELoss, ROWS, normal, elementwise(lambda x, t: (x - t) ** 2), in_torch("mse_loss")),
    Case(bp.MSELoss, (6,), normal, elementwise(lambda x, t: (x - t) ** 2), in_torch("mse_loss")),
    Case(bp.L1Loss, IMAGE, normal, elementwise(lambda x, t: abs(x - t)), in_torch("l1_loss")),
    Case(
        bp.HuberLoss, ROWS, normal,
        elementwise(lambda x, t: np.where(abs(x - t) <= 0.6, (x - t) ** 2 / 2, 0.6 * (abs(x - t) - 0.3))),
        in_torch("huber_loss", delta=0.6), {"delta": 0.6},
    ),
    binary_case((6, 1)),
    binary_case(ROWS, pos_weight=2.5),
    binary_case(IMAGE, pos_weight=W7),
    Case(bp.KLDivLoss, ROWS, distributions, elementwise(lambda x, t: t * (np.log(t) - x)), in_torch("kl_div")),
    Case(
        bp.KLDivLoss, (2, 3, 5), log_distributions, elementwise(lambda x, t: np.exp(t) * (t - x)),
        in_torch("kl_div", log_target=True), {"log_target": True},
    ),
    Case(bp.HingeLoss, ROWS, signs, elementwise(lambda x, t: np.maximum(0, 1 - t * x)), plain_hinge),
    Case(
        bp.HingeLoss, (5, 1), signs, elementwise(lambda x, t: np.maximum(0, 1 - t * x) ** 2), squared_hinge,
        {"squared": True},
    ),
]  # fmt: skip


def value_and_gradient(loss, x, t, device="cpu"):
    owner, ctx = find_device(device), bp.Context(training=True)
    loss.check(x.shape, t)
    value = loss.forward(owner.from_host(x), owner.from_host(t), ctx)
    return owner.to_host(value), owner.to_host(loss.backward(ctx))
