"""Convolution on the rung of plain multiply-adds, beyond what test_cuda_conv.py asks of it: its tiles, its choice."""

import numpy as np
import pytest
from emulated import to_device, to_host
from products import launches, ternary
from table import assert_close, emulating
from test_cuda_conv import AROUND, NONE, ONE, compare_all, sizes
from test_cuda_conv import SHAPES as WINDOWS

import bp.ops.conv as ops
from bp.checking import tolerance
from bp.cuda import choice, conv_simt, simt_tiles
from bp.cuda.choice import Problem
from bp.cuda.convolution import BYTES_OF
from bp.cuda.files import kernel_folder
from bp.cuda.kernel import Source

ANY = "128x128 of 4"

# Channels in whole vectors: around the edges of a tile of 64 or 128 pixels and channels, and of a slice of 16 steps,
# which ends within a tap, at its end, or has several. x, out channels, kernel, stride, padding, dilation, groups.
VECTORS = [
    ((1, 1, 1, 4), 4, (1, 1), ONE, NONE, ONE, 1),
    ((1, 8, 16, 16), 128, (1, 1), ONE, NONE, ONE, 1),  # one tile of 128 x 128, one slice
    ((1, 3, 43, 4), 132, (3, 3), ONE, AROUND, ONE, 1),  # four taps a slice
    ((1, 4, 16, 20), 68, (3, 3), ONE, AROUND, ONE, 1),  # a tap and a quarter
    ((2, 7, 9, 40), 60, (2, 3), (2, 1), ((1, 0), (0, 2)), ONE, 1),
    ((1, 9, 8, 4), 8, (2, 3), ONE, ((2, 2), (1, 1)), (3, 2), 1),
    ((2, 6, 7, 4), 4, (2, 2), (3, 4), NONE, ONE, 1),  # pixels that no window reaches
    ((1, 9, 7, 8), 4, (3, 2), (2, 3), ((2, 1), (1, 3)), (2, 3), 1),  # stride and dilation share a factor
    ((1, 10, 9, 4), 8, (3, 3), (4, 6), ((4, 4), (5, 5)), (6, 4), 1),  # and some have none of the taps
    ((2, 3, 3, 8), 4, (2, 2), ONE, ((9, 9), (7, 8)), (5, 4), 1),  # windows of nothing but padding
    ((3, 1, 1, 8), 8, (1, 1), (2, 3), NONE, ONE, 1),  # classes without a pixel; a row of the depth for each image
    ((2, 5, 6, 24), 48, (3, 3), (2, 2), AROUND, ONE, 3),
    ((1, 5, 6, 32), 32, (3, 3), ONE, AROUND, ONE, 8),
]


@pytest.mark.parametrize("tile", ["128x128", "128x64", "64x128"])
@pytest.mark.parametrize("case", VECTORS, ids=str)
def test_whole_vectors_are_exact(case, tile, force):
    force("conv", f"simt:{tile}")
    with emulating(detector=tile == "128x128", seed=len(tile)):
        compare_all(case, "float32", accumulate=tile == "128x64")


@pytest.mark.parametrize("case", [VECTORS[3], VECTORS[4], VECTORS[7], VECTORS[11], WINDOWS[4], WINDOWS[11]], ids=str)
def test_without_asynchronous_copies(case, force, monkeypatch):
    """As on compute capability 7.5, where elements pass through registers."""
    force("conv", "simt")
    variants = {name: tile | {"__CUDA_ARCH__": 750} for name, tile in simt_tiles.TILES.items()}
    source = Source("conv_simt", folder=kernel_folder(), T=("float",), variants=variants)
    kernels = {way: source.kernel(f"simt_{way}", flops="0", bytes="0") for way in BYTES_OF}
    monkeypatch.setattr(conv_simt, "_kernels", kernels)
    with emulating(detector=True, seed=1):
        compare_all(case, "float32", accumulate=False)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize(("channels", "out", "groups"), [(8, 68, 1), (6, 10, 2)])
def test_activations(channels, out, groups, activation, force):
    """Sums of integers are exact, so what follows is the same to the bit as on the rung below."""
    case = ((2, 6, 7, channels), out, (3, 3), (1, 2), AROUND, ONE, groups)
    y_shape, weight_shape, settings = sizes(*case)
    x, weight, bias, dy = (ternary(*s, seed=i) / 4 for i, s in enumerate((case[0], weight_shape, (out,), y_shape)))
    results = []
    for rung in ("simt", "tiled"):
        force("conv", rung)
        given = [to_device(a) for a in (x, weight, bias, dy)]
        y, kept = ops.conv2d_activation(*given[:3], activation, True, *settings)
        below = given[0] if activation == "relu" else to_device(x * 2)
        dz = ops.conv2d_backward_input_activation(given[3], given[1], below, activation, x.shape[1:3], *settings)
        results.append([to_host(a) for a in (y, kept, dz)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


# One tile of 128 pixels and a rest, less than half a tile, groups; channels that are no whole vectors.
@pytest.mark.parametrize(
    ("tile", "case"),
    [
        ("128x128", VECTORS[2]),
        ("128x64", VECTORS[3]),
        ("64x128", VECTORS[2]),
        ("64x128", VECTORS[11]),
        (ANY, WINDOWS[4]),
        (ANY, WINDOWS[14]),
    ],
    ids=str,
)
def test_moments_come_with_the_convolution(tile, case, force):
    """Those of y's columns, for a batch normalisation behind it: far from zero, where squares would cancel."""
    force("conv", f"simt:{tile}")
    y_shape, weight_shape, settings = sizes(*case)
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal(case[0]), generator.standard_normal(weight_shape)
    given = [to_device(a.astype("float32")) for a in (x, weight, np.full(y_shape[3], 100.0))]
    results = []
    with emulating(detector=True, seed=1):
        names, _ = launches(lambda: results.extend(ops.conv2d_statistics(*given, *settings)))
    assert names == ["simt_forward", "merge_moments"]
    y, mean, _, variance = (to_host(a).astype(np.float64) for a in results)
    count = y.size // y.shape[3]
    np.testing.assert_array_equal(y, to_host(ops.conv2d(*given, *settings)))
    assert_close(mean, y.mean((0, 1, 2)), tolerance("float32", count))
    assert_close(variance, y.var((0, 1, 2)), tolerance("float32", count))


# The choice -------------------------------------------------------------------------------------------------


def test_where_the_table_takes_it(force):
    """Where its tiles are no emptier than those of 64 x 64 by more than they are faster, and enough."""
    force("conv", "")
    for way, m, n, k, groups, alignment, tile in (
        ("forward", 100_000, 256, 576, 1, 16, "128x128"),
        ("forward", 100_000, 64, 576, 1, 16, "128x64"),
        ("forward", 100_000, 16, 144, 1, 16, "128x64"),  # as empty as one of 64 x 64
        ("forward", 1_000, 128, 1_152, 1, 16, None),
        ("forward", 1_000, 128, 1_152, 32, 16, "128x128"),
        ("forward", 100_000, 130, 27, 1, 4, None),
        ("forward", 100_000, 128, 27, 1, 4, ANY),
        ("backward_parameters", 64, 576, 100_000, 1, 16, "64x128"),
        ("backward_parameters", 256, 2_304, 100_000, 1, 16, "128x128"),
    ):
        chosen = choice.choose(Problem("conv", way, m, n, k, 1, "float32", alignment, groups), 80)
        assert (chosen.variant if chosen.rung == "simt" else None) == tile, (way, m, n, k)
    assert choice.choose(Problem("conv", "forward", 10**5, 256, 576, 1, "tf32", 16), 75).rung != "simt"


def test_what_a_launch_costs(force):
    force("conv", "simt")
    x, weight = to_device(np.zeros((2, 6, 7, 8)), "float32"), to_device(np.zeros((12, 3, 3, 8)), "float32")
    names, found = launches(lambda: ops.conv2d(x, weight, None, ONE, AROUND, ONE, 1))
    assert names == ["simt_forward"]
    assert found[0].flops == 2 * (2 * 6 * 7 * 12) * (3 * 3 * 8)
    assert found[0].nbytes == 4 * (2 * 6 * 7 * 8 + 2 * 6 * 7 * 12 + 12 * 3 * 3 * 8)
