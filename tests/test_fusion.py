"""Fusion: the groups that a Sequential runs as one give what its layers give one after the other."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from emulated import DTYPES, Exact, compare, to_device, to_host
from table import KERNEL_DEVICE, assert_close, emulating
from test_dropout import control_block

import bp
import bp.layers.fusion as fusion
import bp.ops.conv as conv_ops
import bp.ops.linear as linear_ops
import bp.ops.norm as norm_ops
from bp.checking import GradientError, check, tolerance
from bp.layers.fusion import Plan
from bp.ops import scope
from bp.ops.activation import FUSED_ACTIVATIONS
from bp.ops.device import find_device
from bp.ops.dropout import Mask, dropout

ACTIVATIONS = {
    "relu": bp.ReLU,
    "gelu": bp.GELU,
    "gelu_tanh": lambda: bp.GELU("tanh"),
    "silu": bp.SiLU,
}


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


# The plan -------------------------------------------------------------------------------------------------------------


class OwnReLU(bp.ReLU):
    """A layer that somebody wrote on top of one of bp's."""


def names(groups):
    return ["+".join(type(layer).__name__ for layer in group.layers) for group in groups]


@pytest.mark.parametrize(
    ("expected", "layers", "taking_in"),
    [
        ("Linear+ReLU Linear", [bp.Linear(2, 3), bp.ReLU(), bp.Linear(3, 2)], {1}),
        ("Linear+GELU+Dropout Linear", [bp.Linear(2, 3), bp.GELU(), bp.Dropout(0.1), bp.Linear(3, 2)], {1}),
        ("Linear+Dropout Linear", [bp.Linear(2, 3), bp.Dropout(0.1), bp.Linear(3, 2)], {1}),
        ("Linear Linear", [bp.Linear(2, 3), bp.Linear(3, 2)], set()),
        ("Linear Tanh Dropout Linear", [bp.Linear(2, 3), bp.Tanh(), bp.Dropout(0.1), bp.Linear(3, 2)], {3}),
        ("Linear OwnReLU Linear", [bp.Linear(2, 3), OwnReLU(), bp.Linear(3, 2)], set()),
        ("SiLU Linear+SiLU SiLU", [bp.SiLU(), bp.Linear(2, 3), bp.SiLU(), bp.SiLU()], {1}),
        ("Linear BatchNorm1d ReLU Linear", [bp.Linear(2, 3), bp.BatchNorm1d(), bp.ReLU(), bp.Linear(3, 2)], {3}),
        ("Conv2d+ReLU Conv2d", [bp.Conv2d(1, 2, 3), bp.ReLU(), bp.Conv2d(2, 2, 3)], {1}),
        ("Conv2d Dropout Conv2d", [bp.Conv2d(1, 2, 3), bp.Dropout(0.1), bp.Conv2d(2, 2, 3)], set()),
        ("Conv2d+BatchNorm2d ReLU Conv2d", [bp.Conv2d(1, 2, 3), bp.BatchNorm2d(), bp.ReLU(), bp.Conv2d(2, 2, 3)], {2}),
        ("Conv2d+ReLU MaxPool2d Flatten", [bp.Conv2d(1, 2, 3), bp.ReLU(), bp.MaxPool2d(2), bp.Flatten()], set()),
        ("", [], set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_groups(expected, layers, taking_in):
    groups = bp.Sequential(*layers)._groups(bp.Context())
    assert names(groups) == expected.split()
    assert {index for index, group in enumerate(groups) if group.below is not None} == taking_in
    alone = bp.Sequential(*layers)._groups(bp.Context(fuse=False))
    assert names(alone) == [type(layer).__name__ for layer in layers]


def test_every_pattern_of_the_table_is_taken_where_it_stands_alone():
    make = {
        bp.Linear: lambda: bp.Linear(None, 3),
        bp.Conv2d: lambda: bp.Conv2d(None, 3, 1),
        bp.BatchNorm2d: bp.BatchNorm2d,
        bp.Dropout: lambda: bp.Dropout(0.1),
    }
    for pattern, kind in fusion.PATTERNS:
        choices = [types[0] if isinstance(types, tuple) else types for types in pattern]
        (group,) = Plan([make.get(choice, choice)() for choice in choices]).fused
        assert type(group) is kind and len(group.layers) == len(pattern)


def test_layers_that_are_set_anew_before_the_build_are_planned_anew():
    model = bp.Sequential(bp.Linear(3, 4), bp.ReLU(), bp.Linear(4, 2))
    model.layers = (*model.layers[:2], bp.Linear(4, 5))
    model.build((3,))
    assert model(np.ones((2, 3), np.float32)).shape == (2, 5)


def test_names_and_checkpoints_do_not_know_of_groups(tmp_path):
    model, other = (bp.Sequential(bp.Linear(3, 4), bp.ReLU(), bp.Dropout(0.5), bp.Linear(4, 2)) for _ in range(2))
    assert [name for name, _ in model.named_layers()] == ["", "0", "1", "2", "3"]
    model.build((3,), seed=0)
    other.build((3,), seed=1)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert isinstance(model[1], bp.ReLU) and len(model) == 4
    x = normal(5, 3).astype(np.float32)
    bp.save_weights(tmp_path / "weights.npz", model)
    bp.load_weights(tmp_path / "weights.npz", other)
    np.testing.assert_array_equal(other(x), model(x))
    np.testing.assert_array_equal(model[2:](model[:2](x)), model(x))
    np.testing.assert_array_equal(model.copy()(x), model(x))


# Fused equals unfused -------------------------------------------------------------------------------------------------


def mlp(activation, rate=0.0, bias=True):
    drop = [bp.Dropout(rate)] if rate else []
    return bp.Sequential(
        bp.Linear(None, 7, bias=bias),
        ACTIVATIONS[activation](),
        *drop,
        bp.Linear(7, 6, bias=bias),
        ACTIVATIONS[activation](),
        bp.Linear(6, 3),
    )


def cnn(activation):
    return bp.Sequential(
        bp.Conv2d(None, 4, 3, padding=1),
        ACTIVATIONS[activation](),
        bp.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, bias=False),
        ACTIVATIONS[activation](),
        bp.Flatten(),
        bp.Linear(None, 3),
    )


def normalised(activation="relu"):
    return bp.Sequential(
        bp.Conv2d(None, 4, 3, bias=False),
        bp.BatchNorm2d(),
        ACTIVATIONS[activation](),
        bp.Conv2d(4, 5, 2, dilation=2),
        bp.BatchNorm2d(affine=False),
    )


def twice():
    """Layers that are used in two places, where others lie between."""
    linear, relu, drop = bp.Linear(5, 5), bp.ReLU(), bp.Dropout(0.3)
    return bp.Sequential(linear, relu, drop, linear, relu, bp.Linear(5, 5), drop, linear)


def tied():
    first, second = bp.Linear(5, 5), bp.Linear(5, 5)
    second.weight = first.weight
    return bp.Sequential(first, bp.SiLU(), second)


def frozen():
    model = mlp("gelu", 0.2)
    model[0].weight.trainable = model[3].bias.trainable = False
    return model


def residual(*layers):
    return bp.Sequential(bp.Linear(None, 5), bp.Residual(bp.Sequential(*layers)), bp.ReLU(), bp.Linear(5, 2))


CASES = {
    **{f"mlp-{name}": (lambda name=name: mlp(name), (4, 5)) for name in ACTIVATIONS},
    **{f"mlp-{name}-dropout": (lambda name=name: mlp(name, 0.4), (4, 5)) for name in ACTIVATIONS},
    "mlp-no-bias": (lambda: mlp("relu", 0.2, bias=False), (4, 5)),
    "mlp-rate-0": (lambda: bp.Sequential(bp.Linear(5, 4), bp.GELU(), bp.Dropout(0.0), bp.Linear(4, 3)), (4, 5)),
    "mlp-sequences": (lambda: mlp("silu", 0.5), (2, 3, 5)),
    "mlp-empty": (lambda: mlp("gelu_tanh", 0.5), (0, 5)),
    "mlp-one": (lambda: mlp("relu", 0.1), (1, 1)),
    "linear-dropout": (lambda: bp.Sequential(bp.Linear(5, 4), bp.Dropout(0.3), bp.Linear(4, 3)), (4, 5)),
    "ends-in-activation": (lambda: bp.Sequential(bp.Linear(5, 4), bp.SiLU(), bp.Dropout(0.3)), (4, 5)),
    "dropout-by-itself": (lambda: bp.Sequential(bp.Tanh(), bp.Dropout(0.3), bp.Linear(None, 3)), (4, 5)),
    "begins-elementwise": (lambda: bp.Sequential(bp.ReLU(), bp.Dropout(0.3), bp.Linear(None, 3), bp.ReLU()), (4, 5)),
    "nothing-trains": (lambda: bp.Sequential(bp.ReLU(), bp.Dropout(0.3)), (4, 5)),
    **{f"cnn-{name}": (lambda name=name: cnn(name), (3, 6, 5, 2)) for name in ACTIVATIONS},
    "cnn-dropout": (
        lambda: bp.Sequential(bp.Conv2d(2, 3, 2), bp.ReLU(), bp.Dropout(0.4), bp.Conv2d(3, 2, 2)),
        (2, 4, 4, 2),
    ),
    "cnn-empty": (lambda: cnn("gelu"), (0, 6, 5, 2)),
    "linear-on-images": (
        lambda: bp.Sequential(bp.Conv2d(2, 3, 2), bp.SiLU(), bp.Linear(3, 3), bp.GELU(), bp.Conv2d(3, 2, 2)),
        (2, 4, 4, 2),
    ),
    **{f"normalised-{name}": (lambda name=name: normalised(name), (3, 6, 6, 2)) for name in ("relu", "silu")},
    "normalised-rows": (
        lambda: bp.Sequential(bp.Linear(5, 4), bp.BatchNorm1d(), bp.ReLU(), bp.Dropout(0.3), bp.Linear(4, 3)),
        (4, 5),
    ),
    "residual": (lambda: residual(bp.Linear(5, 4), bp.ReLU(), bp.Linear(4, 5)), (4, 3)),
    "residual-dropout": (lambda: residual(bp.Linear(5, 4), bp.GELU(), bp.Linear(4, 5), bp.Dropout(0.4)), (4, 3)),
    "residual-of-one": (lambda: residual(bp.Linear(5, 5)), (4, 3)),
    "residual-activation": (lambda: residual(bp.Linear(5, 5), bp.ReLU()), (4, 3)),
    "residual-shortcut": (
        lambda: bp.Residual(bp.Sequential(bp.Linear(3, 5), bp.Dropout(0.3)), bp.Linear(3, 5)),
        (4, 3),
    ),
    "residual-of-nothing": (lambda: residual(), (4, 3)),
    "used-twice": (twice, (4, 5)),
    "tied": (tied, (4, 5)),
    "frozen": (frozen, (4, 5)),
    "recompute": (lambda: bp.Sequential(bp.Recompute(mlp("gelu", 0.4)), bp.ReLU(), bp.Linear(3, 2)), (4, 5)),
    "recompute-normalised": (lambda: bp.Recompute(normalised()), (3, 6, 6, 2)),
    "nested": (lambda: bp.Sequential(bp.Sequential(bp.Linear(5, 4), bp.ReLU()), mlp("silu", 0.3)), (4, 5)),
}


def built(make, shape, dtype="float64", device="cpu"):
    """With parameters and running statistics that are at no special values."""
    model = make()
    model.build(shape[1:], dtype="float64", seed=3)
    generator = np.random.default_rng(4)
    for _, parameter in model.named_parameters():
        parameter.value = parameter.value + 0.3 * generator.standard_normal(parameter.shape)
    for _, buffer in model.named_buffers():
        buffer.value = buffer.value + np.abs(generator.standard_normal(buffer.shape))
    return model.copy(dtype=dtype, device=device)


def run(model, x, *, fuse, back=None, method="backward", passes=1, training=True, sample_offset=0):
    """All that a pass computes and changes, by name. back: `fuse` of the backward (None: the same)."""
    device = find_device("cpu") if isinstance(x, np.ndarray) else find_device(KERNEL_DEVICE)
    for _ in range(passes):
        ctx = bp.Context(training, saving=True, seed=5, step=6, sample_offset=sample_offset, fuse=fuse)
        y = model.forward(x, ctx)
        dy = normal(*y.shape, seed=1).astype(y.dtype) if 0 not in y.shape else np.zeros(y.shape, y.dtype)
        ctx.fuse = fuse if back is None else back
        dx = getattr(model, method)(device.from_host(dy), ctx)
        assert ctx.open_layers == []
    found = {"y": y} | ({} if dx is None else {"dx": dx})
    found |= {name: p.grad for name, p in model.named_parameters() if p.trainable}
    found |= {name: buffer.value for name, buffer in model.named_buffers()}
    return {name: np.array(device.to_host(array)) for name, array in found.items()}


def assert_same(actual, expected, relative=0.0):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        if relative:
            assert_close(actual[name], array, relative, name)
        else:
            np.testing.assert_array_equal(actual[name], array, err_msg=name)


def both(name, dtype="float64", **settings):
    make, shape = CASES[name]
    x = normal(*shape).astype(dtype)
    return (run(built(make, shape, dtype), x, fuse=fuse, **settings) for fuse in (True, False))


def test_the_cases_have_groups_of_every_kind():
    kinds = set()
    for make, _ in CASES.values():
        for _, layer in make().named_layers():
            if isinstance(layer, bp.Sequential):
                kinds |= {type(group) for group in layer._groups(bp.Context())}
    assert kinds >= {kind for _, kind in fusion.PATTERNS}


@pytest.mark.parametrize("name", CASES)
def test_float64_is_the_same_bit_for_bit(name):
    for settings in ({}, {"method": "backward_parameters"}, {"passes": 2}, {"training": False}, {"sample_offset": 3}):
        assert_same(*both(name, **settings))


@pytest.mark.parametrize("name", CASES)
def test_a_backward_need_not_run_in_the_groups_of_the_forward(name):
    """Each layer finds on the context what it would have saved by itself."""
    make, shape = CASES[name]
    x = normal(*shape)
    for training in (True, False):
        expected = run(built(make, shape), x, fuse=False, training=training)
        for fuse in (True, False):
            assert_same(run(built(make, shape), x, fuse=fuse, back=not fuse, training=training), expected)


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_same_but_for_rounding(name):
    """Native kernels add the bias and apply the activation in one pass."""
    _, shape = CASES[name]
    for training in (True, False):
        assert_same(*both(name, "float32", training=training), tolerance("float32", 25 * max(shape[0], 1)))


@pytest.mark.parametrize("name", [name for name in CASES if "empty" not in name])
def test_fused_backwards_are_derivatives(name):
    make, shape = CASES[name]
    check(built(make, shape), normal(*shape))


def test_micro_batches_draw_the_masks_of_the_whole_batch():
    make, _ = CASES["mlp-silu-dropout"]
    x, dy = normal(6, 5), normal(6, 3, seed=1)
    results = []
    for cuts in ([0, 6], [0, 1, 4, 6]):
        model = built(make, (6, 5))
        outputs = []
        for begin, end in pairwise(cuts):
            ctx = bp.Context(True, seed=5, step=6, sample_offset=begin)
            outputs.append(model.forward(x[begin:end], ctx))
            model.backward_parameters(dy[begin:end], ctx)
        results.append({"y": np.concatenate(outputs)} | {n: p.grad.copy() for n, p in model.named_parameters()})
    assert_same(results[1], results[0], tolerance("float64", 60))


def test_recompute_updates_running_statistics_once():
    make, shape = CASES["normalised-relu"]
    x, plain, again = normal(*shape), built(make, shape), built(lambda: bp.Recompute(make()), shape)
    for (_, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        other.value = one.value  # drawn by name
    for model in (plain, again):
        run(model, x, fuse=True)
    for (_, one), (_, other) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        np.testing.assert_array_equal(other.value, one.value)


def test_inference_keeps_nothing_and_equals_the_layers():
    for name in ("mlp-gelu-dropout", "normalised-relu", "residual-dropout"):
        make, shape = CASES[name]
        model, x = built(make, shape), normal(*shape)
        ctx = bp.Context()
        np.testing.assert_array_equal(model.forward(x, ctx), model.forward(x, bp.Context(fuse=False)))
        assert ctx.open_layers == []


def test_infinity_and_nan_go_the_same_ways():
    x = normal(4, 5)
    x[0, 0], x[1, 1], x[2, 2] = np.inf, -np.inf, np.nan
    for name in ("mlp-relu-dropout", "mlp-silu", "linear-dropout", "residual-dropout"):
        make, shape = CASES[name]
        given = x if shape == (4, 5) else x[:, :3]
        assert_same(*(run(built(make, given.shape), given, fuse=fuse) for fuse in (True, False)))


# What a group saves, and who watches ----------------------------------------------------------------------------------


def test_each_layer_of_a_group_has_what_it_saves_under_its_name_and_they_keep_less():
    model = built(*CASES["mlp-relu-dropout"])
    x, kept = normal(4, 5), {}
    for fuse in (True, False):
        ctx = bp.Context(True, fuse=fuse)
        model.forward(x, ctx)
        arrays = {id(value): value.nbytes for _, values in ctx.kept for value in values if hasattr(value, "nbytes")}
        kept[fuse] = sum(arrays.values())
        assert ctx.open_layers == [layer.label for layer in model]
    assert kept[True] < kept[False]  # ReLU and Dropout each have their result


def test_a_backward_out_of_order_names_the_layer():
    model = built(*CASES["mlp-relu"])
    ctx = bp.Context(True)
    y = model.forward(normal(4, 5), ctx)
    with pytest.raises(bp.errors.BackwardError, match=r"ReLU '3': .*still open on this context is that of Linear '4'"):
        model[3].backward(y, ctx)
    model.backward(y, ctx)
    with pytest.raises(bp.errors.BackwardError, match=r"Linear '4': .*this context holds nothing"):
        model.backward(y, ctx)


def test_errors_name_the_layer():
    model = built(*CASES["normalised-relu"])
    with pytest.raises(bp.errors.ShapeError, match=r"BatchNorm2d '1': .*at least 2 values per channel"):
        model.forward(normal(1, 3, 3, 2), bp.Context(True))
    for fuse in (True, False):
        with pytest.raises(
            bp.errors.ShapeError, match=r"BatchNorm2d '1': batch_norm expected at least 2 values per ch"
        ):
            model.forward(np.zeros((0, 6, 6, 2)), bp.Context(True, fuse=fuse))
    with pytest.raises(bp.errors.ShapeError, match=r"Conv2d '0': conv2d_statistics expected weight of shape"):
        model.forward(normal(2, 6, 6, 3), bp.Context(True))


def test_launches_carry_the_name_of_the_first_layer():
    model = built(*CASES["mlp-relu-dropout"])
    entered = []

    def opened(label):
        entered.append(label)
        return lambda: None

    with scope.watch(opened):
        ctx = bp.Context(True)
        y = model.forward(normal(4, 5), ctx)
        model.backward(y, ctx)
    layers = ["Linear '0'", "Linear '3'", "Linear '5'"]
    assert entered == [
        "Sequential forward",
        *(f"{layer} forward" for layer in layers),
        "Sequential backward",
        *(f"{layer} backward" for layer in reversed(layers)),
    ]


def test_layers_whose_forward_or_backward_was_replaced_run_alone():
    for method in ("forward", "backward", "backward_parameters"):
        model = built(*CASES["mlp-relu-dropout"])
        x, original = normal(4, 5), getattr(model[1], method)
        expected = run(model, x, fuse=False)
        seen = []

        def replaced(*arguments, original=original, seen=seen):
            seen.append(arguments)
            return original(*arguments)

        object.__setattr__(model[1], method, replaced)
        assert names(model._groups(bp.Context())) == [type(layer).__name__ for layer in model]
        for _, parameter in model.named_parameters():
            parameter._written = False
        assert_same(run(model, x, fuse=True), expected)
        assert len(seen) == (method != "backward_parameters")
        del vars(model[1])[method]
        assert len(model._groups(bp.Context())) == 3


def test_a_pass_that_is_replaced_between_forward_and_backward():
    """Set for the forward alone, it is called and leaves no trace; set after it, it is called too."""
    x = normal(4, 5)
    expected = run(built(*CASES["mlp-relu-dropout"]), x, fuse=False)
    for method in ("forward", "backward"):
        model = built(*CASES["mlp-relu-dropout"])
        ctx, seen, original = bp.Context(True, seed=5, step=6), [], getattr(model[1], method)

        def replaced(*arguments, original=original, seen=seen):
            seen.append(arguments)
            return original(*arguments)

        if method == "forward":
            model[1].forward = replaced
        y = model.forward(x, ctx)
        vars(model[1]).pop("forward", None)
        if method == "backward":
            model[1].backward = replaced
        dx = model.backward(normal(*y.shape, seed=1), ctx)
        assert len(seen) == 1 and ctx.open_layers == []
        assert_same({"y": y, "dx": dx}, {name: expected[name] for name in ("y", "dx")})


def test_layers_run_alone_while_a_pass_of_their_class_is_replaced(monkeypatch):
    model, x = built(*CASES["mlp-relu"]), normal(4, 5)
    expected = model(x)
    original, seen = bp.ReLU.forward, []

    def replaced(self, x, ctx):
        seen.append(self.label)
        return original(self, x, ctx)

    with monkeypatch.context() as patched:
        patched.setattr(bp.ReLU, "forward", replaced)
        np.testing.assert_array_equal(model(x), expected)
        assert seen == ["ReLU '1'", "ReLU '3'"]
    assert len(model._groups(bp.Context())) == 3


def test_the_layers_may_be_called_one_by_one_on_either_way():
    x = normal(4, 5)
    for name in ("mlp-relu-dropout", "mlp-gelu-dropout"):
        expected = run(built(*CASES[name]), x, fuse=False)
        for way in ("forward", "backward"):
            model = built(*CASES[name])
            ctx = bp.Context(True, seed=5, step=6)
            y = x if way == "forward" else model.forward(x, ctx)
            for layer in model if way == "forward" else ():
                y = layer.forward(y, ctx)
            dx = normal(*y.shape, seed=1)
            for layer in reversed(list(model)) if way == "backward" else (model,):
                dx = layer.backward(dx, ctx)
            assert_same({"y": y, "dx": dx}, {name: expected[name] for name in ("y", "dx")})


def test_a_layer_of_somebodys_own_keeps_its_own_way():
    class Doubled(bp.ReLU):
        """y = 2 max(x, 0)."""

        def forward(self, x, ctx):
            return 2 * super().forward(x, ctx)

        def backward(self, dy, ctx):
            return super().backward(2 * dy, ctx)

    def make():
        return bp.Sequential(bp.Linear(5, 4), Doubled(), bp.Linear(4, 2))

    x = normal(3, 5)
    assert_same(*(run(built(make, x.shape), x, fuse=fuse) for fuse in (True, False)))


def test_settings_are_read_in_each_pass():
    def make():
        return bp.Sequential(bp.Linear(5, 4), bp.GELU(), bp.Dropout(0.9), bp.Linear(4, 2))

    x, results = normal(3, 5), []
    for fuse in (True, False):
        model = built(make, x.shape)
        model[1].approximate, model[2].rate = "tanh", 0.2
        results.append(run(model, x, fuse=fuse))
    assert_same(*results)


@pytest.mark.parametrize("name", ["mlp-gelu-dropout", "cnn-relu", "normalised-relu"])
def test_a_gradient_that_is_left_out_or_comes_twice_is_found(name, monkeypatch):
    """The group above takes in the gradient of an activation, and the one below must not apply it again."""
    make, shape = CASES[name]
    model, x = built(make, shape), normal(*shape)
    check(model, x)
    linear, conv = linear_ops.linear_backward_input_activation, conv_ops.conv2d_backward_input_activation
    with monkeypatch.context() as patched:
        patched.setattr(
            linear_ops,
            "linear_backward_input_activation",
            lambda dy, weight, kept, activation, mask: linear(dy, weight, None, "identity", mask),
        )
        patched.setattr(
            conv_ops,
            "conv2d_backward_input_activation",
            lambda dy, weight, kept, activation, *rest: conv(dy, weight, None, "identity", *rest),
        )
        with pytest.raises(GradientError, match="Sequential"):
            check(model, x)
    in_front = fusion._Product._in_front

    def again(self, dy, ctx):
        if self.taken_in and self.activation is not None:
            dy = dy * 0.5
        return in_front(self, dy, ctx)

    if name != "normalised-relu":  # where the activation stands by itself
        monkeypatch.setattr(fusion._Product, "_in_front", again)
        with pytest.raises(GradientError, match="Sequential"):
            check(model, x)


# The switch -----------------------------------------------------------------------------------------------------------

X = normal(48, 6).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)


def trained(steps=6, model=None, **settings):
    trainer = bp.Trainer(
        model or bp.Sequential(bp.Linear(6, 16), bp.GELU(), bp.Dropout(0.2), bp.Linear(None, 2)),
        bp.CrossEntropyLoss(),
        bp.AdamW(lr=0.02),
        progress=False,
        **settings,
    )
    trainer.fit(bp.Loader(bp.ArrayDataset(X, Y), 16), (X, Y), max_steps=steps)
    return trainer


def test_a_trainer_with_and_without_fusion():
    seen = []

    class Watching(bp.Tanh):
        """Keeps what contexts say."""

        def forward(self, x, ctx):
            seen.append(ctx.fuse)
            return super().forward(x, ctx)

    runs = []
    for fuse in (True, False):
        seen.clear()
        model = bp.Sequential(bp.Linear(6, 16), bp.GELU(), Watching(), bp.Dropout(0.2), bp.Linear(None, 2))
        trainer = trained(model=model, device="cpu", precision="fp64", fuse=fuse)
        predictions = trainer.predict(X)
        assert seen and set(seen) == {fuse}
        runs.append(bp.checkpoint.model_arrays(trainer.model) | {"predictions": predictions})
    assert_same(*runs)
    assert runs[0]["predictions"].shape == (48, 2)


def test_going_on_with_another_switch_is_said_in_one_line(tmp_path):
    class Heard(bp.callbacks.Callback):
        """Keeps what it is told."""

        def on_message(self, trainer, text):
            messages.append(text)

    def going_on(steps, resume="auto", **settings):
        messages.clear()
        model = bp.Sequential(bp.Linear(6, 16), bp.GELU(), bp.Linear(None, 2))
        trainer = bp.Trainer(
            *(model, bp.CrossEntropyLoss(), bp.AdamW(lr=0.02)),
            device="cpu",
            precision="fp64",
            output_dir=tmp_path / "run",
            callbacks=[Heard()],
            **settings,
        )
        trainer.fit((X, Y), max_steps=steps, resume=resume)
        return list(messages)

    messages = []
    assert going_on(1, resume=None) == going_on(2) == []
    (text,) = going_on(3, fuse=False)
    assert text.endswith("fuse was True, and is now False: the last bits of results may differ") and "\n" not in text
    assert going_on(4, fuse=False) == []
    states = (tmp_path / "run" / "checkpoints").glob("step-*/state.json")
    last = max(states, key=lambda path: path.parent.name)
    state = json.loads(last.read_text())
    assert state.pop("fuse") is False
    last.write_text(json.dumps(state))  # as older checkpoints are
    assert going_on(5) == []


def test_a_recipe_has_the_switch():
    from bp.config import resolve

    assert resolve("digits", []).trainer.fuse is True
    assert resolve("digits", ["--trainer.fuse", "false"]).trainer.fuse is False


def test_a_replayed_step_notices_the_switch():
    class Switch(bp.callbacks.Callback):
        """Turns fusion off in the middle of the training."""

        def on_step_end(self, trainer, *, epoch_ended):
            if trainer.state.step == 5:
                trainer.fuse = False

    # In bfloat16 an activation that is applied before the sum is rounded gives other results than one after it.
    runs = {}
    for graph in ("auto", "off"):
        trainer = trained(10, device=KERNEL_DEVICE, precision="bf16", cuda_graph=graph, callbacks=[Switch()])
        runs[graph] = bp.checkpoint.model_arrays(trainer.model)
    assert_same(runs["auto"], runs["off"])
    unfused = trained(10, device=KERNEL_DEVICE, precision="bf16", fuse=False)
    assert any((runs["auto"][k] != v).any() for k, v in bp.checkpoint.model_arrays(unfused.model).items())


def test_recompute_hands_the_switch_on():
    seen = []

    class Watching(bp.Tanh):
        """Keeps what contexts say."""

        def forward(self, x, ctx):
            seen.append(ctx.fuse)
            return super().forward(x, ctx)

    model = bp.Recompute(Watching())
    model.build((3,))
    for fuse in (True, False):
        ctx = bp.Context(True, fuse=fuse)
        model.backward(model.forward(np.ones((2, 3), np.float32), ctx), ctx)
    assert seen == [True, True, False, False]


# The operations -------------------------------------------------------------------------------------------------------


def masked(control, rate=0.4, first=11):
    return None if rate is None else Mask(control, 3, first, rate)


def formula(activation, z):
    if activation == "relu":
        return np.maximum(z, 0)
    if activation == "silu":
        return z / (1 + np.exp(-z))
    if activation == "gelu_tanh":
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    if activation == "gelu":
        from math import erf, sqrt

        return z * np.vectorize(lambda v: (1 + erf(v / sqrt(2))) / 2)(z)
    return z


@pytest.mark.parametrize("rate", [None, 0.4])
@pytest.mark.parametrize("activation", FUSED_ACTIVATIONS)
def test_what_linear_activation_and_its_backwards_compute(activation, rate):
    x, weight, bias, dy = normal(3, 4, 5), normal(6, 5), normal(6), normal(3, 4, 6, seed=1)
    control = control_block(seed=8, step=2)
    mask = masked(control, rate)
    m = np.ones(dy.shape) if mask is None else dropout(np.ones(dy.shape), control, 3, 11, rate)
    z = x @ weight.T + bias
    relative = tolerance("float64", 6)
    y, kept = linear_ops.linear_activation(x, weight, bias, activation, True, mask, None)
    assert_close(y, m * formula(activation, z), relative)
    assert (kept is None) == (activation == "identity") and (kept is y) == (activation == "relu")
    same, nothing = linear_ops.linear_activation(x, weight, bias, activation, False, mask, None)
    np.testing.assert_array_equal(same, y)
    assert nothing is None
    h = 1e-6
    slope = (formula(activation, z + h) - formula(activation, z - h)) / (2 * h)
    dz = linear_ops.linear_activation_backward(dy, kept, activation, mask)
    # What a central difference of that step leaves out, and what it rounds, are both far below 1e-8.
    assert_close(dz, dy * m * slope, 1e-8)
    if activation == "identity" and mask is None:
        assert dz is dy
    dw, above = normal(3, 4, 2, seed=2), normal(2, 6)
    taken_in = linear_ops.linear_backward_input_activation(dw, above, kept, activation, mask)
    assert_close(taken_in, linear_ops.linear_activation_backward(dw @ above, kept, activation, mask), relative)
    if activation == "relu" and mask is not None:
        told = replace(mask, in_kept=True)
        np.testing.assert_array_equal(linear_ops.linear_activation_backward(dy, kept, activation, told), dz)
        before = np.maximum(z, 0)  # as a ReLU by itself keeps it
        np.testing.assert_array_equal(linear_ops.linear_activation_backward(dy, before, activation, mask), dz)


def test_a_residual_is_added_behind_the_mask():
    x, weight, control = normal(4, 5), normal(5, 5), control_block(seed=8, step=2)
    y, kept = linear_ops.linear_activation(x, weight, None, "identity", True, masked(control), x)
    expected = dropout(x @ weight.T, control, 3, 11, 0.4) + x
    assert kept is None
    assert_close(y, expected, tolerance("float64", 5))


@pytest.mark.parametrize("activation", FUSED_ACTIVATIONS)
def test_what_conv2d_activation_and_its_backward_compute(activation):
    geometry = (2, 1), ((1, 0), (0, 1)), (1, 2), 2
    x, weight, bias = normal(2, 7, 6, 4), normal(6, 3, 2, 2), normal(6)
    z = conv_ops.conv2d(x, weight, bias, *geometry)
    y, kept = conv_ops.conv2d_activation(x, weight, bias, activation, True, *geometry)
    same, nothing = conv_ops.conv2d_activation(x, weight, bias, activation, False, *geometry)
    np.testing.assert_array_equal(same, y)
    assert nothing is None
    relative = tolerance("float64", 12)
    assert_close(y, formula(activation, z), relative)
    assert (kept is None) == (activation == "identity") and (kept is y) == (activation == "relu")
    dy = normal(*z.shape, seed=1)
    dx = conv_ops.conv2d_backward_input(dy, weight, (7, 6), *geometry)
    behind = None if activation == "identity" else x
    taken_in = conv_ops.conv2d_backward_input_activation(dy, weight, behind, activation, (7, 6), *geometry)
    assert_close(taken_in, linear_ops.linear_activation_backward(dx, behind, activation, None), relative)


def test_statistics_of_a_convolution_and_the_norm_that_takes_them():
    geometry = (1, 1), ((1, 1), (1, 1)), (1, 1), 1
    x, weight = 100 + normal(3, 5, 4, 2), normal(6, 3, 3, 2)
    y, mean, rest, variance = conv_ops.conv2d_statistics(x, weight, None, *geometry)
    relative = tolerance("float64", 60)
    assert_close(mean, y.mean(axis=(0, 1, 2)), relative)
    assert_close(variance, y.var(axis=(0, 1, 2)), relative)
    gamma, beta = normal(6, seed=1), normal(6, seed=2)
    old = [np.zeros(6), np.ones(6)]
    new = [np.zeros(6), np.ones(6)]
    expected, _, expected_rstd = norm_ops.batch_norm(y, gamma, beta, *old, True, 0.3, 1e-5)
    result, rstd = norm_ops.batch_norm_of(y, mean, rest, variance, gamma, beta, *new, 0.3, 1e-5)
    for actual, reference in ((result, expected), (rstd, expected_rstd), (new[0], old[0]), (new[1], old[1])):
        assert_close(actual, reference, relative)
    assert (new[0] != 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, w: linear_ops.linear_activation(x, w, None, "tanh", True, None, None),
            "activation of identity, relu.*'tanh'",
        ),
        (
            lambda x, w: linear_ops.linear_activation(x, w, None, "relu", True, None, x),
            "a residual with 'identity' only.*'relu'",
        ),
        (
            lambda x, w: linear_ops.linear_activation_backward(x, None, "relu", None),
            "the kept array of 'relu', got None",
        ),
        (lambda x, w: linear_ops.linear_activation_backward(x, x, "identity", None), "no kept array for 'identity'"),
        (lambda x, w: linear_ops.linear_backward_input_activation(x, w, None, "silu", None), "kept array of 'silu'"),
        (
            lambda x, w: linear_ops.linear_activation_backward(
                x, x, "silu", Mask(control_block(), 0, 0, 0.5, in_kept=True)
            ),
            "a mask that is in_kept with 'relu' only, got 'silu'",
        ),
        (lambda x, w: Mask(control_block(), 0, 0, 1.0), r"a rate in \[0, 1\), got 1.0"),
        (
            lambda x, w: conv_ops.conv2d_activation(
                x.reshape(1, 1, 3, 3), w.reshape(3, 1, 1, 3), None, "elu", True, (1, 1), ((0, 0), (0, 0)), (1, 1), 1
            ),
            "conv2d_activation expected an activation of .*'elu'",
        ),
    ],
)
def test_what_does_not_fit_together(call, message):
    with pytest.raises(bp.errors.ConfigurationError, match=message):
        call(normal(3, 3), normal(3, 3, seed=1))


def test_shapes_and_dtypes_that_do_not_fit():
    x, weight = normal(4, 3), normal(2, 3)
    with pytest.raises(bp.errors.ShapeError, match=r"residual of shape \(4, 2\), got \(4, 3\)"):
        linear_ops.linear_activation(x, weight, None, "identity", True, None, x)
    with pytest.raises(bp.errors.DtypeError, match="residual of dtype float64 like weight, got float32"):
        linear_ops.linear_activation(x, weight, None, "identity", True, None, np.zeros((4, 2), np.float32))
    with pytest.raises(bp.errors.ShapeError, match=r"kept of shape \(4, 3\), got \(4, 2\)"):
        linear_ops.linear_backward_input_activation(normal(4, 2), weight, normal(4, 2), "relu", None)
    with pytest.raises(bp.errors.DtypeError, match="kept of dtype float64 like dy, got float32"):
        linear_ops.linear_activation_backward(x, x.astype(np.float32), "gelu", None)
    with pytest.raises(bp.errors.ShapeError, match=r"variance of shape \(3,\), got \(2,\)"):
        norm_ops.batch_norm_of(x, np.zeros(3), None, np.ones(2), None, None, None, None, 0.1, 1e-5)
    mask = Mask(to_device(control_block()), 0, 0, 0.5)
    with pytest.raises(bp.errors.DtypeError, match=r"mask\.control on device 'cpu' like x"):
        linear_ops.linear_activation(x, weight, None, "relu", True, mask, None)


# On the emulator ------------------------------------------------------------------------------------------------------

ON_DEVICE = [
    "mlp-relu",
    "mlp-gelu-dropout",
    "mlp-relu-dropout",
    "mlp-gelu_tanh",
    "mlp-sequences",
    "mlp-empty",
    "residual-dropout",
    "dropout-by-itself",
    "used-twice",
    "frozen",
    "recompute",
    "cnn-relu",
    "cnn-silu",
    "normalised-relu",
]


@pytest.mark.parametrize("name", ON_DEVICE)
def test_the_device_gives_the_unfused_result_of_the_cpu(name):
    make, shape = CASES[name]
    x = normal(*shape).astype(np.float32)
    expected = run(built(make, shape), x.astype(np.float64), fuse=False)
    with emulating(detector=True, seed=1):
        model = built(make, shape, "float32", KERNEL_DEVICE)
        actual = run(model, to_device(x), fuse=True)
    assert_same(actual, expected, tolerance("float32", 60 * max(shape[0], 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fused_and_unfused_are_as_good_in_16_bits(dtype):
    make, shape = CASES["mlp-gelu-dropout"]
    x = normal(*shape).astype(np.float32).astype(dtype if dtype == "float16" else "float32")
    x = to_device(x, dtype)
    expected = run(built(make, shape), to_host(x).astype(np.float64), fuse=False)
    for fuse in (True, False):
        actual = run(built(make, shape, dtype, KERNEL_DEVICE), x, fuse=fuse)
        assert_same(actual, expected, tolerance(dtype, 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_on_the_device(dtype):
    x, weight, bias, dy, above = normal(5, 6), normal(9, 6), normal(9), normal(5, 3), normal(3, 9)
    control = Exact(control_block(seed=8, step=2))
    for activation in FUSED_ACTIVATIONS:
        kept = None if activation == "identity" else normal(5, 9, seed=3)
        for rate in (None, 0.4):
            compare(
                lambda x, weight, bias, control, activation=activation, rate=rate: linear_ops.linear_activation(
                    x, weight, bias, activation, True, masked(control, rate), None
                ),
                *(x, weight, bias, control),
                dtype=dtype,
                length=6,
            )
            compare(
                lambda dy, above, kept, control, activation=activation, rate=rate: (
                    linear_ops.linear_backward_input_activation(dy, above, kept, activation, masked(control, rate))
                ),
                *(dy, above, kept, control),
                dtype=dtype,
                length=3,
            )


def launches(model, x, fuse, method="backward_parameters"):
    with find_device(KERNEL_DEVICE).recording() as ledger:
        ctx = bp.Context(True, seed=1, step=2, fuse=fuse)
        y = model.forward(x, ctx)
        getattr(model, method)(y, ctx)
    return ledger.launches


def test_a_fused_step_launches_less():
    make, shape = CASES["mlp-relu-dropout"]
    model = built(make, shape, "float32", KERNEL_DEVICE)
    x = to_device(normal(*shape), "float32")
    counts = {fuse: len(launches(model, x, fuse)) for fuse in (True, False)}
    # Two activations and a dropout, forward and backward, are part of the products beside them.
    assert counts[False] - counts[True] == 6
    assert {launch.layer for launch in launches(model, x, True)} >= {"Linear '0'", "Linear '3'", "Linear '5'"}
    assert not {launch.layer for launch in launches(model, x, True)} & {"ReLU '1'", "Dropout '2'", "ReLU '4'"}


@pytest.mark.parametrize("name", ["mlp-gelu-dropout", "mlp-silu", "cnn-gelu", "cnn-silu"])
def test_what_no_backward_takes_is_not_written(name):
    """In inference, and in the first of the two forwards of Recompute; the argument of the activation is left out."""
    make, shape = CASES[name]
    device, x = find_device(KERNEL_DEVICE), to_device(normal(*shape), "float32")

    def written(model, ctx, forward_only=True):
        with device.recording() as ledger:
            y = model.forward(x, ctx)
            if not forward_only:
                model.backward_parameters(y, ctx)
        return [
            launch.layer
            for launch in ledger.launches
            if any(p.name == "before" and v for p, v in zip(launch.variant.parameters, launch.values, strict=True))
        ]

    model = built(make, shape, "float32", KERNEL_DEVICE)
    groups = [group.label for group in model._groups(bp.Context()) if len(group.layers) > 1]
    assert written(model, bp.Context(True)) == groups
    assert written(model, bp.Context()) == []
    model = built(lambda: bp.Recompute(make()), shape, "float32", KERNEL_DEVICE)
    assert len(written(model, bp.Context(True))) == 0
    assert len(written(model, bp.Context(True), forward_only=False)) == len(groups)


def test_inference_takes_no_room_for_what_backward_needs():
    device = find_device(KERNEL_DEVICE)
    model = built(
        lambda: bp.Sequential(bp.Linear(6, 40), bp.GELU(), bp.Linear(40, 2)), (8, 6), "float32", KERNEL_DEVICE
    )
    x, taken = to_device(normal(8, 6), "float32"), {}
    for fuse in (True, False):
        memory = device.StepMemory()
        with memory:
            model.forward(x, bp.Context(fuse=fuse))
        taken[fuse] = memory.nbytes
    assert taken[False] - taken[True] >= 8 * 40 * 4


def test_memory_plans_know_of_groups():
    model = bp.Sequential(bp.Linear(6, 8), bp.ReLU(), bp.Dropout(0.1), bp.Linear(8, 2))
    kept = {fuse: dict(bp.memory_plan(model, (4, 6), fuse=fuse).by_layer) for fuse in (True, False)}
    assert kept[True]["ReLU '1'"] == kept[False]["ReLU '1'"] == 4 * 8 * 4
    # What dropout made of the activation is one array: the ReLU takes it back, and so does the Linear above.
    assert kept[True]["Linear '3'"] == 0 and kept[False]["Linear '3'"] == 4 * 8 * 4
