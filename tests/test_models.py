"""Models: sizes as published, outputs as asked for, settings that are checked, and gradients that flow everywhere."""

import numpy as np
import pytest

import bp
from bp import models
from bp.checking import GradientError, check, tolerance
from bp.errors import ConfigurationError, ShapeError
from bp.models.activations import ACTIVATIONS


def parameters(model):
    return sum(parameter.size for _, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("mlp", (64,), 10, 65 * 64 + 65 * 10),
        ("lenet", (28, 28, 1), 10, 61_706),  # LeNet-5 with every channel connected
        ("cnn", (28, 28, 1), 10, 421_642),
        ("resnet20", (32, 32, 3), 10, 272_474),  # 0.27M in He et al. (2015), table 6
        ("resnet32", (32, 32, 3), 10, 466_906),  # 0.46M
        ("resnet56", (32, 32, 3), 10, 855_770),  # 0.85M
        ("resnet20", (32, 32, 3), 100, 278_324),
        ("resnet18", (224, 224, 3), 1000, 11_689_512),  # these three as of PyTorch's torchvision
        ("resnet34", (224, 224, 3), 1000, 21_797_672),
        ("resnet50", (224, 224, 3), 1000, 25_557_032),
        ("vgg11", (32, 32, 3), 10, 9_228_362),
    ],
)
def test_parameter_counts_and_output_shapes(name, shape, classes, count):
    model = models.MODELS.get(name)(shape, classes=classes)
    assert model.build(shape) == (classes,)
    assert parameters(model) == count


def test_mlp_has_what_is_asked_for():
    model = models.mlp((4, 4, 2), classes=3, hidden=[8, 6], activation="gelu", dropout=0.5, normalization="batch")
    kinds = [type(layer).__name__ for layer in model.layers]
    block = ["Linear", "BatchNorm1d", "GELU", "Dropout"]
    assert kinds == ["Flatten", *block, *block, "Linear"]
    assert model.build((4, 4, 2)) == (3,)
    assert parameters(model) == 32 * 8 + 16 + 8 * 6 + 12 + 7 * 3
    assert [type(layer).__name__ for layer in models.mlp((5,), classes=2, hidden=[]).layers] == ["Linear"]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_can_be_named(activation):
    model = models.mlp((5,), classes=2, hidden=[4], activation=activation, normalization="layer")
    model.build((5,))
    assert np.isfinite(model(np.ones((3, 5), np.float32))).all()


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("mlp", (6,), {"normalization": "batch", "dropout": 0.2}),
        ("lenet", (28, 28, 1), {}),
        ("cnn", (8, 8, 2), {"channels": [3, 4], "hidden": 5, "dropout": 0.3}),
        ("resnet20", (8, 8, 3), {}),
        ("resnet20", (9, 7, 1), {"zero_init_residual": True}),
        ("resnet18", (33, 47, 1), {"width": 3}),
        ("resnet50", (40, 33, 3), {"width": 2}),
        ("resnet50", (40, 33, 3), {"width": 2, "zero_init_residual": True}),
        ("vgg11", (32, 32, 3), {"dropout": 0.1}),
    ],
)
def test_every_parameter_of_a_model_gets_a_gradient(name, shape, settings):
    model = models.MODELS.get(name)(shape, classes=4, **settings)
    model.build(shape)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((6, *shape)).astype(np.float32)
    ctx = bp.Context(training=True, step=0)
    loss = bp.CrossEntropyLoss()
    loss.forward(model.forward(x, ctx), generator.integers(0, 4, 6), ctx)
    dx = model.backward(loss.backward(ctx), ctx)
    assert dx.shape == x.shape and ctx.open_layers == []
    for parameter_name, parameter in model.named_parameters():
        assert np.isfinite(parameter.grad).all()
        # Behind a scale that starts at 0 nothing arrives in the first step.
        if not (settings.get("zero_init_residual") and ".body." in parameter_name):
            assert np.abs(parameter.grad).max() > 0, parameter_name


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("mlp", (6,), {}),
        ("lenet", (28, 28, 1), {}),
        ("cnn", (12, 12, 2), {}),
        ("resnet20", (8, 8, 3), {}),
        ("resnet18", (33, 39, 1), {"width": 2}),
        ("resnet50", (39, 33, 3), {"width": 2}),
    ],
)
def test_backward_agrees_with_central_differences(name, shape, settings):
    # At this size there are always kinks of a ReLU close by, and a pooling over equal numbers.
    model = models.MODELS.get(name)(shape, classes=4, **settings)
    model.build(shape)
    x = np.maximum(np.random.default_rng(0).standard_normal((2, *shape)), 0)
    comparisons = check(model, x)
    assert {comparison.direction for comparison in comparisons} >= {"input", "weight", "bias", "all parameters"}


@pytest.mark.parametrize("kind", ["Conv2d", "ReLU", "MaxPool2d", "Linear"])
def test_a_wrong_backward_is_found_and_named(kind, monkeypatch):
    backward = getattr(bp, kind).backward
    monkeypatch.setattr(getattr(bp, kind), "backward", lambda self, dy, ctx: backward(self, dy, ctx) * (1 + 1e-3))
    model = models.cnn((12, 12, 2), classes=4)
    model.build((12, 12, 2))
    with pytest.raises(GradientError, match=rf"{kind} '\d'"):
        check(model, np.random.default_rng(0).standard_normal((2, 12, 12, 2)))


def test_zero_initialised_residual_blocks_are_the_identity():
    model = models.resnet20((8, 8, 3), classes=2, zero_init_residual=True)
    model.build((8, 8, 3))
    block = next(layer for _, layer in model.named_layers() if isinstance(layer, bp.Residual))
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 16)).astype(np.float32)
    np.testing.assert_array_equal(block.forward(x, bp.Context()), x)


def test_resnet50_halves_the_image_five_times():
    rows = bp.summary(models.resnet50((224, 224, 3), classes=1000), (224, 224, 3)).rows
    shapes = [row.output_shape for row in rows if row.depth == 0 and row.kind != "ReLU"]
    stages = [(56, 56, 256)] * 3 + [(28, 28, 512)] * 4 + [(14, 14, 1024)] * 6 + [(7, 7, 2048)] * 3
    assert shapes == [(112, 112, 64)] * 2 + [(56, 56, 64), *stages, (2048,), (1000,)]


@pytest.mark.parametrize(
    ("name", "settings", "blocks"),
    [
        ("resnet20", {}, (3, 3, 3)),
        ("resnet18", {"width": 4}, (2, 2, 2, 2)),
        ("resnet50", {"width": 4}, (3, 4, 6, 3)),
    ],
)
def test_resnet_forward_equals_pytorch(name, settings, blocks):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    shape = (16, 16, 3) if name == "resnet20" else (64, 80, 3)
    model = models.MODELS.get(name)(shape, classes=5, **settings)
    model.build(shape, dtype="float64", seed=3)
    x = np.random.default_rng(0).standard_normal((2, *shape))
    value = {n: torch.tensor(np.array(p.value)) for n, p in model.named_parameters()}

    def conv_norm(path, first, h, stride=1):
        weight = value[f"{path}{first}.weight"].permute(0, 3, 1, 2)
        h = torch.nn.functional.conv2d(h, weight, stride=stride, padding=weight.shape[-1] // 2)
        return torch.nn.functional.batch_norm(
            h, None, None, value[f"{path}{first + 1}.weight"], value[f"{path}{first + 1}.bias"], training=True
        )

    h, place = torch.tensor(x).permute(0, 3, 1, 2), 3
    if name == "resnet20":
        h = torch.relu(conv_norm("", 0, h))
    else:
        h = torch.nn.functional.max_pool2d(torch.relu(conv_norm("", 0, h, 2)), 3, 2, 1)
        place += 1
    for block in range(sum(blocks)):
        stride = 2 if block in np.cumsum(blocks) else 1
        body = f"{place}.body."
        if name == "resnet50":
            inner = torch.relu(conv_norm(body, 3, torch.relu(conv_norm(body, 0, h)), stride))
            inner = conv_norm(body, 6, inner)
        else:
            inner = conv_norm(body, 3, torch.relu(conv_norm(body, 0, h, stride)))
        if f"{place}.shortcut.0.weight" in value:
            h = conv_norm(f"{place}.shortcut.", 0, h, stride)
        h = torch.relu(inner + h)
        place += 2
    expected = h.mean((2, 3)) @ value[f"{place + 1}.weight"].T + value[f"{place + 1}.bias"]
    got = model.forward(x, bp.Context(training=True))
    # So many layers, each a sum of up to 576 products, and a normalisation that divides by small deviations.
    allowed = len(value) // 3 * tolerance("float64", 576) * np.abs(got).max()
    assert np.abs(got - expected.numpy()).max() < allowed


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: models.mlp((5,), classes=0), ConfigurationError, "mlp expected classes of at least 1, got 0"),
        (lambda: models.mlp((5,), classes=2, hidden=[4, -1]), ConfigurationError, r"mlp expected hidden .* \[4, -1\]"),
        (lambda: models.cnn((5, 5, 1), classes=2, hidden=0), ConfigurationError, "cnn expected hidden of at least 1"),
        (lambda: models.cnn((25,), classes=2), ShapeError, r"cnn expected images, samples of shape \(H, W, C\)"),
        (
            lambda: models.resnet20((64,), classes=2),
            ShapeError,
            r"resnet expected images.*got samples of shape \(64,\)",
        ),
        (lambda: models.resnet50((8, 8, 3), classes=2, width=0), ConfigurationError, "resnet expected width of at"),
        (lambda: models.mlp((5,), classes=2, dropout=1.5), ConfigurationError, "Dropout|dropout"),
    ],
)
def test_bad_settings(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("name", ["lenet", "cnn", "vgg11"])
def test_images_too_small_are_an_error(name):
    model = models.MODELS.get(name)((2, 2, 1), classes=3)
    with pytest.raises(ShapeError):
        model.build((2, 2, 1))
