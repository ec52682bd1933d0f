"""Containers: the table of their cases, their names and errors, and the graphs by hand of docs/layers.md."""

import re
from pathlib import Path

import numpy as np
import pytest
from table import LAYER_CHECKS, Case

import bp
from bp.checking import check


def linear(x, weight, bias):
    return x @ weight.value.T + bias.value


def residual_reference(layer, x):
    body = linear(
        np.tanh(linear(x, layer.body[0].weight, layer.body[0].bias)), layer.body[2].weight, layer.body[2].bias
    )
    return body + (x if layer.shortcut is None else linear(x, layer.shortcut.weight, layer.shortcut.bias))


def residual_in_torch(p, torch, x):
    F = torch.nn.functional
    body = F.linear(torch.tanh(F.linear(x, p["body.0.weight"], p["body.0.bias"])), p["body.2.weight"], p["body.2.bias"])
    return body + (x if p.layer.shortcut is None else F.linear(x, p["shortcut.weight"], p["shortcut.bias"]))


def body(size):
    return bp.Sequential(bp.Linear(None, 4), bp.Tanh(), bp.Linear(None, size))


def branches(axis):
    return bp.Concat(bp.Linear(None, 5), bp.Sequential(), bp.Sequential(bp.Linear(None, 5), bp.Sigmoid()), axis=axis)


def concat_reference(layer, x):
    parts = [linear(x, layer.branches[0].weight, layer.branches[0].bias), x]
    parts.append(1 / (1 + np.exp(-linear(x, layer.branches[2][0].weight, layer.branches[2][0].bias))))
    return np.concatenate(parts, layer.axis)


def concat_in_torch(p, torch, x):
    F = torch.nn.functional
    gate = torch.sigmoid(F.linear(x, p["2.0.weight"], p["2.0.bias"]))
    return torch.cat([F.linear(x, p["0.weight"], p["0.bias"]), x, gate], p.layer.axis)


CASES = [
    Case(lambda: bp.Residual(body(3)), (5, 3), residual_reference, residual_in_torch, length=12),
    Case(lambda: bp.Residual(body(2), bp.Linear(3, 2)), (5, 3), residual_reference, residual_in_torch, length=12),
    Case(lambda: bp.Residual(body(3)), (0, 2, 3), residual_reference, residual_in_torch, name="empty"),
    Case(lambda: bp.Residual(bp.Sequential()), (4, 3), lambda layer, x: 2 * x, lambda p, torch, x: x + x, name="twice"),
    Case(lambda: branches(-1), (4, 3), concat_reference, concat_in_torch, length=15),
    Case(lambda: branches(2), (4, 2, 5), concat_reference, concat_in_torch, length=30, name="axis2"),
    Case(lambda: branches(1), (4, 2, 5), concat_reference, concat_in_torch, length=30, name="axis1"),
    Case(lambda: branches(-1), (0, 3), concat_reference, concat_in_torch, name="empty"),
    Case(lambda: bp.Concat(bp.Tanh()), (4, 3), lambda layer, x: np.tanh(x), name="one-branch"),
    Case(
        lambda: bp.Recompute(bp.Residual(body(3))),
        (5, 3),
        lambda layer, x: residual_reference(layer.layer, x),
        length=12,
    ),
    Case(lambda: bp.Sequential(bp.Linear(3, 3), bp.Recompute(bp.Dropout(0.5)), bp.Dropout(0.5)), (5, 3), length=3),
    Case(bp.Sequential, (4, 3), lambda layer, x: x, lambda p, torch, x: x * 1, name="identity"),
    Case(
        lambda: bp.Sequential(
            bp.Flatten(), bp.Linear(None, 4), bp.Residual(bp.Linear(4, 4)), bp.Concat(bp.Tanh(), bp.ReLU())
        ),
        (3, 2, 5),
        length=10,
        name="nested",
    ),
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


def test_names_follow_the_tree():
    model = bp.Sequential(
        bp.Linear(4, 4),
        bp.Residual(bp.Sequential(bp.Linear(4, 4), bp.ReLU()), shortcut=bp.Linear(4, 4, bias=False)),
        bp.Concat(bp.Linear(4, 2), bp.Recompute(bp.Linear(4, 2))),
    )
    model.build((4,))
    assert [name for name, _ in model.named_parameters()] == [
        "0.weight",
        "0.bias",
        "1.body.0.weight",
        "1.body.0.bias",
        "1.shortcut.weight",
        "2.0.weight",
        "2.0.bias",
        "2.1.layer.weight",
        "2.1.layer.bias",
    ]
    assert model[1].body[0].label == "Linear '1.body.0'"
    with pytest.raises(bp.errors.ShapeError, match=r"Linear '1\.body\.0': linear_activation expected x with 4"):
        model[1](np.zeros((2, 3), np.float32))


def test_a_sequential_can_be_indexed_sliced_and_walked():
    model = bp.Sequential(bp.Linear(3, 4), bp.ReLU(), bp.Linear(4, 2))
    model.build((3,))
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    assert len(model) == 3 and model[-1] is model[2] and list(model) == [model[0], model[1], model[2]]
    head, tail = model[:2], model[2:]
    assert isinstance(head, bp.Sequential) and len(head) == 2
    np.testing.assert_array_equal(tail(head(x)), model(x))


def test_a_sequential_of_somebodys_own_need_only_set_its_layers():
    class Own(bp.Sequential):
        """Makes its layers itself."""

        def __init__(self):
            self.layers = (bp.Linear(3, 4), bp.ReLU(), bp.Linear(4, 2))

    model = Own()
    model.build((3,))
    check(model, np.random.default_rng(0).standard_normal((5, 3)))


def test_gradients_of_parameters_without_that_of_the_input():
    def gradients(method):
        model = bp.Sequential(bp.Flatten(), bp.Tanh(), bp.Residual(bp.Linear(6, 6)), bp.Linear(6, 2))
        model.build((2, 3))
        ctx = bp.Context(training=True)
        y = model.forward(np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32), ctx)
        getattr(model, method)(np.ones_like(y), ctx)
        assert ctx.open_layers == []
        return {name: p.grad for name, p in model.named_parameters()}

    full, short = gradients("backward"), gradients("backward_parameters")
    for name, gradient in full.items():
        np.testing.assert_array_equal(short[name], gradient)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.Sequential(bp.ReLU(), bp.ReLU), r"Sequential expected layers, got at position 1 the class ReLU"),
        (lambda: bp.Sequential([bp.ReLU()]), r"Sequential .* position 0 a list; write Sequential\(\*layers\)"),
        (lambda: bp.Residual(np.tanh), "Residual expected layers, got at position 0 <ufunc 'tanh'>"),
        (lambda: bp.Residual(bp.ReLU(), 3), "Residual expected layers, got at position 1 3"),
        (lambda: bp.Recompute(None), "Recompute expected layers, got at position 0 None"),
        (lambda: bp.Concat(), "Concat expected at least one branch"),
        (lambda: bp.Concat(bp.ReLU(), axis=0), "Concat expected an axis of the samples, got 0, which is the batch"),
    ],
)
def test_what_is_no_layer(make, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (bp.Residual(bp.Linear(3, 4)), (3,), r"output, of shape \(4,\), cannot be added to the input, of shape \(3,\)"),
        (bp.Residual(bp.Linear(3, 4), bp.Linear(3, 2)), (3,), r"the shortcut's output, of shape \(2,\)"),
        (bp.Concat(bp.ReLU(), bp.Flatten()), (2, 3), r"axis -1 only, got \(2, 3\) and \(6,\)"),
        (bp.Concat(bp.ReLU(), bp.Linear(3, 4), axis=1), (2, 3), r"axis 1 only, got \(2, 3\) and \(2, 4\)"),
        (bp.Concat(bp.ReLU(), axis=3), (2, 3), r"with an axis 3, got an output of shape \(2, 3\)"),
        (bp.Concat(bp.ReLU(), axis=-3), (2, 3), r"with an axis -3, got an output of shape \(2, 3\)"),
    ],
)
def test_shapes_that_do_not_fit(layer, shape, message):
    with pytest.raises(bp.errors.ShapeError, match=f"{type(layer).__name__} '0': .*{message}"):
        bp.Sequential(layer).build(shape)


def test_recompute_keeps_its_input_alone():
    def kept(model):
        model.build((3,))
        ctx = bp.Context(training=True)
        model.forward(np.zeros((2, 3), np.float32), ctx)
        return len(ctx.open_layers)

    assert kept(bp.Sequential(body(3), body(3))) == 6
    assert kept(bp.Recompute(bp.Sequential(body(3), body(3)))) == 1
    assert kept(bp.Recompute(bp.Recompute(body(3)))) == 1


def test_graphs_by_hand_of_the_documentation():
    page = Path(__file__).parent.parent / "docs" / "layers.md"
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(example, names)
    for layer in (names["Gated"](4), names["Sum"](bp.Linear(None, 4), bp.Sequential(bp.Linear(None, 4), bp.Tanh()))):
        model = bp.Sequential(bp.Linear(None, 3), layer, bp.Tanh())
        assert model.build((5,)) == (4,)
        comparisons = check(model, np.random.default_rng(0).standard_normal((6, 5)))
        assert layer.label in {comparison.layer for comparison in comparisons}
