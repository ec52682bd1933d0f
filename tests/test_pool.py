"""Pooling: the table of its cases, ties and NaN, native kernels, and its errors."""

import hashlib

import numpy as np
import pytest
from any_threads import expect_same_on_any_threads
from table import LAYER_CHECKS, Case, assert_close

import bp
import bp.ops.pool as ops
from bp.checking import tolerance
from bp.cpu import native


def windows(layer, x, padding_value):
    """(N, H', W', C, kernel height, kernel width): every window of the padded image."""
    (kh, kw), (sh, sw), (ph, pw), *rest = layer.window
    dh, dw = rest[0] if rest else (1, 1)
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=padding_value)
    span = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    return np.lib.stride_tricks.sliding_window_view(padded, span, axis=(1, 2))[:, ::sh, ::sw, :, ::dh, ::dw]


def max_reference(layer, x):
    return windows(layer, x, -np.inf).max(axis=(-1, -2))


def avg_reference(layer, x):
    inside = windows(layer, np.ones_like(x), 1 if layer.count_include_pad else 0)
    return windows(layer, x, 0).sum(axis=(-1, -2)) / inside.sum(axis=(-1, -2))


def max_torch(p, torch, x):
    return torch.nn.functional.max_pool2d(x.movedim(-1, 1), *p.layer.window).movedim(1, -1)


def avg_torch(p, torch, x):
    y = torch.nn.functional.avg_pool2d(x.movedim(-1, 1), *p.layer.window, count_include_pad=p.layer.count_include_pad)
    return y.movedim(1, -1)


def maximum(shape, *arguments, name=""):
    return Case(lambda: bp.MaxPool2d(*arguments), shape, max_reference, max_torch, name=name)


def average(shape, *arguments, name="", torch=avg_torch, **settings):
    layer = bp.AvgPool2d(*arguments, **settings)
    length = layer.kernel_size[0] * layer.kernel_size[1]
    return Case(lambda: bp.AvgPool2d(*arguments, **settings), shape, avg_reference, torch, length=length, name=name)


def mean_of_pixels(shape, name=""):
    return Case(
        lambda: bp.GlobalAvgPool2d(),
        shape,
        lambda layer, x: x.mean(axis=(1, 2)),
        lambda p, torch, x: x.mean(dim=(1, 2)),
        length=shape[1] * shape[2],
        name=name,
    )


CASES = [
    maximum((2, 6, 8, 3), 2),
    maximum((2, 7, 5, 17), 2, name="remainder"),
    maximum((2, 7, 9, 20), 3, 2, 1, name="overlapping"),
    maximum((1, 5, 6, 2), (2, 3), (1, 2), (1, 0), name="not-square"),
    maximum((2, 9, 8, 5), 3, 1, 1, 2, name="dilated"),
    maximum((2, 3, 3, 4), 2, 3, name="gaps"),
    maximum((3, 1, 1, 1), 1, name="one"),
    maximum((0, 4, 4, 3), 2, name="empty"),
    maximum((1, 18, 19, 3), 17, 1, 8, name="more-than-256-taps"),
    average((2, 6, 8, 3), 2),
    average((2, 7, 5, 17), 2, name="remainder"),
    average((2, 7, 9, 20), 3, 2, 1, name="overlapping"),
    average((2, 7, 9, 20), 3, 2, 1, count_include_pad=False, name="without-padding"),
    average((1, 5, 6, 2), (2, 3), (1, 2), (1, 0), count_include_pad=False, name="not-square"),
    average((3, 1, 1, 1), 1, name="one"),
    average((0, 4, 4, 3), 2, name="empty"),
    mean_of_pixels((2, 3, 5, 4)),
    mean_of_pixels((1, 1, 1, 1), name="one"),
    mean_of_pixels((0, 3, 5, 4), name="empty"),
    mean_of_pixels((2, 9, 7, 17), name="odd"),
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


def run(layer, x, dy=None):
    """(y, dx, dy) of one training pass; dy is random where it is not given."""
    layer = layer()
    layer.build(x.shape[1:], dtype=x.dtype)
    ctx = bp.Context(training=True)
    y = layer.forward(x, ctx)
    if dy is None:
        dy = np.random.default_rng(2).standard_normal(y.shape).astype(x.dtype)
    return y, layer.backward(dy, ctx), dy


@pytest.fixture(params=["native", "numpy"])
def either(request, monkeypatch):
    """float32 runs on the native kernels, then on NumPy."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    elif native.kernels is None:
        pytest.skip("the native extension is not built")


def special_image(kind):
    x = np.random.default_rng(0).standard_normal((2, 7, 8, 19)).astype("float32")
    if kind == "ties":
        x = np.round(x)
    elif kind == "constant":
        x[...] = 1
    elif kind == "minus-infinity":
        x[...] = -np.inf
    else:
        x[np.random.default_rng(1).random(x.shape) < 0.1] = np.nan
    return x


@pytest.mark.parametrize("kind", ["ties", "constant", "minus-infinity", "nan"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1)], ids=str)
def test_ties_and_nan_go_where_torch_sends_them(kind, window, either):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'bp[torch]'")
    x = special_image(kind)
    y, dx, dy = run(lambda: bp.MaxPool2d(*window), x)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.max_pool2d(tx.movedim(-1, 1), *window).movedim(1, -1)
    ty.backward(torch.tensor(dy))
    np.testing.assert_array_equal(y, ty.detach().numpy())
    assert_close(dx, tx.grad.numpy(), tolerance("float32", 9))


def test_first_of_equal_ones_wins(either):
    x = np.ones((1, 4, 4, 1), "float32")
    _, dx, _ = run(lambda: bp.MaxPool2d(2), x, np.ones((1, 2, 2, 1), "float32"))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_overlapping_windows_add(either):
    x = np.zeros((1, 3, 3, 1), "float32")
    x[0, 1, 1, 0] = 5
    ones = np.ones((1, 2, 2, 1), "float32")
    _, dx, _ = run(lambda: bp.MaxPool2d(2, 1), x, ones)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 0, 0], [0, 4, 0], [0, 0, 0]])
    _, dx, _ = run(lambda: bp.AvgPool2d(2, 1), x, ones)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]])


def test_window_on_nothing_but_padding(either):
    """A dilated window can miss a small image altogether: its maximum is -inf and has no gradient."""
    y, dx, _ = run(lambda: bp.MaxPool2d(2, 1, 1, 2), np.ones((1, 1, 1, 3), "float32"))
    np.testing.assert_array_equal(y, np.full((1, 1, 1, 3), -np.inf))
    np.testing.assert_array_equal(dx, np.zeros((1, 1, 1, 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_average_spreads_nan_and_infinity_no_further_than_the_window(value, either):
    x = np.ones((1, 4, 4, 2), "float32")
    x[0, 0, 0, 1] = value
    y, _, _ = run(lambda: bp.AvgPool2d(2), x)
    expected = np.ones((1, 2, 2, 2))
    expected[0, 0, 0, 1] = value
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(bp.GlobalAvgPool2d()(x), [[1, value]])


# The allowance is that of a small window, at a size at which a sum in float32 alone is off by far more.
@pytest.mark.parametrize("size", [11, 12, 16, 224])
def test_average_of_a_large_window(size, either):
    x = np.full((2, size, size, 3), 0.1, "float32")
    for layer in (bp.AvgPool2d(size), bp.AvgPool2d(size, 1, 1), bp.GlobalAvgPool2d()):
        count = size * size
        y = layer(x)
        middle = y if y.ndim == 2 else y[:, y.shape[1] // 2, y.shape[2] // 2]
        np.testing.assert_allclose(middle, x[:, 0, 0], rtol=tolerance("float32", min(count, 128)))


@pytest.mark.parametrize("channels", [0, 1, 3, 4, 16, 23, 48, 64, 87])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: bp.MaxPool2d(2),
        lambda: bp.MaxPool2d((3, 2), 2, 1),
        lambda: bp.MaxPool2d(2, 1, 1, 2),
        lambda: bp.AvgPool2d(3, 2, 1),
        lambda: bp.AvgPool2d(3, 2, 1, count_include_pad=False),
        lambda: bp.AvgPool2d((11, 13), 1, (0, 2)),
        lambda: bp.GlobalAvgPool2d(),
    ],
)
def test_native_equals_numpy(layer, channels, monkeypatch):
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    x = np.random.default_rng(channels).standard_normal((3, 11, 14, channels)).astype("float32")
    by_kernel = run(layer, x)
    monkeypatch.setattr(native, "kernels", None)
    for actual, expected in zip(by_kernel, run(layer, x), strict=True):
        assert_close(actual, expected, tolerance("float32", 9))


def test_arrays_that_are_not_contiguous(either):
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 6)).astype("float32")
    swapped = np.ascontiguousarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    for layer in (lambda: bp.MaxPool2d(2), lambda: bp.AvgPool2d(2), lambda: bp.GlobalAvgPool2d()):
        y, dx, dy = run(layer, x)
        turned = np.ascontiguousarray(dy.T).T
        y_swapped, dx_swapped, _ = run(layer, swapped, turned)
        assert y_swapped.flags.c_contiguous and dx_swapped.flags.c_contiguous
        assert_close(y_swapped, y, tolerance("float32", 16))
        np.testing.assert_array_equal(dx_swapped, dx)


def digest():
    """A hash of all bits that the float32 operations give for inputs large enough to be split among threads."""
    result = hashlib.sha256()
    x = np.random.default_rng(0).standard_normal((17, 23, 21, 18)).astype("float32")
    for layer in (lambda: bp.MaxPool2d(3, 1, 1), lambda: bp.AvgPool2d(3, 1, 1), lambda: bp.GlobalAvgPool2d()):
        for array in run(layer, x):
            result.update(array.tobytes())
    return result.hexdigest()


def test_result_does_not_depend_on_the_number_of_threads():
    expect_same_on_any_threads("import test_pool; print(test_pool.digest())")


@pytest.mark.parametrize(
    ("make", "sample", "message"),
    [
        (lambda: bp.MaxPool2d(2), (3,), r"MaxPool2d: expected image samples \(H, W, C\), got shape \(3,\)"),
        (lambda: bp.MaxPool2d(3), (2, 5, 1), r"MaxPool2d: .*images of at least 3 along axis 0 .*got shape \(2, 5, 1\)"),
        (lambda: bp.MaxPool2d(2, dilation=4), (5, 4, 1), r"at least 5 along axis 1"),
        (lambda: bp.MaxPool2d(2, padding=2), (5, 5, 1), r"padding from 0 to half a window, 1, along axis 0 .*got 2"),
        (lambda: bp.MaxPool2d(2, padding=(0, -1)), (5, 5, 1), r"along axis 1 of the image, got -1"),
        (lambda: bp.MaxPool2d(0), (5, 5, 1), r"kernel, stride and dilation of at least 1, got \(0, 0\)"),
        (lambda: bp.MaxPool2d(2, 0), (5, 5, 1), r"at least 1, got \(2, 2\), \(0, 0\) and \(1, 1\)"),
        (lambda: bp.MaxPool2d(2, dilation=0), (5, 5, 1), r"at least 1"),
        (lambda: bp.MaxPool2d((2, 2, 2)), (5, 5, 1), r"kernel_size as an integer or a pair of them, got \(2, 2, 2\)"),
        (lambda: bp.AvgPool2d(2.0), (5, 5, 1), r"kernel_size as an integer or a pair of them, got 2.0"),
        (lambda: bp.AvgPool2d(3), (2, 5, 1), r"AvgPool2d: .*images of at least 3"),
        (lambda: bp.AvgPool2d(1, padding=1), (2, 5, 1), r"half a window, 0, along axis 0 of the image, got 1"),
        (lambda: bp.GlobalAvgPool2d(), (4,), r"GlobalAvgPool2d: expected image samples"),
    ],
)
def test_build_errors(make, sample, message):
    with pytest.raises(bp.errors.BPError, match=message):
        make().build(sample)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: bp.MaxPool2d(2), (4, 4, 3), r"max_pool2d expected x of rank 4 \(N, H, W, C\), got shape \(4, 4, 3\)"),
        (lambda: bp.MaxPool2d(2), (1, 1, 4, 3), r"max_pool2d expected images of at least 2 along axis 0"),
        (lambda: bp.MaxPool2d(257), (1, 300, 300, 1), r"at most 65536 elements, got \(257, 257\)"),
        (lambda: bp.AvgPool2d(2), (4, 3), r"avg_pool2d expected x of rank 4"),
        (lambda: bp.GlobalAvgPool2d(), (4, 3), r"global_avg_pool2d expected x of rank 4"),
        (lambda: bp.GlobalAvgPool2d(), (4, 0, 2, 3), r"at least one pixel, got shape \(4, 0, 2, 3\)"),
    ],
)
def test_input_errors(make, shape, message):
    layer = make()
    with pytest.raises(bp.errors.BPError, match=f"{type(layer).__name__}: .*{message}"):
        layer(np.zeros(shape, "float32"))


BAD_BACKWARDS = [
    (
        ops.max_pool2d_backward,
        (1, 2, 3, 1),
        (np.zeros((1, 2, 2, 1), np.uint8), (1, 4, 4, 1), *[(2, 2)] * 2, (0, 0), (1, 1)),
    ),
    (ops.avg_pool2d_backward, (1, 2, 3, 1), ((1, 4, 4, 1), (2, 2), (2, 2), (0, 0), True)),
    (ops.global_avg_pool2d_backward, (2, 1), ((1, 4, 4, 1),)),
]


@pytest.mark.parametrize(("backward", "shape", "rest"), BAD_BACKWARDS)
def test_backward_arguments_that_do_not_fit(backward, shape, rest):
    with pytest.raises(bp.errors.ShapeError, match=rf"{backward.__name__} expected dy of shape .*, got \({shape[0]}, "):
        backward(np.zeros(shape), *rest)
