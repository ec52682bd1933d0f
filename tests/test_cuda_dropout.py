"""The dropout kernel on the emulator: the mask is bit by bit that of the CPU."""

import numpy as np
import pytest
from emulated import DTYPES, Offset, on_device, sparse, to_device, to_host
from test_dropout import control_block, mask, philox

import bp.cuda.dropout
import bp.ops.dropout as ops
from bp.cuda.emulator import engine
from bp.ops.array import known_dtype

SEED, STEP = 0x123456789ABCDEF, 2**31 + 5


def stream():
    return to_device(control_block(SEED, STEP))


def on_cpu(x, first, rate, call_site=7):
    """The float32 result of the CPU, which the device rounds to the dtype of x."""
    y = ops.dropout(x.astype(np.float32), control_block(SEED, STEP), call_site, first, rate)
    return y.astype(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 3, 8, 1023, 2**32 - 3, 8 * 2**32 - 5, 2**40 + 16])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 2053])
def test_bits_are_those_of_the_cpu(size, first, dtype):
    x = np.random.default_rng(size).standard_normal(size).astype(known_dtype(dtype))
    expected = on_cpu(x, first, 0.3)
    for offset in (0, 1, 8):
        given = on_device(Offset(x, offset), dtype)
        np.testing.assert_array_equal(to_host(ops.dropout(given, stream(), 7, first, 0.3)), expected)
        np.testing.assert_array_equal(to_host(ops.dropout_backward(given, stream(), 7, first, 0.3)), expected)


def test_mask_is_the_stated_one():
    """By Philox in Python's integers, not by way of the CPU's kernel."""
    for first in (0, 5, 8 * 2**32 - 5):
        y = to_host(ops.dropout(to_device(np.ones(21, np.float32)), stream(), 7, first, 0.3))
        expected = mask((21,), 0.3, first=first, seed=SEED, step=STEP, call_site=7)
        np.testing.assert_array_equal(y, expected.astype(np.float32))


def test_the_level_that_still_keeps():
    """Each element is kept at a rate of its own bits over 65536, and dropped at the next one."""
    words = philox((0, 0, STEP, 7), (SEED % 2**32, SEED >> 32))
    for element in range(8):
        bits = words[element // 2] >> 16 * (element % 2) & 0xFFFF
        for rate, kept in ((bits / 65536, True), ((bits + 1) / 65536, False)):
            y = to_host(ops.dropout(to_device(np.ones(8, np.float32)), stream(), 7, 0, rate))
            assert (y[element] > 0) == kept


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.5, 1 - 1e-9])
def test_rates_at_the_ends(rate):
    x = np.random.default_rng(0).standard_normal((3, 999)).astype(np.float32)
    np.testing.assert_array_equal(to_host(ops.dropout(to_device(x), stream(), 7, 0, rate)), on_cpu(x, 0, rate))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropped_elements_are_zero_whatever_they_were(dtype):
    x = np.array([np.inf, -np.inf, np.nan, 1.0] * 70, known_dtype(dtype))
    y = to_host(ops.dropout(to_device(x), stream(), 0, 0, 0.5)).astype(np.float32)
    np.testing.assert_array_equal(y, on_cpu(x, 0, 0.5, call_site=0).astype(np.float32))
    kept = mask(x.shape, 0.5, seed=SEED, step=STEP) > 0
    assert (y[~kept] == 0).all() and np.array_equal(np.isnan(y[kept]), np.isnan(x[kept]))


def test_more_elements_than_32_bits_count(monkeypatch):
    n = (1 << 31) + 19
    x, y = sparse((n,), "bfloat16"), sparse((n,), "bfloat16")
    begin, end = 1 << 31, n
    x[begin:end] = np.ones(end - begin)
    monkeypatch.setattr(bp.cuda.dropout, "empty_like", lambda _: y)
    launch = engine.launch
    # Block 0 of a grid of 2^13 blocks of 2^8 threads has the chunks from 2^28 on, and what is left after the last.
    monkeypatch.setattr(engine, "launch", lambda *args, **settings: launch(*args, first_block=0, block_count=1))
    first = 2**33
    ops.dropout(x, stream(), 7, first, 0.5)
    expected = mask((end - begin,), 0.5, first=first + begin, seed=SEED, step=STEP, call_site=7)
    np.testing.assert_array_equal(to_host(y[begin:end]).astype(np.float64), expected)
