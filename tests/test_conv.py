"""Convolution and its transpose: the table of cases, native against NumPy at every tile edge, NaN, threads, errors."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from table import LAYER_CHECKS, Case, assert_close

import bp
import bp.ops.conv as ops
from bp.checking import tolerance
from bp.cpu import native
from bp.errors import ConfigurationError, DtypeError, ShapeError


def conv_reference(layer, x):
    """Every window of the padded image times the weights, group by group."""
    padded = np.pad(x, ((0, 0), *layer.padding, (0, 0)))
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    span = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(1, 2))[:, ::sh, ::sw, :, ::dh, ::dw]
    pairs = zip(np.split(windows, layer.groups, 3), np.split(layer.weight.value, layer.groups), strict=True)
    y = np.concatenate([np.einsum("nijcuv,ouvc->nijo", w, k) for w, k in pairs], axis=3)
    return y if layer.bias is None else y + layer.bias.value


def transposed_reference(layer, x):
    """A stamp of the kernel for every input pixel, on a canvas from which the padding is cut."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ((top, bottom), (left, right)), (oh, ow) = layer.padding, layer.output_padding
    n, h, w, _ = x.shape
    height, width = (h - 1) * sh + dh * (kh - 1) + 1 + oh, (w - 1) * sw + dw * (kw - 1) + 1 + ow
    canvas = np.zeros((n, height, width, layer.out_channels))
    for p, q in np.ndindex(h, w):
        groups = zip(np.split(x[:, p, q], layer.groups, 1), np.split(layer.weight.value, layer.groups), strict=True)
        stamp = np.concatenate([np.einsum("ni,iuvc->nuvc", pixel, k) for pixel, k in groups], axis=3)
        canvas[:, p * sh : p * sh + dh * (kh - 1) + 1 : dh, q * sw : q * sw + dw * (kw - 1) + 1 : dw] += stamp
    y = canvas[:, top : height - bottom, left : width - right]
    return y if layer.bias is None else y + layer.bias.value


def conv_torch(padding):
    def forward(p, torch, x):
        layer = p.layer
        with warnings.catch_warnings():  # PyTorch says that "same" with an even kernel makes a copy
            warnings.simplefilter("ignore")
            y = torch.nn.functional.conv2d(
                x.movedim(-1, 1),
                p["weight"].movedim(-1, 1),
                p["bias"],
                layer.stride,
                padding,
                layer.dilation,
                layer.groups,
            )
        return y.movedim(1, -1)

    return forward


def transposed_torch(p, torch, x):
    layer = p.layer
    y = torch.nn.functional.conv_transpose2d(
        x.movedim(-1, 1),
        p["weight"].movedim(-1, 1),
        p["bias"],
        layer.stride,
        (layer.padding[0][0], layer.padding[1][0]),
        layer.output_padding,
        layer.groups,
        layer.dilation,
    )
    return y.movedim(1, -1)


def longest_sum(layer, shape):
    """Terms of the longest sum of a forward or a backward, for one sample."""
    kernel = layer.kernel_size[0] * layer.kernel_size[1]
    return max(kernel * max(shape[3], layer.out_channels), 4 * shape[1] * shape[2] * layer.stride[0] * layer.stride[1])


def conv(shape, out_channels, kernel, name, infer=False, padding=0, **settings):
    def make():
        channels = None if infer else shape[3]
        return bp.Conv2d(channels, out_channels, kernel, padding=padding, **settings)

    return Case(make, shape, conv_reference, conv_torch(padding), longest_sum(make(), shape), name=name)


def transposed(shape, out_channels, kernel, name, **settings):
    def make():
        return bp.ConvTranspose2d(shape[3], out_channels, kernel, **settings)

    return Case(make, shape, transposed_reference, transposed_torch, longest_sum(make(), shape), name=name)


CASES = [
    conv((2, 5, 7, 3), 4, 3, "plain"),
    conv((2, 6, 5, 3), 4, 3, "inferred", infer=True, padding=1),
    conv((2, 5, 5, 3), 4, 3, "no-bias", bias=False),
    conv((3, 1, 1, 1), 1, 1, "one"),
    conv((2, 1, 1, 3), 2, 3, "one-pixel", padding=1),
    conv((2, 2, 3, 2), 3, 5, "kernel-larger-than-image", padding=2),
    conv((2, 7, 6, 2), 3, (3, 1), "asymmetric", stride=(2, 1), padding=(1, 0)),
    conv((1, 9, 8, 2), 3, (2, 3), "dilated", dilation=(3, 2), padding=(2, 1)),
    conv((2, 6, 6, 2), 3, 2, "gaps", stride=3),
    conv((2, 8, 7, 3), 5, 1, "pointwise-strided", stride=2),
    conv((2, 5, 6, 3), 4, 3, "same", padding="same"),
    conv((2, 5, 6, 3), 4, (4, 2), "same-even", padding="same"),
    conv((2, 9, 8, 1), 2, 4, "same-even-dilated", padding="same", dilation=(3, 1)),
    conv((2, 5, 6, 2), 3, (2, 3), "valid", padding="valid"),
    conv((2, 5, 6, 4), 6, 3, "groups", groups=2, padding=1),
    conv((2, 6, 5, 5), 5, 3, "depthwise", groups=5, stride=2, padding=1),
    conv((2, 4, 5, 3), 6, (2, 3), "depthwise-times-two", groups=3),
    conv((0, 5, 6, 3), 4, 3, "empty"),
    conv((2, 16, 18, 17), 33, 3, "odd-channels", padding=1),
    transposed((2, 4, 5, 3), 4, 3, "transposed"),
    transposed((2, 4, 5, 3), 4, 3, "transposed-no-bias", bias=False, padding=1),
    transposed((2, 1, 1, 2), 3, 2, "transposed-one-pixel"),
    transposed((2, 4, 3, 3), 2, (4, 3), "transposed-strided", stride=2, padding=1, output_padding=(0, 1)),
    transposed((2, 3, 4, 2), 3, 2, "transposed-gaps", stride=(3, 4), output_padding=(2, 1)),
    transposed((1, 4, 3, 2), 3, (3, 2), "transposed-dilated", stride=(2, 1), dilation=(2, 3), padding=(2, 0)),
    transposed((2, 3, 4, 4), 6, 3, "transposed-groups", groups=2, stride=2, padding=1),
    transposed((0, 3, 4, 2), 3, 3, "transposed-empty"),
]


@pytest.mark.parametrize("check", LAYER_CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case, check):
    check(case)


def test_backward_parameters_leaves_the_input_gradient_out(monkeypatch):
    for make, name in ((bp.Conv2d, "conv2d"), (bp.ConvTranspose2d, "conv_transpose2d")):
        layer = make(2, 3, 3)
        layer.build((5, 5, 2))
        ctx = bp.Context(training=True)
        y = layer.forward(np.ones((1, 5, 5, 2), "float32"), ctx)
        monkeypatch.setattr(ops, f"{name}_backward_input", None)
        layer.backward_parameters(np.ones_like(y), ctx)
        assert np.all(layer.bias.grad == y[..., 0].size)


# Native kernels ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["native", "numpy"])
def either(request, monkeypatch):
    """float32 runs on the native kernels, then on NumPy."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    elif native.kernels is None:
        pytest.skip("the native extension is not built")


def results(shape, out_channels, kernel, stride, padding, dilation, groups, accumulate):
    """y, dx, dweight and dbias of one convolution in float32, and y and dweight of the transposed one."""
    generator = np.random.default_rng(0)

    def normal(*size):
        return generator.standard_normal(size).astype("float32")

    x, weight = normal(*shape), normal(out_channels, *kernel, shape[3] // groups)
    settings = (stride, padding, dilation, groups)
    y = ops.conv2d(x, weight, normal(out_channels), *settings)
    dy, dweight, dbias = normal(*y.shape), normal(*weight.shape), normal(out_channels)
    dx = ops.conv2d_backward_input(dy, weight, shape[1:3], *settings)
    ops.conv2d_backward_parameters(dy, x, dweight, dbias, accumulate, *settings)
    smallest = [ops.transposed_size(y.shape[1 + a], kernel[a], stride[a], padding[a], dilation[a], 0) for a in (0, 1)]
    output_padding = (shape[1] - smallest[0], shape[2] - smallest[1])
    up = ops.conv_transpose2d(dy, weight, normal(shape[3]), output_padding, *settings)
    dweight_up, dbias_up = normal(*weight.shape), normal(shape[3])
    ops.conv_transpose2d_backward_parameters(up, dy, dweight_up, dbias_up, accumulate, *settings)
    return [y, dx, dweight, dbias, up, dweight_up, dbias_up]


ONE, NONE = (1, 1), ((0, 0), (0, 0))
AROUND = ((1, 1), (1, 1))

# Register blocks end at 1, 2, 3, 4 (sums across lanes), at multiples of 4, 8 and 16 channels, and at rows of 7, 8, 14
# and 16 pixels.
SHAPES = [
    *[((2, 5, 9, 6), out, (3, 3), ONE, AROUND, ONE, 1) for out in (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 49)],
    *[((2, 4, 9, channels), 5, (3, 3), ONE, AROUND, ONE, 1) for channels in (1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 65)],
    *[((1, 3, width, 3), out, (3, 3), ONE, AROUND, ONE, 1) for width in range(1, 34, 3) for out in (5, 20)],
    *[((1, height, 6, 17), 3, (2, 3), (2, 1), AROUND, ONE, 1) for height in (1, 2, 3, 7)],
    ((2, 7, 8, 18), 18, (3, 3), ONE, AROUND, ONE, 18),
    ((2, 9, 8, 40), 40, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 40),
    ((2, 6, 7, 32), 32, (1, 1), ONE, NONE, ONE, 32),
    ((2, 6, 7, 6), 51, (3, 3), ONE, AROUND, ONE, 3),
    ((2, 9, 9, 34), 4, (3, 3), (2, 2), AROUND, ONE, 2),
    ((1, 70, 40, 40), 3, (3, 3), ONE, AROUND, ONE, 1),  # more than one block of rows
    ((1, 2, 400, 160), 2, (3, 3), ONE, AROUND, ONE, 1),  # and of columns
    ((40, 6, 6, 4), 4, (3, 3), ONE, AROUND, ONE, 1),  # several images in a block
    ((1, 1, 19, 16), 1, (1, 3), (3, 1), ((2, 3), (0, 0)), (3, 1), 1),  # rows that no window reaches
    ((3, 5, 5, 2), 3, (2, 2), (4, 3), NONE, ONE, 1),  # pixels that no window reaches
    ((2, 3, 3, 2), 3, (2, 2), ONE, ((9, 9), (7, 8)), (5, 4), 1),  # windows of nothing but padding
]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_equals_numpy(shape, accumulate, monkeypatch):
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    by_kernel = results(*shape, accumulate)
    monkeypatch.setattr(native, "kernels", None)
    (n, h, w, channels), out, (kh, kw) = shape[:3]
    pixels = n * (h + 2 * kh) * (w + 2 * kw)
    # The transposed pass sums sums: its input is the output of the first.
    allowed = tolerance("float32", max(kh * kw * max(channels, out), pixels) * kh * kw)
    names = ["y", "dx", "dweight", "dbias", "transposed y", "transposed dweight", "transposed dbias"]
    for name, actual, expected in zip(names, by_kernel, results(*shape, accumulate), strict=True):
        assert_close(actual, expected, allowed, name)


def test_arrays_that_are_not_contiguous(either):
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((2, 6, 5, 3)), generator.standard_normal((4, 3, 3, 3))
    settings = (ONE, AROUND, ONE, 1)
    expected = ops.conv2d(x, weight, None, *settings)
    x, weight = x.astype("float32"), weight.astype("float32")
    swapped = np.ascontiguousarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert_close(ops.conv2d(swapped, weight, None, *settings), expected, tolerance("float32", 27))
    assert_close(ops.conv2d(x[::-1], weight, None, *settings), expected[::-1], tolerance("float32", 27))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("shape", "out", "kernel", "stride", "padding", "dilation", "groups"),
    [
        ((2, 8, 9, 3), 5, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 8, 17, 3), 20, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 6, 8, 20), 3, (3, 3), ONE, AROUND, ONE, 1),
        ((2, 8, 9, 3), 33, (2, 3), (2, 1), ((1, 0), (0, 1)), (1, 2), 1),
        ((2, 8, 9, 6), 6, (3, 3), ONE, AROUND, ONE, 6),
        ((2, 8, 9, 6), 4, (3, 2), (2, 2), NONE, ONE, 2),
    ],
)
def test_what_is_not_finite_reaches_its_windows_and_nothing_else(
    bad, shape, out, kernel, stride, padding, dilation, groups, either
):
    generator = np.random.default_rng(0)
    settings = (stride, padding, dilation, groups)
    weight = np.abs(generator.standard_normal((out, *kernel, shape[3] // groups))).astype("float32")
    ones = np.ones(weight.shape)
    x = np.ones(shape, "float32")
    places = [(0, 0, 0, 0), (0, shape[1] - 1, shape[2] - 1, shape[3] - 1), (1, 3, 4, 1)]
    for place in places:
        x[place] = bad
    reached = ops.conv2d((~np.isfinite(x)).astype("float64"), ones, None, *settings) > 0
    y = ops.conv2d(x, weight, None, *settings)
    np.testing.assert_array_equal(~np.isfinite(y), reached)

    dweight = np.empty_like(weight)
    # A row of dy of zeros would hide what is not finite, or make NaN of it: every dy is one.
    ops.conv2d_backward_parameters(np.ones_like(y), x, dweight, None, False, *settings)
    marked = np.zeros(weight.shape)
    ops.conv2d_backward_parameters(np.ones(y.shape), (~np.isfinite(x)) * 1.0, marked, None, False, *settings)
    np.testing.assert_array_equal(~np.isfinite(dweight), marked > 0)

    dy = np.ones(y.shape, "float32")
    dy[0, 0, 0, 0] = dy[1, -1, -1, -1] = dy[0, 1, 2, 1] = bad
    reached = ops.conv2d_backward_input((~np.isfinite(dy)) * 1.0, ones, shape[1:3], *settings) > 0
    dx = ops.conv2d_backward_input(dy, weight, shape[1:3], *settings)
    np.testing.assert_array_equal(~np.isfinite(dx), reached)


THREADS = """
import hashlib
from test_conv import ONE, AROUND, results
digest = hashlib.sha256()
for shape in (
    ((24, 14, 14, 8), 24, (3, 3), ONE, AROUND, ONE, 1),
    ((7, 21, 19, 3), 70, (3, 3), (2, 1), AROUND, ONE, 1),
    ((3, 40, 40, 32), 32, (3, 3), ONE, AROUND, ONE, 32),
    ((2, 6, 6, 40), 72, (3, 3), ONE, AROUND, ONE, 2),
):
    for array in results(*shape, True):
        digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_results_do_not_depend_on_the_number_of_threads():
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    digests = set()
    for threads in ("1", "2", "5"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", THREADS]
        digests.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1


def test_native_kernels_refuse_sizes_that_do_not_fit():
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    x, weight, y = (np.zeros(s, "float32") for s in ((2, 5, 5, 3), (4, 3, 3, 3), (2, 3, 3, 4)))
    for wrong in ((2, 3, 3, 5), (1, 3, 3, 4), (2, 0, 3, 4)):
        with pytest.raises(ValueError, match="convolution expected"):
            native.kernels.conv2d(x, weight, None, np.zeros(wrong, "float32"), ONE, (0, 0), ONE, 1)
    for stride, padding, groups in (((0, 1), (0, 0), 1), (ONE, (-1, 0), 1), (ONE, (0, 0), 0), (ONE, (0, 0), 3)):
        with pytest.raises(ValueError, match="convolution expected"):
            native.kernels.conv2d(x, weight, None, y, stride, padding, ONE, groups)
    with pytest.raises(ValueError, match="parameters that fit"):
        native.kernels.conv2d(x, weight, np.zeros(3, "float32"), y, ONE, (0, 0), ONE, 1)
    with pytest.raises(ValueError, match="float32"):
        native.kernels.conv2d(x, weight, np.zeros(4), y, ONE, (0, 0), ONE, 1)


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((3, 0, 3), {}, "out_channels to be an integer of at least 1, got 0"),
        ((3, 4, 0), {}, "kernel_size .* got 0"),
        ((3, 4, 2.5), {}, "kernel_size .* got 2.5"),
        ((3, 4, (3, 3, 3)), {}, "kernel_size to be one integer or a pair"),
        ((3, 4, 3), {"stride": 0}, "stride .* got 0"),
        ((3, 4, 3), {"padding": -1}, "padding .* got -1"),
        ((3, 4, 3), {"dilation": (1, 0)}, "dilation .* got 0"),
        ((3, 4, 3), {"groups": 0}, "groups .* got 0"),
        ((3, 4, 3), {"padding": "full"}, '"same" or "valid", got "full"'),
        ((3, 4, 3), {"padding": "same", "stride": 2}, r'stride 1 with padding "same", got \(2, 2\)'),
    ],
)
def test_settings_that_cannot_be(arguments, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        bp.Conv2d(*arguments, **settings)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (lambda: bp.Conv2d(3, 4, 3), (5, 5), r"Conv2d '0': expected samples of shape \(H, W, C\), got \(5, 5\)"),
        (lambda: bp.Conv2d(3, 4, 3), (5, 5, 2), "Conv2d '0': expected 3 channels"),
        (lambda: bp.Conv2d(3, 4, 3), (2, 5, 3), "Conv2d '0': .* at least as large as the kernel"),
        (lambda: bp.Conv2d(3, 4, 3), (0, 5, 3), "Conv2d '0': .* at least as large as the kernel"),
        (lambda: bp.Conv2d(3, 4, 3, groups=2), (5, 5, 3), "groups that divide 3 input and 4 output channels, got 2"),
        (lambda: bp.Conv2d(4, 3, 3, groups=2), (5, 5, 4), "groups that divide 4 input and 3 output channels, got 2"),
        (lambda: bp.ConvTranspose2d(3, 4, 3), (5, 5, 2), "ConvTranspose2d '0': expected 3 channels"),
        (lambda: bp.ConvTranspose2d(3, 4, 1, padding=1), (2, 5, 3), "at least one pixel"),
        (lambda: bp.ConvTranspose2d(3, 4, 3, 2, output_padding=2), (5, 5, 3), "output_padding less than the stride"),
    ],
)
def test_sizes_that_do_not_fit_name_the_layer(layer, shape, message):
    model = bp.Sequential(layer())
    with pytest.raises(ShapeError, match=message):
        model.build(shape)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((5, 5, 3), "float32"), ShapeError, r"Conv2d '0': conv2d expected x of rank 4 \(N, H, W, C\)"),
        (np.zeros((2, 5, 5, 4), "float32"), ShapeError, r"Conv2d '0': conv2d expected weight of shape \(4, 3, 3, 4\)"),
        (np.zeros((2, 2, 5, 3), "float32"), ShapeError, r"got size \(2, 5\) with padding"),
        (np.zeros((2, 5, 5, 3)), DtypeError, "Conv2d '0': conv2d expected x of dtype float32 like weight, got float64"),
    ],
)
def test_wrong_input_names_the_layer(x, error, message):
    model = bp.Sequential(bp.Conv2d(3, 4, 3))
    model.build((5, 5, 3))
    with pytest.raises(error, match=message):
        model(x)


def test_wrong_gradient_is_refused_before_anything_is_written():
    x, weight = np.zeros((2, 5, 5, 3)), np.zeros((4, 3, 3, 3))
    settings = (ONE, NONE, ONE, 1)
    dweight = np.ones_like(weight)
    with pytest.raises(ShapeError, match=r"expected dy of shape \(2, 3, 3, 4\), got \(2, 3, 2, 4\)"):
        ops.conv2d_backward_input(np.zeros((2, 3, 2, 4)), weight, (5, 5), *settings)
    with pytest.raises(ShapeError, match=r"expected dy of shape \(2, 3, 3, 4\), got \(1, 3, 3, 4\)"):
        ops.conv2d_backward_parameters(np.zeros((1, 3, 3, 4)), x, dweight, None, False, *settings)
    with pytest.raises(ShapeError, match=r"expected dbias of shape \(4,\), got \(3,\)"):
        ops.conv2d_backward_parameters(np.zeros((2, 3, 3, 4)), x, dweight, np.zeros(3), False, *settings)
    with pytest.raises(ShapeError, match=r"expected x of shape \(2, 3, 3, 4\), got \(2, 4, 3, 4\)"):
        ops.conv_transpose2d_backward_parameters(x, np.zeros((2, 4, 3, 4)), dweight, None, False, *settings)
    np.testing.assert_array_equal(dweight, np.ones_like(dweight))
