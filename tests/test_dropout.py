"""Dropout: the bits of Philox, the mask they make, and that it is the same wherever it has to be."""

import numpy as np
import pytest
from table import LAYER_CHECKS, Case, matches_torch

import bp
import bp.ops.dropout as ops
from bp.cpu import native
from bp.cpu.dropout import philox4x32
from bp.ops import control as block

# Known answers of Philox4x32-10, as published with Random123: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter, key):
    """Philox4x32-10 in Python's integers, as independent of NumPy's types as of the implementation."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 % 2**32, p0 >> 32 ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def kept(index, rate, *, seed=0, step=0, call_site=0):
    """Whether the element with this logical index is kept."""
    counter = (index // 8 % 2**32, index // 8 >> 32, step, call_site)
    word = philox(counter, (seed % 2**32, seed >> 32))[index % 8 // 2]
    return (word >> 16 if index % 2 else word % 2**16) >= round(rate * 65536)


def mask(shape, rate, *, first=0, **stream):
    """0 where dropped, else 1 / q."""
    size = int(np.prod(shape))
    q = 1 - round(rate * 65536) / 65536
    return np.reshape([kept(first + i, rate, **stream) / q for i in range(size)], shape)


def control_block(seed=0, step=0):
    control = np.zeros(block.SIZE)
    control[[block.SEED_LOW, block.SEED_HIGH, block.FORWARD_COUNTER]] = seed % 2**32, seed >> 32, step
    return control


def reference(layer, x):
    return x * mask(x.shape, layer.rate)


CASES = [
    Case(lambda: bp.Dropout(0.5), (4, 7), reference),
    Case(lambda: bp.Dropout(0.1), (3, 5, 3, 2), reference),
    Case(lambda: bp.Dropout(0.9), (1, 1), reference),
    Case(lambda: bp.Dropout(0.3), (0, 3), reference, name="empty"),
    Case(lambda: bp.Dropout(0.3), (9,), reference, name="rank1"),
    Case(lambda: bp.Dropout(0.0), (4, 7), lambda layer, x: x, name="rate-0"),
    Case(lambda: bp.Dropout(0.5), (4, 7), lambda layer, x: x, training=False, name="inference"),
]


# PyTorch draws other random numbers.
@pytest.mark.parametrize("check", [check for check in LAYER_CHECKS if check is not matches_torch])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert philox(counter, key) == words
    assert tuple(int(word) for word in philox4x32(counter, key)) == words
    if native.kernels is not None:
        assert tuple(native.kernels.philox4x32(counter, key)) == words


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("first", [0, 3, 8, 1023, 8 * 2**32 - 5])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 517])
def test_mask_is_the_stated_one(size, first, dtype):
    control = control_block(seed=0x123456789ABCDEF, step=2**31 + 5)
    y = ops.dropout(np.ones(size, dtype), control, 7, first, 0.3)
    expected = mask((size,), 0.3, first=first, seed=0x123456789ABCDEF, step=2**31 + 5, call_site=7)
    np.testing.assert_array_equal(y, expected.astype(dtype))


@pytest.mark.parametrize("size", [1, 511, 512, 513, 70001, 2**17])
def test_native_and_numpy_agree_bit_by_bit(size, monkeypatch):
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    control = control_block(seed=3, step=4)
    for first in (0, 5, 2**40 + 3):
        fast = ops.dropout(x, control, 1, first, 0.25)
        monkeypatch.setattr(native, "kernels", None)
        np.testing.assert_array_equal(fast, ops.dropout(x, control, 1, first, 0.25))
        monkeypatch.undo()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_the_rate_says(rate):
    count = 1 << 20
    y = ops.dropout(np.ones(count, np.float32), control_block(seed=11), 0, 0, rate)
    deviation = np.sqrt(rate * (1 - rate) / count)
    assert abs((y == 0).mean() - rate) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - rate)


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 1 << 32}, {"step": 1}, {"call_site": 1}, {"first": 8}])
def test_masks_of_different_streams_are_independent(change):
    def draw(seed=0, step=0, call_site=0, first=0):
        return ops.dropout(np.ones(1 << 16, np.float32), control_block(seed, step), call_site, first, 0.5) > 0

    agreeing = (draw() == draw(**change)).mean()
    assert abs(agreeing - 0.5) < 5 * 0.5 / 256


@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9, 1 / 3])
def test_scale_is_that_of_the_rate_carried_out(rate):
    dropped = ops.dropped_levels(rate)
    y = ops.dropout(np.ones(1 << 18), control_block(), 0, 0, rate)
    assert set(np.unique(y)) <= {0.0, 65536 / (65536 - dropped)}
    assert y.any() and np.isfinite(y).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropped_elements_are_zero_whatever_they_were(dtype):
    x = np.array([np.inf, -np.inf, np.nan, np.finfo(dtype).max] * 64, dtype)
    y = ops.dropout(x, control_block(), 0, 0, 0.5)
    keep = mask(x.shape, 0.5) > 0
    assert (y[~keep] == 0).all() and np.array_equal(np.isnan(y[keep]), np.isnan(x[keep]))


def test_non_contiguous_input():
    x = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32).T
    expected = ops.dropout(np.ascontiguousarray(x), control_block(), 0, 0, 0.5)
    np.testing.assert_array_equal(ops.dropout(x, control_block(), 0, 0, 0.5), expected)


def test_a_batch_cut_in_pieces_draws_the_mask_of_the_whole():
    x = np.ones((12, 3, 5), np.float32)
    layer = bp.Dropout(0.4)
    whole = layer.forward(x, bp.Context(training=True, seed=9, step=2))
    for size in (1, 4, 5):
        for start in range(0, 12, size):
            ctx = bp.Context(training=True, seed=9, step=2, sample_offset=start)
            piece = x[start : start + size]
            np.testing.assert_array_equal(layer.forward(piece, ctx), whole[start : start + size])
            np.testing.assert_array_equal(layer.backward(piece, ctx), whole[start : start + size])


def test_a_layer_used_twice_draws_two_masks_and_takes_back_the_right_ones():
    layer = bp.Dropout(0.5)
    model = bp.Sequential(layer, layer)
    x = np.ones((64, 64), np.float32)
    ctx = bp.Context(training=True, step=0)
    y = model.forward(x, ctx)
    first, second = (mask(x.shape, 0.5, call_site=site) for site in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(y, first * second)
    np.testing.assert_array_equal(model.backward(x, ctx), first * second)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2, float("nan")])
def test_wrong_rate(rate):
    with pytest.raises(bp.errors.ConfigurationError, match=r"Dropout expected a rate in \[0, 1\), got"):
        bp.Dropout(rate)


def test_wrong_dtype():
    with pytest.raises(bp.errors.DtypeError, match="Dropout: dropout expected an array of a floating dtype, got int64"):
        bp.Dropout().forward(np.ones((2, 3), np.int64), bp.Context(training=True))
