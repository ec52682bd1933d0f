"""bp.check: every kind of wrong backward is found and named, and no right one is called wrong."""

import numpy as np
import pytest

import bp
from bp import models
from bp.checking import GradientError, check
from bp.initializers import Normal
from bp.layers.parameter import gradients


def built(model, shape):
    model.build(shape)
    return model


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


class OneWrongElement(bp.ReLU):
    def backward(self, dy, ctx):
        dx = super().backward(dy, ctx)
        dx.reshape(-1)[np.argmax(np.abs(dx))] = 0
        return dx


class WritesIntoDy(bp.Layer):
    def forward(self, x, ctx):
        ctx.save(self, x > 0)
        return np.maximum(x, 0)

    def backward(self, dy, ctx):
        (mask,) = ctx.take(self)
        dy *= mask
        return dy


class WritesIntoX(bp.Layer):
    def forward(self, x, ctx):
        np.maximum(x, 0, out=x)
        ctx.save(self, x > 0)
        return 1 * x

    def backward(self, dy, ctx):
        return dy * ctx.take(self)[0]


class WritesIntoY(bp.Layer):
    def forward(self, x, ctx):
        y = np.exp(x)
        ctx.save(self, y)
        return y

    def backward(self, dy, ctx):
        (y,) = ctx.take(self)
        y *= dy
        return y


class Product(bp.Layer):
    """y = w x with a right backward, which the wrong layers spoil in one place each."""

    def __init__(self):
        self.weight = bp.Parameter(Normal(1.0))

    def declare(self, input_shape):
        self.weight.declare(input_shape)
        return input_shape

    def forward(self, x, ctx):
        ctx.save(self, x)
        return x * self.weight.value

    def backward(self, dy, ctx):
        (x,) = ctx.take(self)
        dw, accumulate = gradients(self.weight)
        dw[...] = (dy * x).sum(0) + (dw if accumulate else 0)
        return dy * self.weight.value


class AlwaysOverwrites(Product):
    def backward(self, dy, ctx):
        (x,) = ctx.take(self)
        gradients(self.weight)[0][...] = (dy * x).sum(0)
        return dy * self.weight.value


class AlwaysAdds(Product):
    def backward(self, dy, ctx):
        (x,) = ctx.take(self)
        dw = gradients(self.weight)[0]
        dw += (dy * x).sum(0)
        return dy * self.weight.value


class WrongSignInTheFirstLayer(Product):
    def backward_parameters(self, dy, ctx):
        super().backward(-dy, ctx)


class NothingTakenInTheFirstLayer(Product):
    def backward_parameters(self, dy, ctx):
        super().backward(dy, ctx)
        ctx.save(self, dy)


class LargeConstant(bp.Layer):
    """y = x^2 + 1e9, whose rounding is a billion times that of x^2."""

    factor = 2

    def forward(self, x, ctx):
        ctx.save(self, x)
        return x**2 + 1e9

    def backward(self, dy, ctx):
        return self.factor * ctx.take(self)[0] * dy


class WrongLargeConstant(LargeConstant):
    factor = 5


class ForgetsABranch(bp.Layer):
    """y = tanh(x) + tanh(1), where the second is constant: without its backward dx is right all the same."""

    def __init__(self):
        self.constant, self.branch = bp.Tanh(), bp.Tanh()

    def forward(self, x, ctx):
        return self.constant.forward(np.ones_like(x), ctx) + self.branch.forward(x, ctx)

    def backward(self, dy, ctx):
        return self.branch.backward(dy, ctx)


class WrongShape(bp.Layer):
    def forward(self, x, ctx):
        return x.sum(0, keepdims=True)

    def backward(self, dy, ctx):
        return dy  # broadcasts to the right gradient


WRONG = [
    (WritesIntoDy, r"backward writes into the output gradient dy"),
    (WritesIntoX, r"forward writes into the input x"),
    (WritesIntoY, r"backward writes into the output y"),
    (AlwaysOverwrites, r"a second backward has to add to the gradient of weight"),
    (AlwaysAdds, r"the gradient of weight has NaN: .*accumulate is False"),
    (WrongSignInTheFirstLayer, r"backward_parameters has to give the same as backward for the gradient of weight"),
    (NothingTakenInTheFirstLayer, r"backward_parameters leaves on the context what NothingTaken\w+ '1' saved"),
    (WrongLargeConstant, r"dL along input: backward gives"),
    (ForgetsABranch, r"backward leaves on the context what Tanh '1\.constant' saved"),
    (WrongShape, r"backward gives dx of shape \(1, 5\) for x of shape \(6, 5\)"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_layer_is_found_and_named(make, message, seed):
    model = built(bp.Sequential(bp.Linear(5, 5), make()), (5,))
    with pytest.raises(GradientError, match=rf"^{make.__name__} '1': .*{message}"):
        check(model, draw(6, 5, seed=seed), seed=seed)


@pytest.mark.parametrize("make", [Product, LargeConstant, bp.ReLU])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_layer_without_the_mistake_agrees(make, seed):
    assert check(built(bp.Sequential(bp.Linear(5, 5), make()), (5,)), draw(6, 5, seed=seed), seed=seed)


@pytest.mark.parametrize("seed", range(12))
def test_one_wrong_element_among_a_hundred_thousand(seed):
    x = draw(100, 1000, seed=seed)
    check(built(bp.ReLU(), (1000,)), x, seed=seed)  # with kinks within the step in nearly every direction
    with pytest.raises(GradientError, match="OneWrongElement: dL along input"):
        check(built(OneWrongElement(), (1000,)), x, seed=seed)


@pytest.mark.parametrize("seed", [42, 47, 50])
def test_a_layer_all_of_whose_inputs_are_dead(seed):
    # A whole sample is cut to zero by the first ReLU; with a bias of zero the second would stand on its kink.
    model = models.mlp((9,), classes=1 + seed % 3, hidden=[7, 5])
    model.build((9,), seed=seed)
    check(model, 10.0 ** (seed % 5 - 2) * draw(2 + seed % 4, 9, seed=seed), seed=seed)


def test_functions_that_do_not_depend_on_their_input():
    for layer in (bp.Softmax(), bp.LogSoftmax()):
        check(built(layer, (1,)), draw(3, 1))


@pytest.mark.parametrize(
    ("name", "shape", "seeds"),
    [("mlp", (64,), 8), ("cnn", (16, 16, 1), 3), ("lenet", (28, 28, 1), 3), ("resnet20", (8, 8, 3), 2)],
)
def test_models_agree_at_every_seed(name, shape, seeds):
    for seed in range(seeds):
        model = models.MODELS.get(name)(shape, classes=10)
        model.build(shape, seed=seed)
        check(model, draw(2, *shape, seed=seed), seed=seed)
