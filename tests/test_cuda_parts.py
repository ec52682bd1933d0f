"""Parts of a product whose depth was cut: added in their order, into rows with gaps, the sums of columns too."""

import numpy as np
import pytest
from emulated import DTYPES, to_device, to_host
from products import integers, launches
from table import emulating

from bp.cuda import epilogue
from bp.cuda.choice import cut
from bp.cuda.epilogue import Destination, Epilogue


def added(parts, rows, columns, gap=0, batch=1, dtype="float32", biases=0, shift=0, beta=0.0):
    """(C, the sums) of `parts` (count, batch * rows * columns + biases), and the names of the kernels; C begins `shift`
    elements behind a multiple of 16 bytes, its rows have `gap` elements of 7 between them."""
    like, stride = to_device(np.zeros(1, np.float32), dtype), columns + gap
    elements = batch * rows * stride
    c = to_device(np.full(shift + elements, 7.0, np.float32), "float32")[shift:]
    sums = to_device(np.ones(biases, np.float32)) if biases else None
    to = Destination(None, c, rows, columns, stride, batch, rows * stride, sums)
    given = to_device(parts)
    names, _ = launches(lambda: epilogue.add(like, given, len(parts), to, Epilogue(beta=beta)))
    return to_host(c).reshape(batch, rows, stride), None if sums is None else to_host(sums), names


def in_order(parts):
    """The sum as a loop over the parts has it, in float32."""
    total = np.zeros(parts.shape[1], np.float32)
    for part in parts:
        total += part
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize(
    ("rows", "columns", "gap", "batch", "biases", "shift"),
    [
        (1, 1, 0, 1, 0, 0),
        (3, 8, 0, 1, 0, 0),
        (5, 16, 8, 3, 0, 0),
        (5, 16, 3, 1, 0, 0),  # rows that begin anywhere
        (5, 16, 0, 1, 0, 1),  # and C itself
        (4, 24, 0, 1, 4, 0),
        (7, 5, 0, 1, 7, 0),
        (4, 8, 0, 1, 5, 0),  # parts that begin anywhere
    ],
)
def test_few_parts_are_added_in_their_order(rows, columns, gap, batch, biases, shift, count, dtype):
    elements = batch * rows * columns
    parts = np.random.default_rng(0).standard_normal((count, elements + biases)).astype(np.float32)
    with emulating(detector=True, seed=1):
        c, sums, names = added(parts, rows, columns, gap, batch, dtype, biases, shift, beta=2.0)
    assert names == ["add_parts"]
    expected = in_order(parts)
    np.testing.assert_array_equal(
        c[:, :, :columns], expected[:elements].reshape(batch, rows, columns) + np.float32(14.0)
    )
    assert (c[:, :, columns:] == 7.0).all()
    if biases:
        np.testing.assert_array_equal(sums, expected[elements:] + np.float32(2.0))


@pytest.mark.parametrize(("count", "elements", "kernel"), [(9, 60, "add_many_parts"), (33, 100, "add_many_parts")])
def test_many_parts(count, elements, kernel):
    parts = integers(count, elements + 3)
    with emulating(detector=True, seed=2):
        c, sums, names = added(parts, elements // 10, 10, biases=3)
    assert names == [kernel]
    np.testing.assert_array_equal(c.reshape(elements), parts[:, :elements].sum(0))
    np.testing.assert_array_equal(sums, parts[:, elements:].sum(0))


@pytest.mark.parametrize(("count", "kernel"), [(9, "add_parts"), (32, "add_parts"), (33, "add_many_parts")])
def test_many_elements(count, kernel):
    rows, columns = 2**10, 2**7
    parts = integers(count, rows * columns)
    c, _, names = added(parts, rows, columns)
    assert names == [kernel]
    np.testing.assert_array_equal(c[0], parts.sum(0).reshape(rows, columns))


def test_no_depth_has_more_parts_than_a_grid_has_blocks():
    for depth in (2**31, 10**12):
        parts, part = cut(1, depth, longest=8192)
        assert parts <= 65535 and parts * part >= depth and (parts - 1) * part < depth
    assert cut(10**6, 2**20, longest=8192) == (128, 8192)
