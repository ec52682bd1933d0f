"""The update rules: against PyTorch or a formula of their own, float32 against float64, and what no rule may touch."""

import math

import numpy as np
import pytest
from table import assert_close

import bp
from bp.checking import tolerance
from bp.cpu import native
from bp.initializers import Ones
from bp.ops import control as block

STEPS = 20
SHAPE = (5,)


def network(dtype="float64"):
    model = bp.Sequential(bp.Linear(5, 30), bp.Linear(30, 7), bp.Linear(7, 1, bias=False))
    model.build(SHAPE, dtype=dtype, seed=3)
    for _, parameter in model.named_parameters():  # biases start at zero, where Adafactor's relative step is special
        parameter.value = parameter.value + 0.1
    return model


def gradient_at(value, step, name):
    """A gradient that depends on the weights, so an error in one step shows in all later ones."""
    generator = np.random.default_rng([step, *name.encode()])
    return generator.standard_normal(value.shape) + 0.3 * value


def train(model, optimizer, steps=STEPS):
    """Values after each step, by name."""
    history = []
    for step in range(steps):
        for name, parameter in model.named_parameters():
            if parameter.trainable:
                parameter.grad = gradient_at(np.asarray(parameter.value, np.float64), step, name)
        optimizer.lr = optimizer.base_lr * (1 - step / (2 * steps))
        optimizer.step()
        history.append({name: np.array(p.value) for name, p in model.named_parameters()})
    return history


GROUPS = (bp.Group("1.weight", lr_factor=0.5, weight_decay=0.2), bp.Group("*.bias", lr_factor=2.0))

# Our optimizer and PyTorch's class with the settings that are spelled differently there.
RULES = {
    "sgd": (lambda **s: bp.SGD(0.1, **s), "SGD", {}),
    "momentum": (lambda **s: bp.SGD(0.1, 0.9, 0.3, **s), "SGD", {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (lambda **s: bp.SGD(0.1, 0.8, nesterov=True, **s), "SGD", {"momentum": 0.8, "nesterov": True}),
    "adagrad": (
        lambda **s: bp.Adagrad(0.1, 0.05, initial_accumulator_value=0.1, **s),
        "Adagrad",
        {"lr_decay": 0.05, "initial_accumulator_value": 0.1},
    ),
    "adadelta": (lambda **s: bp.Adadelta(0.7, **s), "Adadelta", {}),
    "rmsprop": (lambda **s: bp.RMSprop(0.02, **s), "RMSprop", {}),
    "rmsprop-all": (
        lambda **s: bp.RMSprop(0.02, 0.9, momentum=0.6, centered=True, **s),
        "RMSprop",
        {"alpha": 0.9, "momentum": 0.6, "centered": True},
    ),
    "adam": (lambda **s: bp.Adam(0.02, **s), "Adam", {}),
    "amsgrad": (
        lambda **s: bp.Adam(0.02, (0.8, 0.9), amsgrad=True, **s),
        "Adam",
        {"betas": (0.8, 0.9), "amsgrad": True},
    ),
    "adamw": (lambda **s: bp.AdamW(0.02, **s), "AdamW", {}),
    "nadam": (lambda **s: bp.NAdam(0.02, **s), "NAdam", {}),
    "nadam-decoupled": (
        lambda **s: bp.NAdam(0.02, decoupled_weight_decay=True, **s),
        "NAdam",
        {"decoupled_weight_decay": True},
    ),
    "adafactor": (lambda **s: bp.Adafactor(0.05, **s), "Adafactor", {}),
    "adafactor-all": (
        lambda **s: bp.Adafactor(0.5, -0.5, (1e-4, 0.3), 1.5, **s),
        "Adafactor",
        {"beta2_decay": -0.5, "eps": (1e-4, 0.3), "d": 1.5},
    ),
    "lion": (lambda **s: bp.Lion(0.01, **s), None, {}),
    "muon": (lambda **s: bp.Muon(0.05, adamw=["2.*"], adamw_lr=0.02, **s), None, {}),
    "muon-plain": (lambda **s: bp.Muon(0.05, 0.8, False, adjust_lr="match_rms_adamw", **s), None, {}),
}
ELEMENTWISE_LENGTH = 30 * STEPS  # a few roundings in each of the steps, and the sums over rows in Adafactor


def torch_groups(torch, model, optimizer):
    """One parameter group a parameter, with the settings our optimizer resolved for it."""
    groups = []
    for name, parameter in model.named_parameters():
        lr_factor, decoupled, l2, _ = np.array(optimizer.row(parameter))[0]
        tensor = torch.tensor(np.array(parameter.value), requires_grad=True)
        groups.append(
            {"params": [tensor], "lr": lr_factor * optimizer.base_lr, "weight_decay": decoupled + l2, "name": name}
        )
    return groups


def train_torch(torch, optimizers, steps=STEPS):
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    bases = [group["lr"] for group in groups]
    history = []
    for step in range(steps):
        for group, base in zip(groups, bases, strict=True):
            (tensor,) = group["params"]
            tensor.grad = torch.tensor(gradient_at(tensor.detach().numpy(), step, group["name"]))
            group["lr"] = base * (1 - step / (2 * steps))
        for optimizer in optimizers:
            optimizer.step()
        history.append({group["name"]: group["params"][0].detach().numpy().copy() for group in groups})
    return history


def assert_same_history(ours, theirs, relative):
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for name, value in other.items():
            assert_close(mine[name], value, relative, f"{name} after step {step + 1}")


@pytest.fixture
def torch():
    """PyTorch with float64 as the default: NAdam keeps its product of momenta in the default dtype."""
    module = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    kept = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(kept)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "groups": GROUPS}], ids=["plain", "groups"])
@pytest.mark.parametrize("rule", [name for name, (_, peer, _) in RULES.items() if peer])
def test_rule_matches_torch(rule, settings, torch):
    make, peer, named = RULES[rule]
    model = network()
    optimizer = make(**settings).setup(model)
    theirs = getattr(torch.optim, peer)(torch_groups(torch, model, optimizer), **named)
    expected = train_torch(torch, [theirs])
    assert_same_history(train(model, optimizer), expected, tolerance("float64", ELEMENTWISE_LENGTH))


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.3, "groups": GROUPS}], ids=["plain", "groups"])
@pytest.mark.parametrize("rule", ["muon", "muon-plain"])
def test_muon_matches_torch_iterating_in_float64(rule, settings, torch, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())  # PyTorch iterates in bfloat16
    model = network()
    optimizer = RULES[rule][0](**settings).setup(model)
    groups = torch_groups(torch, model, optimizer)
    matrices = [g for g in groups if g["name"].endswith("weight") and (rule != "muon" or g["name"] != "2.weight")]
    named = {} if rule == "muon" else {"momentum": 0.8, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}
    peers = [
        torch.optim.Muon(matrices, **named),
        torch.optim.AdamW([g for g in groups if all(g is not m for m in matrices)]),
    ]
    # The iteration multiplies small singular values, and their rounding errors, by up to 3.4445 five times.
    relative = 3.4445**5 * tolerance("float64", ELEMENTWISE_LENGTH)
    assert_same_history(train(model, optimizer), train_torch(torch, peers), relative)


def test_lion_matches_its_formula():
    model = network()
    optimizer = bp.Lion(0.01, (0.8, 0.95), weight_decay=0.1, groups=GROUPS).setup(model)
    values = {name: np.array(p.value) for name, p in model.named_parameters()}
    means = {name: np.zeros_like(value) for name, value in values.items()}
    settings = {"1.weight": (0.5, 0.2), "0.bias": (2.0, 0.0), "1.bias": (2.0, 0.0)}
    expected = []
    for step in range(STEPS):
        for name, value in values.items():
            factor, decay = settings.get(name, (1.0, 0.1))
            lr = 0.01 * factor * (1 - step / (2 * STEPS))
            g = gradient_at(value, step, name)
            direction = np.sign(0.8 * means[name] + 0.2 * g)
            means[name] = 0.95 * means[name] + 0.05 * g
            values[name] = value * (1 - lr * decay) - lr * direction
        expected.append(dict(values))
    assert_same_history(train(model, optimizer), expected, tolerance("float64", ELEMENTWISE_LENGTH))


@pytest.mark.parametrize("rule", RULES)
def test_l1_and_l2_are_terms_of_the_gradient(rule):
    make = RULES[rule][0]
    model, by_hand = network(), network()
    optimizer = make(l1=0.02, l2=0.3, weight_decay=0.0).setup(model)
    plain = make(weight_decay=0.0).setup(by_hand)
    for step in range(3):
        for (name, parameter), (_, other) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
            parameter.grad = gradient_at(parameter.value, step, name)
            penalty = 0.3 * other.value + 0.02 * np.sign(other.value) if other.decay else 0.0
            other.grad = gradient_at(other.value, step, name) + penalty
        optimizer.step()
        plain.step()
    # As above: Muon amplifies the rounding of its input.
    relative = (3.4445**5 if "muon" in rule else 1) * tolerance("float64", ELEMENTWISE_LENGTH)
    assert_close(model.arena.values, by_hand.arena.values, relative)


@pytest.mark.parametrize("with_native", [False, True], ids=["numpy", "native"])
@pytest.mark.parametrize("rule", RULES)
def test_float32_matches_float64(rule, with_native, monkeypatch):
    if with_native and native.kernels is None:
        pytest.skip("the native extension is not built")
    if not with_native:
        monkeypatch.setattr(native, "kernels", None)
    settings = {"weight_decay": 0.1, "l1": 0.01, "l2": 0.1, "groups": GROUPS}
    wide, narrow = network(), network("float32")
    expected = train(wide, RULES[rule][0](**settings).setup(wide), steps=4)
    actual = train(narrow, RULES[rule][0](**settings).setup(narrow), steps=4)
    relative = (3.4445**5 if "muon" in rule else 1) * tolerance("float32", 30 * 4)
    if rule == "lion":
        # A sum near zero may round to the other sign: such an element differs by twice the step.
        for mine, other in zip(actual, expected, strict=True):
            for name, value in other.items():
                assert np.mean(np.abs(mine[name] - value) > 1e-4) < 0.01
    else:
        assert_same_history(actual, expected, relative)


def padding(model):
    """Where the arena holds no parameter."""
    arena = model.arena
    mask = np.ones(arena.size, bool)
    for parameter in arena.parameters:
        first = arena.offsets[parameter.name]
        mask[first : first + parameter.size] = False
    return mask


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_padding_stays_zero_and_frozen_parameters_stay(rule, dtype):
    model = bp.Sequential(bp.Linear(5, 30), bp.Linear(30, 7), bp.Linear(7, 1, bias=False))
    model[1].bias.trainable = False
    model.build(SHAPE, dtype=dtype)
    frozen = model[1].bias.value.copy()
    optimizer = RULES[rule][0](weight_decay=0.1, l1=0.1, l2=0.1, groups=GROUPS).setup(model)
    train(model, optimizer)
    mask = padding(model)
    assert mask.any() and np.isfinite(model.arena.values).all()
    for name, flat in {"values": model.arena.values, **optimizer.moments}.items():
        assert not flat[mask].any(), name
    assert not model.arena.gradients[mask].any()
    np.testing.assert_array_equal(model[1].bias.value, frozen)
    assert not any("1.bias" in name for name in optimizer.state_dict())


@pytest.mark.parametrize("with_native", [False, True], ids=["numpy", "native"])
@pytest.mark.parametrize("gradient", [0.0, 1e38, -1e38, 1e-45, math.inf, math.nan])
@pytest.mark.parametrize("rule", RULES)
def test_extreme_gradients_give_no_warning_and_are_not_hidden(rule, gradient, with_native, monkeypatch):
    if not with_native:
        monkeypatch.setattr(native, "kernels", None)
    model = network("float32")
    optimizer = RULES[rule][0]().setup(model)
    for _ in range(2):
        for _, parameter in model.named_parameters():
            parameter.grad = np.full(parameter.shape, gradient, np.float32)
        optimizer.step()
    assert not model.arena.values[padding(model)].any()
    if abs(gradient) < 1:
        assert np.isfinite(model.arena.values).all()
    if math.isnan(gradient):
        assert all(np.isnan(parameter.value).all() for _, parameter in model.named_parameters())


@pytest.mark.parametrize("rule", RULES)
def test_gradients_that_no_backward_wrote_count_as_zero(rule):
    model, other = network(), network()
    optimizer, peer = (RULES[rule][0]().setup(m) for m in (model, other))
    train(model, optimizer, 2)
    train(other, peer, 2)
    optimizer.step()  # the gradients of the step before are used up
    for _, parameter in other.named_parameters():
        parameter.grad = np.zeros(parameter.shape)
    peer.step()
    np.testing.assert_array_equal(model.arena.values, other.arena.values)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "muon"])  # its pattern names a third layer
def test_a_model_without_parameters_and_an_empty_parameter(rule):
    empty = bp.Sequential(bp.ReLU())
    empty.build((3,))
    RULES[rule][0]().setup(empty).step()
    model = bp.Sequential(bp.Linear(None, 2))
    model.build((0,), dtype="float64")
    optimizer = RULES[rule][0]().setup(model)
    model[0].bias.grad = np.ones(2)
    optimizer.step()
    assert (model[0].bias.value < 0).all()


def test_muon_steps_are_nearly_orthogonal_for_convolution_weights():
    model = bp.Sequential(bp.Conv2d(4, 6, 3), bp.BatchNorm2d(6))
    model.build((8, 8, 4), dtype="float64")
    optimizer = bp.Muon(1.0, weight_decay=0.0).setup(model)
    before = {name: np.array(p.value) for name, p in model.named_parameters()}
    train(model, optimizer, 1)
    step = (before["0.weight"] - model[0].weight.value).reshape(6, 36)
    singular = np.linalg.svd(step, compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3
    # The first step of AdamW is lr times the sign of the gradient.
    np.testing.assert_allclose(np.abs(model[1].weight.value - before["1.weight"]), 1.0, rtol=1e-3)  # but for eps


def test_muon_leaves_embeddings_to_adamw():
    model = bp.Sequential(bp.Embedding(11, 4), bp.Linear(4, 3))
    model.build((2,), dtype="float64")
    optimizer = bp.Muon(0.1, weight_decay=0.0).setup(model)
    state = optimizer.state_dict()
    assert "second_moment/0.weight" in state and "second_moment/1.weight" not in state
    before = np.array(model[0].weight.value)
    train(model, optimizer, 1)
    np.testing.assert_allclose(np.abs(model[0].weight.value - before), 0.1, rtol=1e-3)  # but for eps


def test_a_large_arena_takes_the_same_step_as_a_small_one(monkeypatch):
    """NumPy works piece by piece, native kernels in ranges: no seam may show."""
    for kernels in (None, native.kernels):
        monkeypatch.setattr(native, "kernels", kernels)
        for make in (bp.AdamW, bp.RMSprop, lambda **s: bp.SGD(0.1, 0.9, **s)):
            layers = [bp.Linear(n, m, False, weight_initializer=Ones()) for n, m in ((700, 400), (400, 150))]
            model = bp.Sequential(*layers)
            model.build((700,))
            optimizer = make(groups=[bp.Group("1.weight", lr_factor=0.0)]).setup(model)
            for _ in range(3):
                for layer in layers:
                    layer.weight.grad = np.ones(layer.weight.shape, np.float32)
                optimizer.step()
            assert len(np.unique(layers[0].weight.value)) == 1 and layers[0].weight.value[0, 0] < 1
            assert (layers[1].weight.value == 1).all()


def test_adam_counts_applied_steps():
    model = network()
    optimizer = bp.Adam(0.1).setup(model)
    train(model, optimizer, 3)
    assert optimizer.control[block.APPLIED_STEP] == optimizer.control[block.ATTEMPTED_STEP] == 3
