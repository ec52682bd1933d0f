"""Augmentation: each transform against a plain loop or its definition, shapes, types and determinism."""

import numpy as np
import pytest

from bp.data import (
    Compose,
    Cutout,
    Mixup,
    Normalize,
    OneHot,
    RandomCrop,
    RandomHorizontalFlip,
    RandomTranslate,
    ToFloat,
)
from bp.errors import ConfigurationError, DataError, DtypeError, ShapeError

SHAPES = [(5, 7, 4, 3), (1, 1, 1, 1), (3, 1, 6, 2), (4, 5, 1, 1), (0, 4, 4, 3), (2, 8, 8, 5)]
GEOMETRY = [
    RandomHorizontalFlip(),
    RandomHorizontalFlip(0.0),
    RandomHorizontalFlip(1.0),
    RandomCrop(padding=0),
    RandomCrop(padding=3),
    RandomTranslate(2, 0),
    RandomTranslate(0, 9),
    Cutout(1),
    Cutout(4),
    Cutout(99),
]


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def batch(shape, dtype="uint8", seed=1):
    x = (np.random.default_rng(seed).random(shape) * 254 + 1).astype(dtype)  # no zeros: those are the filling
    return x, np.arange(shape[0])


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transform", GEOMETRY, ids=lambda t: type(t).__name__)
def test_geometry_keeps_shape_type_labels_and_its_input(transform, shape, dtype):
    x, y = batch(shape, dtype)
    before = x.copy()
    x.setflags(write=False)
    out, labels = transform(x, y, rng())
    assert out.shape == shape and out.dtype == x.dtype and labels is y and out.flags.c_contiguous
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(out, transform(x, y, rng())[0])
    strided = np.repeat(x, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(out, transform(strided, y, rng())[0])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_flip_mirrors_the_chosen_ones(dtype):
    x, y = batch((200, 3, 4, 3), dtype)
    out, _ = RandomHorizontalFlip(0.25)(x, y, rng())
    flipped = np.array([not np.array_equal(a, b) for a, b in zip(x, out, strict=True)])
    np.testing.assert_array_equal(out[flipped], x[flipped, :, ::-1])
    assert 20 < flipped.sum() < 80
    np.testing.assert_array_equal(RandomHorizontalFlip(1.0)(x, y, rng())[0], x[:, :, ::-1])
    np.testing.assert_array_equal(RandomHorizontalFlip(0.0)(x, y, rng())[0], x)


@pytest.mark.parametrize(
    ("transform", "padding", "size"),
    [
        (RandomCrop(padding=2), ((2, 2), (2, 2)), (5, 4)),
        (RandomCrop((3, 2)), ((0, 0), (0, 0)), (3, 2)),
        (RandomCrop((7, 1), padding=1), ((1, 1), (1, 1)), (7, 1)),
        (RandomTranslate(1, 3), ((1, 1), (3, 3)), (5, 4)),
    ],
)
def test_crops_are_windows_and_all_of_them_come(transform, padding, size):
    one = batch((1, 5, 4, 3))[0]
    x = np.repeat(one, 600, axis=0)
    out, _ = transform(x, np.arange(600), rng())
    framed = np.pad(one[0], (*padding, (0, 0)))
    expected = {
        framed[t : t + size[0], s : s + size[1]].tobytes()
        for t in range(framed.shape[0] - size[0] + 1)
        for s in range(framed.shape[1] - size[1] + 1)
    }
    assert out.shape == (600, *size, 3)
    assert {image.tobytes() for image in out} == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
def test_cutout_zeroes_a_clipped_square(size):
    x, y = batch((300, 6, 5, 2), "float32")
    out, _ = Cutout(size)(x, y, rng())
    for before, after in zip(x, out, strict=True):
        zero = (after == 0).all(axis=-1)
        rows, columns = np.flatnonzero(zero.any(axis=1)), np.flatnonzero(zero.any(axis=0))
        assert zero[np.ix_(rows, columns)].all() and zero.sum() == len(rows) * len(columns) > 0
        assert len(rows) <= size and len(columns) <= size and np.ptp(rows) == len(rows) - 1
        np.testing.assert_array_equal(after[~zero], before[~zero])
    assert (out == 0).any(axis=(0, 3)).all()  # every pixel is hit by some image


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (3, 5, 4, 3), (0, 2, 2, 3), (2, 0, 3)], ids=str)
def test_normalize(shape):
    mean, std = (0.1, 0.5, 0.9), (0.2, 1.0, 3.0)
    raw, y = batch(shape)
    expected = (raw.astype("float64") / 255 - mean) / std
    out, labels = Normalize(mean, std)(raw, y, rng())
    assert out.dtype == np.float32 and labels is y and out.shape == shape
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    for dtype in ("float32", "float64"):
        wide, _ = Normalize(mean, std)((raw / 255).astype(dtype), y, rng())
        assert wide.dtype == dtype
        np.testing.assert_allclose(wide, expected, rtol=1e-6, atol=1e-6)


def test_normalize_by_one_number_for_all_channels_and_several_shapes():
    transform = Normalize((0.5,), (0.25,))
    for shape in [(2, 3, 3, 1), (2, 4), (1, 2, 2, 7)]:
        x, y = batch(shape)
        np.testing.assert_allclose(transform(x, y, rng())[0], x / 63.75 - 2, rtol=1e-5, atol=1e-6)


def test_to_float():
    x = np.array([[0, 255, 51]], "uint8")
    out, _ = ToFloat()(x, np.zeros(1), rng())
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [[0, 1, 0.2]], rtol=1e-6)
    assert ToFloat()(out, np.zeros(1), rng())[0] is out


def test_one_hot():
    x, y = batch((3, 2))
    out, targets = OneHot(4)(x, np.array([3, 0, 3]), rng())
    assert out is x and targets.dtype == np.float32
    np.testing.assert_array_equal(targets, np.eye(4)[[3, 0, 3]])
    assert OneHot(4)(x, y[:0], rng())[1].shape == (0, 4)


def test_mixup_mixes_inputs_and_targets_by_one_share():
    count = 9
    x = np.eye(count, dtype="float32")  # a sample is its own one-hot, so targets must equal inputs
    out, targets = Mixup(1.0, classes=count)(x, np.arange(count), rng())
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(out, targets)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    assert len(np.unique(np.round(targets[targets > 0], 5))) <= 3  # t, 1 - t, and 1 where j is i
    # Float targets are mixed as they are, by the same share and permutation.
    np.testing.assert_array_equal(Mixup(1.0, classes=count)(x, 2 * x, rng())[1], 2 * out)


def test_compose_runs_in_order_on_one_generator():
    x, y = batch((4, 5, 5, 3))
    out, _ = Compose(RandomCrop(padding=1), RandomHorizontalFlip(), Normalize((0.5,), (0.5,)))(x, y, rng())
    generator = rng()
    step, _ = RandomCrop(padding=1)(x, y, generator)
    step, _ = RandomHorizontalFlip()(step, y, generator)
    np.testing.assert_array_equal(out, Normalize((0.5,), (0.5,))(step, y, generator)[0])
    assert Compose()(x, y, rng())[0] is x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomHorizontalFlip(1.5), r"probability in \[0, 1\], got 1.5"),
        (lambda: RandomHorizontalFlip(float("nan")), "got nan"),
        (lambda: RandomCrop(padding=-1), "padding >= 0"),
        (lambda: RandomCrop((0, 3)), "positive size"),
        (lambda: RandomTranslate(-1, 0), "at least 0, got -1 and 0"),
        (lambda: Cutout(0), "at least 1, got 0"),
        (lambda: Mixup(0.0, 3), "alpha > 0, got 0.0"),
        (lambda: Normalize((0.5,), (0.0,)), "positive deviations"),
        (lambda: Normalize((0.5, 0.5), (1.0,)), "got 2 and 1"),
        (lambda: Normalize((), ()), "got 0 and 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "x", "y", "error", "message"),
    [
        (
            RandomHorizontalFlip(),
            batch((2, 3, 3))[0],
            0,
            ShapeError,
            r"expected images \(N, H, W, C\), got shape \(2, 3, 3\)",
        ),
        (Cutout(2), batch((2, 3, 3, 1), "int64")[0], 0, DtypeError, "expected uint8, float32 or float64, got int64"),
        (RandomCrop((5, 5), padding=1), batch((2, 2, 9, 1))[0], 0, ShapeError, r"at least \(5, 5\) with the padding"),
        (RandomTranslate(1, 1), np.zeros((2, 0, 3, 1), "uint8"), 0, ShapeError, r"got shape \(2, 0, 3, 1\)"),
        (Normalize((0.1, 0.2), (1, 1)), batch((2, 3))[0], 0, ShapeError, "expected 2 channels along the last axis"),
        (ToFloat(), np.zeros((2, 3), bool), 0, DtypeError, "got bool"),
        (Mixup(1.0, 3), batch((2, 3))[0], np.arange(2), DtypeError, "float inputs .*got uint8"),
        (Mixup(1.0, 2), batch((3, 3), "float32")[0], np.arange(3), DataError, r"labels in 0\.\.1, got 0\.\.2"),
        (OneHot(3), batch((3, 3))[0], np.array([0, -1, 2]), DataError, r"got -1\.\.2"),
        (OneHot(3), batch((3, 3))[0], np.zeros(3), DtypeError, "integer labels"),
    ],
)
def test_bad_batches(transform, x, y, error, message):
    with pytest.raises(error, match=message):
        transform(x, y, rng())
