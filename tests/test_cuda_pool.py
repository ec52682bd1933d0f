"""Pooling kernels on the emulator: what the table of layers does not reach."""

import numpy as np
import pytest
from emulated import DTYPES, Offset, compare, sparse, to_device, to_host
from table import emulating

import bp.cuda.kernel
import bp.cuda.pool as pool
import bp.ops.pool as ops

# kernel, stride, padding, dilation
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), (1, 1)),
    ((3, 2), (1, 2), (1, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 3), (3, 1), (1, 2), (2, 3)),  # dilated, with gaps along one axis
    ((1, 1), (3, 2), (0, 0), (1, 1)),
]


def images(shape, kind="random"):
    x = np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape)
    if kind == "ties":
        x = np.round(x)
    if kind == "special":
        chosen = np.random.default_rng(1).random(shape)
        x[chosen < 0.1], x[chosen > 0.9], x[(chosen > 0.2) & (chosen < 0.3)] = np.nan, np.inf, -np.inf
    return x


def through_both(x, window, dtype, offset=0):
    """max_pool2d and its backward, against the CPU."""
    given = Offset(x, offset) if offset else x
    _, index = compare(ops.max_pool2d, given, *window, dtype=dtype)
    dy = np.random.default_rng(2).standard_normal(index.shape)
    gradient = Offset(dy, offset) if offset else dy
    length = window[0][0] * window[0][1]
    compare(ops.max_pool2d_backward, gradient, to_host(index), x.shape, *window, dtype=dtype, length=length)


def average_through_both(x, window, include, dtype, offset=0):
    window = window[:3]
    given = Offset(x, offset) if offset else x
    length = window[0][0] * window[0][1]
    y = compare(ops.avg_pool2d, given, *window, include, dtype=dtype, length=length)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    gradient = Offset(dy, offset) if offset else dy
    compare(ops.avg_pool2d_backward, gradient, x.shape, *window, include, dtype=dtype, length=length)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 12])
def test_windows(channels, window, dtype):
    x = images((2, 6, 7, channels))
    through_both(x, window, dtype)
    if window[3] == (1, 1):
        for include in (True, False):
            average_through_both(x, window, include, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 3, 8])
def test_images_that_begin_anywhere(offset, dtype):
    x = images((2, 5, 4, 16))
    through_both(x, WINDOWS[2], dtype, offset)
    average_through_both(x, WINDOWS[2], False, dtype, offset)
    compare(ops.global_avg_pool2d, Offset(x, offset), dtype=dtype, length=20)
    dy = np.random.default_rng(2).standard_normal((2, 16))
    compare(ops.global_avg_pool2d_backward, Offset(dy, offset), x.shape, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["ties", "special"])
@pytest.mark.parametrize("channels", [3, 8])
def test_ties_nan_and_infinity(channels, kind, dtype):
    x = images((2, 6, 7, channels), kind)
    for window in WINDOWS:
        through_both(x, window, dtype)
    for include in (True, False):
        compare(ops.avg_pool2d, x, *WINDOWS[2][:3], include, dtype=dtype, length=9)
        dy = images((2, 3, 4, channels), kind)
        compare(ops.avg_pool2d_backward, dy, x.shape, *WINDOWS[2][:3], include, dtype=dtype, length=9)
    compare(ops.global_avg_pool2d, x, dtype=dtype, length=42)


def test_gradients_that_are_not_finite_go_to_winners_only():
    x = images((1, 4, 4, 4))
    _, index = compare(ops.max_pool2d, x, *WINDOWS[0])
    dy = np.full((1, 2, 2, 4), np.nan)
    dy[0, 1] = np.inf
    compare(ops.max_pool2d_backward, dy, to_host(index), x.shape, *WINDOWS[0])


def test_extreme_numbers():
    """Sums of 16-bit numbers run in float: they may leave the range of float16 on the way."""
    x = np.full((1, 4, 4, 8), 60000.0)
    for dtype in DTYPES:
        average_through_both(x, WINDOWS[2], True, dtype)
        compare(ops.global_avg_pool2d, x, dtype=dtype, length=16)
        through_both(-x, WINDOWS[2], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_but_minus_infinity_has_a_winner_inside_the_image(dtype):
    for window in WINDOWS:
        through_both(np.full((1, 6, 7, 8), -np.inf), window, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_window_on_nothing_but_padding(dtype):
    through_both(np.ones((1, 1, 1, 3)), ((2, 2), (1, 1), (1, 1), (2, 2)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "index_dtype"), [((16, 16), "uint8"), ((257, 1), "uint16"), ((17, 16), "uint16")])
@pytest.mark.parametrize("channels", [1, 8])
def test_index_of_one_or_two_bytes(channels, kernel, index_dtype, dtype):
    """The largest number is at the last tap, the first or in between."""
    x = np.zeros((3, *kernel, channels))
    x[0, -1, -1], x[1, 0, 0], x[2, kernel[0] // 2, -1] = 1, 1, 1
    window = (kernel, (1, 1), (0, 0), (1, 1))
    _, index = compare(ops.max_pool2d, x, *window, dtype=dtype, output_dtypes=(dtype, index_dtype))
    compare(ops.max_pool2d_backward, np.ones((3, 1, 1, channels)), to_host(index), x.shape, *window, dtype=dtype)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 0)])
def test_no_elements(shape):
    through_both(np.zeros(shape), WINDOWS[0], "float32")
    average_through_both(np.zeros(shape), WINDOWS[0], True, "float32")
    compare(ops.global_avg_pool2d, np.zeros(shape))
    compare(ops.global_avg_pool2d_backward, np.zeros((shape[0], shape[3])), shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (3, 1, 1, 70),  # one pixel; more than one block of channels
        (2, 7, 7, 33),
        (2, 13, 11, 264),
        (1, 60, 61, 3),  # few channels, several chunks
        (2, 33, 40, 32),  # several chunks of 16-byte groups
    ],
)
def test_global_average(shape, dtype):
    pixels = shape[1] * shape[2]
    with emulating(detector=True, seed=1):
        compare(ops.global_avg_pool2d, images(shape) + 3, dtype=dtype, length=pixels)
        dy = np.random.default_rng(2).standard_normal((shape[0], shape[3]))
        compare(ops.global_avg_pool2d_backward, dy, shape, dtype=dtype)


def test_large_images_are_summed_in_chunks():
    assert pool._chunk(pixels=49, tasks=1, rows=8) > 49
    assert pool._chunk(pixels=224 * 224, tasks=1, rows=8) == 256
    assert pool._chunk(pixels=10**9, tasks=10**6, rows=8) == 1024


def test_mean_of_many_equal_pixels_keeps_its_digits():
    x = np.full((1, 300, 301, 2), 0.1, np.float32)
    np.testing.assert_allclose(to_host(ops.global_avg_pool2d(to_device(x))), 0.1, rtol=1e-6)


def test_any_order_of_threads():
    x = to_device(images((1, 60, 61, 3)).astype(np.float32))
    results = []
    for seed in (0, 1, 2):
        with emulating(detector=False, seed=seed):
            results.append(to_host(ops.global_avg_pool2d(x)))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_more_work_than_threads(monkeypatch):
    monkeypatch.setattr(bp.cuda.kernel, "_MAX_BLOCKS", 1)
    monkeypatch.setattr(pool, "_MAX_TASKS", 2)
    x = images((3, 9, 9, 8))
    through_both(x, WINDOWS[2], "float32")
    average_through_both(x, WINDOWS[2], True, "float32")
    with emulating(detector=True, seed=0):
        compare(ops.global_avg_pool2d, images((5, 3, 3, 200)), length=9)
    compare(ops.global_avg_pool2d_backward, images((3, 8)), x.shape)


def test_more_than_2_31_elements():
    """The two columns of a window lie 2^32 elements apart."""
    apart = 1 << 31
    x = sparse((1, 1, apart + 2, 2), "float16")
    x.reshape(-1, 2)[0:2] = np.array([[1, -2], [3, 4]], np.float16)
    x.reshape(-1, 2)[apart:] = np.array([[2, -3], [5, 3]], np.float16)
    window = ((1, 2), (1, 1), (0, 0), (1, apart))
    y, index = ops.max_pool2d(x, *window)
    np.testing.assert_array_equal(to_host(y).reshape(2, 2), [[2, -2], [5, 4]])
    np.testing.assert_array_equal(to_host(index).reshape(2, 2), [[1, 0], [1, 0]])
