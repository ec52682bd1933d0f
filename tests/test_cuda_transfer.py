"""Copies, fills and conversions on the emulator: every width, alignment and special value."""

import itertools

import numpy as np
import pytest
from emulated import DTYPES, to_device, to_host
from table import KERNEL_DEVICE, emulating

import bp
import bp.cuda.kernel
from bp.cuda import transfer
from bp.ops.array import known_dtype
from bp.ops.device import find_device

device = find_device(KERNEL_DEVICE)

ALL_DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *(*DTYPES, "float64"),
]
SIZES = [0, 1, 2, 7, 16, 17, 255, 4099]


def numbers(size, dtype):
    return np.random.default_rng(size).integers(0, 100, size).astype(known_dtype(dtype))


def within(array, offset):
    """(a view on the device that begins `offset` elements in and holds `array`, the whole of which it is a part)."""
    whole = to_device(np.concatenate([np.full(n, 7, array.dtype) for n in (offset, array.size, 5)]))
    device.copy(whole[offset : offset + array.size], array)
    return whole[offset : offset + array.size], whole


def assert_part(whole, offset, expected):
    """The part is as expected, and around it nothing was written."""
    host = to_host(whole)
    np.testing.assert_array_equal(host[offset : offset + expected.size], expected)
    around = np.delete(host, slice(offset, offset + expected.size))
    np.testing.assert_array_equal(around, np.full_like(around, 7))


@pytest.fixture(params=["one-block", "many-blocks"])
def grid(request, monkeypatch):
    """Large arrays are taken in steps of the whole grid; with one block of threads, small ones are as well."""
    if request.param == "one-block":
        monkeypatch.setattr(bp.cuda.kernel, "_MAX_BLOCKS", 1)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_copy(dtype, grid):
    for size, (read, written) in itertools.product(SIZES, [(0, 0), (1, 0), (0, 3), (1, 1), (16, 16)]):
        x = numbers(size, dtype)
        source, _ = within(x, read)
        destination, whole = within(np.zeros_like(x), written)
        device.copy(destination, source)
        assert_part(whole, written, x)


def test_copy_moves_bits_whatever_they_mean():
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 1001, dtype=np.uint32)
    source = to_device(patterns.view(np.float32))
    destination = device.empty(source.shape, source.dtype)
    device.copy(destination, source)
    np.testing.assert_array_equal(to_host(destination).view(np.uint32), patterns)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_fill(dtype, grid):
    for size, offset in itertools.product(SIZES, [0, 1, 3, 16]):
        part, whole = within(numbers(size, dtype), offset)
        device.fill(part, 1)
        assert_part(whole, offset, np.ones(size, known_dtype(dtype)))


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -1e5, 1e-7, np.inf, -np.inf, np.nan])
def test_fill_rounds_as_numpy_does(value, dtype):
    part = device.empty((9,), dtype)
    device.fill(part, value)
    with np.errstate(over="ignore"):
        expected = np.full(9, value, known_dtype(dtype))
    assert to_host(part).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8"])
def test_fill_with_integers_at_the_end_of_their_range(dtype):
    for value in (np.iinfo(dtype).min, 77):
        part = device.empty((33,), dtype)
        device.fill(part, value)
        np.testing.assert_array_equal(to_host(part), np.full(33, value, dtype))


def float_patterns():
    """float32 numbers at and around every point where a rounding to 16 bits changes, and special ones."""
    with np.errstate(invalid="ignore"):
        near = np.concatenate(
            [np.arange(1 << 16, dtype=np.uint16).view(known_dtype(d)).astype(np.float32) for d in DTYPES[1:]]
        )
    near = near[np.isfinite(near)][::7]
    bits = near.view(np.uint32).astype(np.int64)
    # Half a unit of float16 is 2^12 of float32's bits, of bfloat16 2^15: ties, and one beside.
    moved = [(bits + step) & 0xFFFFFFFF for step in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    finite = np.concatenate(moved).astype(np.uint32).view(np.float32)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 2.0**-24, 2.0**-25, 1e-45, 3.4e38, -3.4e38]
    return np.concatenate([np.array(special, np.float32), finite])


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_cast_of_every_number(source, to):
    """All 65,536 numbers of a 16-bit type; of float32 those around every rounding."""
    x = float_patterns() if source == "float32" else np.arange(1 << 16, dtype=np.uint16).view(known_dtype(source))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float32).astype(known_dtype(to))
    y = device.empty(x.shape, to)
    transfer.cast(y, to_device(x))
    y, bits = to_host(y), f"u{known_dtype(to).itemsize}"
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(y), nan)
    np.testing.assert_array_equal(y[~nan].view(bits), expected[~nan].view(bits))


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_cast_of_any_size_and_alignment(source, to, grid):
    for size, (read, written) in itertools.product(SIZES, [(0, 0), (1, 0), (0, 1), (3, 5), (8, 8)]):
        x = numbers(size, source)
        part, _ = within(x, read)
        destination, whole = within(np.zeros(size, known_dtype(to)), written)
        device.copy(destination, part)
        assert_part(whole, written, x.astype(known_dtype(to)))


def test_threads_in_any_order():
    x = numbers(5000, "float32")
    for seed in (1, 2):
        with emulating(detector=True, seed=seed):
            y, z = device.empty(x.shape, "bfloat16"), device.empty(x.shape, "float32")
            device.copy(y, to_device(x))
            device.copy(z, y)
            device.fill(y, 3)
        np.testing.assert_array_equal(to_host(z), x)
        assert (to_host(y) == 3).all()


def test_copies_from_and_to_the_host():
    for array in (np.arange(6.0).reshape(2, 3).T, np.zeros((0, 3)), np.array(2.5), np.array([True, False])):
        on_device = device.from_host(array)
        np.testing.assert_array_equal(on_device.get(), array)
        assert on_device.dtype == array.dtype
    y = device.empty((2, 3), "bfloat16")
    device.copy(y, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(to_host(y), np.arange(6).reshape(2, 3))
    device.fill(y[1], 9)
    np.testing.assert_array_equal(to_host(y), [[0, 1, 2], [9, 9, 9]])


def test_what_does_not_fit():
    x = to_device(np.ones((2, 3), np.float32))
    with pytest.raises(bp.errors.ShapeError, match=r"shape \(3, 2\) to copy, got \(2, 3\)"):
        device.copy(device.empty((3, 2), "float32"), x)
    with pytest.raises(bp.errors.DtypeError, match="kernel cast is compiled for TO of float, float16, bfloat16"):
        device.copy(device.empty((2, 3), "int32"), x)
