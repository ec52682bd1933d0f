"""Embedding kernels on the emulator: the search by row, the sort, and the sums of tiles, each next to the CPU."""

import re

import numpy as np
import pytest
from emulated import DTYPES, Offset, Wide, compare, sparse, to_device, to_host
from table import emulating

import bp
import bp.cuda.embedding as embedding
import bp.cuda.kernel
import bp.ops.embedding as ops
from bp.checking import tolerance
from bp.cuda.files import kernel_folder
from bp.ops.array import known_dtype


def zipf(positions, rows, seed=0):
    """Indices with the frequencies of words: row k about 1 / (k + 1) as often as the first."""
    weights = 1 / np.arange(1, rows + 1)
    return np.random.default_rng(seed).choice(rows, positions, p=weights / weights.sum())


def gradients(positions, channels):
    return np.random.default_rng(positions + channels).standard_normal((positions, channels))


def longest(indices):
    return int(np.bincount(indices.ravel()).max()) if indices.size else 1


@pytest.fixture(params=["searched", "sorted"])
def method(request, monkeypatch):
    """Small inputs take either way to the gradient."""
    if request.param == "sorted":
        monkeypatch.setattr(embedding, "_SEARCHED_POSITIONS", 0)


def backward(dy, indices, dweight, padding_idx, accumulate, dtype):
    length = longest(indices) + 1
    compare(
        ops.embedding_backward_parameters,
        dy,
        indices,
        dweight,
        padding_idx,
        accumulate,
        dtype=dtype,
        length=length,
    )


# Forward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 8, 24, 33, 256, 280])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_forward(padding_idx, channels, dtype):
    weight = np.random.default_rng(0).standard_normal((11, channels))
    weight[3], weight[4] = np.nan, np.inf
    indices = np.random.default_rng(1).integers(0, 11, (3, 13))
    y = compare(ops.embedding, indices, weight, padding_idx, dtype=dtype)
    expected = weight.astype(known_dtype(dtype)).astype(float)[indices]
    expected[indices == padding_idx] = 0
    np.testing.assert_array_equal(to_host(y).astype(float), expected)  # nothing is computed, so nothing is rounded
    compare(ops.embedding, indices, Offset(weight), padding_idx, dtype=dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_every_integer(dtype, method):
    """Up to the largest that the dtype holds, where a table has so many rows."""
    rows = min(int(np.iinfo(dtype).max), 70000) + 1
    indices = np.array([0, rows - 1, 5, rows // 2, rows - 1], dtype)
    weight = np.random.default_rng(0).standard_normal((rows, 2))
    compare(ops.embedding, indices, weight, None)
    backward(gradients(5, 2), indices, Wide(np.zeros((rows, 2))), None, False, "float32")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_an_index_outside_the_table_reads_and_writes_nothing(dtype, method):
    """On a GPU nobody waits for a check: the row is NaN, its gradient is dropped."""
    indices = np.array([0, 3, 1, 100], dtype)
    wrong = {1: 3, 3: 100}
    if np.iinfo(dtype).min < 0:
        indices[0], wrong[0] = -1, -1
    if dtype == "uint64":
        indices[3] = np.iinfo(dtype).max
    weight = np.arange(6.0).reshape(3, 2)
    on_device = to_device(indices)
    for name in DTYPES:
        y = to_host(ops.embedding(on_device, to_device(weight, name), 2)).astype(float)
        for position in range(4):
            expected = [np.nan, np.nan] if position in wrong else weight[int(indices[position])]
            np.testing.assert_array_equal(y[position], expected)
    dweight = to_device(np.full((3, 2), np.nan), "float32")
    ops.embedding_backward_parameters(to_device(np.ones((4, 2)), "float32"), on_device, dweight, None, False)
    np.testing.assert_array_equal(to_host(dweight)[:, 0], [0 not in wrong, 1, 0])


@pytest.mark.parametrize("padding_idx", [-1, 3])
def test_a_padding_outside_the_table_is_none(padding_idx, method):
    indices = to_device(np.array([-1, 3, 0]))
    y = to_host(ops.embedding(indices, to_device(np.ones((3, 4)), "float32"), padding_idx))
    np.testing.assert_array_equal(y[:, 0], [np.nan, np.nan, 1])
    dweight = to_device(np.zeros((3, 4)), "float32")
    ops.embedding_backward_parameters(to_device(np.ones((3, 4)), "float32"), indices, dweight, padding_idx, True)
    np.testing.assert_array_equal(to_host(dweight)[:, 0], [1, 0, 0])


# Backward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 8, 40])
@pytest.mark.parametrize(("padding_idx", "accumulate"), [(None, False), (3, False), (None, True), (0, True)])
def test_gradient(padding_idx, accumulate, channels, dtype, method):
    indices = zipf(150, 21)
    dweight = np.random.default_rng(5).standard_normal((21, channels))
    backward(gradients(150, channels), indices, Wide(dweight), padding_idx, accumulate, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [1, 2, 15, 16, 17, 31, 256, 257])
def test_numbers_of_positions_around_tiles(positions, dtype, method):
    for indices in (zipf(positions, 300), np.full(positions, 7), np.arange(positions)[::-1]):
        backward(gradients(positions, 8), indices, Wide(np.full((300, 8), np.nan)), None, False, dtype)


@pytest.mark.parametrize("rows", [1, 2, 32, 33, 255, 256, 70000])
def test_tables_of_any_number_of_rows(rows, method):
    """Each 8 bits of the largest key are one pass of the sort."""
    indices = np.random.default_rng(0).integers(0, rows, 100)
    indices[:3] = 0, rows - 1, rows // 2
    backward(gradients(100, 1), indices, Wide(np.full((rows, 1), np.nan)), None, False, "float32")


def test_positions_of_one_row_are_summed_in_their_order(method):
    """A sum that depends on its order: 2^24 + 1 is 2^24 in float."""
    dy = np.zeros((40, 4), np.float32)
    dy[:, 0] = 1
    dy[3, 0] = 2.0**24
    indices = np.tile([5, 2], 20)
    results = []
    for seed in (0, 1, 2):
        dweight = to_device(np.zeros((9, 4)), "float32")
        with emulating(detector=seed == 0, seed=seed):
            ops.embedding_backward_parameters(to_device(dy), to_device(indices), dweight, None, False)
        results.append(to_host(dweight))
        np.testing.assert_array_equal(results[0], results[-1])
    assert results[0][5, 0] == 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_begin_anywhere(dtype, method):
    indices = zipf(60, 12)
    dweight = np.random.default_rng(5).standard_normal((12, 8))
    shifted = to_device(np.concatenate([np.zeros(1), dweight.ravel()]), "float32")[1:].reshape(12, 8)
    expected = dweight.astype(np.float32).astype(float)
    dy = gradients(60, 8).astype(known_dtype(dtype))
    np.add.at(expected, indices, dy.astype(float))
    ops.embedding_backward_parameters(to_device(dy), to_device(indices), shifted, None, True)
    np.testing.assert_allclose(to_host(shifted), expected, atol=tolerance("float32", 60) * 8)
    backward(Offset(gradients(60, 8)), indices, Wide(dweight), None, False, dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(value, method):
    indices = zipf(100, 9)
    dy = gradients(100, 4)
    dy[np.flatnonzero(indices == 1)[0], 2] = value
    backward(dy, indices, Wide(np.full((9, 4), np.nan)), None, False, "float32")


def test_extreme_gradients(method):
    dy = np.array([[3e38], [3e38], [np.inf], [-np.inf], [6e4], [6e4]])
    indices = np.array([0, 0, 1, 1, 2, 2])
    with np.errstate(over="ignore"):
        for dtype in DTYPES:
            dweight = to_device(np.zeros((4, 1)), "float32")
            ops.embedding_backward_parameters(to_device(dy, dtype), to_device(indices), dweight, None, False)
            rounded = float(np.array(6e4).astype(known_dtype(dtype)))
            np.testing.assert_array_equal(to_host(dweight)[:, 0], [np.inf, np.nan, 2 * rounded, 0])


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("positions", "rows", "channels"), [(0, 5, 3), (7, 5, 0), (0, 5, 0)])
def test_nothing_to_add(positions, rows, channels, accumulate, method):
    indices = np.zeros(positions, np.int64)
    backward(gradients(positions, channels), indices, Wide(np.ones((rows, channels))), None, accumulate, "float32")
    compare(ops.embedding, indices, np.ones((rows, channels)), None)


@pytest.mark.parametrize("accumulate", [False, True])
def test_nothing_but_padding(accumulate, method):
    dweight = Wide(np.ones((5, 3)))
    backward(gradients(40, 3), np.full(40, 2), dweight, 2, accumulate, "float32")


@pytest.mark.parametrize("padded", [1, 15, 16, 17, 40])
def test_a_tile_of_nothing_but_padding(padded, method):
    indices = np.concatenate([np.full(16, 4), np.full(padded, 1)])
    backward(gradients(16 + padded, 4), indices, Wide(np.full((5, 4), np.nan)), 1, False, "float32")


def test_no_gradient_wanted():
    backward(gradients(4, 2), np.zeros(4, np.int64), None, None, False, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_input_gradient(dtype):
    for shape in [(3, 4, 2), (0, 5), (1, 1)]:
        dx = compare(ops.embedding_backward_input, np.ones(shape), dtype=dtype)
        assert dx.dtype.name == dtype


# Large inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [50, 3000])
def test_many_positions(rows, dtype):
    """Several blocks of the sort, rows that run through many tiles, and the detector on."""
    indices = zipf(4500, rows)
    with emulating(detector=True, seed=1):
        backward(gradients(4500, 8), indices, Wide(np.full((rows, 8), np.nan)), 3, False, dtype)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_that_runs_through_more_tiles_than_a_warp_adds_up(rows, accumulate):
    positions = 16 * 40 * rows + 5
    indices = np.arange(positions) * rows // positions
    with emulating(detector=True, seed=1):
        for channels in (3, 4 * 32 + 4):
            gradient_by_sorting(indices, rows, channels, accumulate)


def gradient_by_sorting(indices, rows, channels, accumulate):
    dy, on_device = gradients(indices.size, channels), to_device(indices)
    expected = np.full((rows, channels), 3.0 if accumulate else 0.0)
    np.add.at(expected, indices, dy.astype(np.float32).astype(float))
    dweight = to_device(np.full((rows, channels), 3.0 if accumulate else np.nan), "float32")
    embedding._gradient_by_sorting(to_device(dy, "float32"), on_device, dweight, None, accumulate)
    error = np.linalg.norm(to_host(dweight) - expected) / np.linalg.norm(expected)
    assert error <= tolerance("float32", indices.size)


def test_any_order_of_threads():
    indices, dy = to_device(zipf(4500, 300)), to_device(gradients(4500, 8), "float32")
    results = []
    for seed in (0, 1, 2):
        dweight = to_device(np.full((300, 8), np.nan), "float32")
        with emulating(detector=False, seed=seed):
            ops.embedding_backward_parameters(dy, indices, dweight, None, False)
        results.append(to_host(dweight))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_more_work_than_threads(monkeypatch):
    monkeypatch.setattr(bp.cuda.kernel, "_MAX_BLOCKS", 1)
    indices = zipf(1500, 40)
    compare(ops.embedding, indices, np.random.default_rng(0).standard_normal((40, 5)), None)
    gradient_by_sorting(indices, 40, 5, False)


def test_the_sort_is_stable(monkeypatch):
    """With two blocks at most, each of which takes its tile in several steps."""
    monkeypatch.setattr(embedding, "_MAX_TILES", 2)
    indices = np.random.default_rng(0).integers(-2, 400, 9000).astype(np.int32)
    keys, order = embedding._sorted(to_device(indices), 390, 17)
    expected = np.where((indices < 0) | (indices >= 390) | (indices == 17), 390, indices)
    np.testing.assert_array_equal(to_host(order), np.argsort(expected, kind="stable"))
    np.testing.assert_array_equal(to_host(keys), np.sort(expected))


def test_gradients_of_many_positions_come_in_parts(monkeypatch):
    """The sort counts in 32 bits: more positions than that are taken one part after the other."""
    monkeypatch.setattr(embedding, "_LARGEST", 1000)
    monkeypatch.setattr(embedding, "_SEARCHED_POSITIONS", 0)
    for accumulate in (False, True):
        backward(gradients(2500, 4), zipf(2500, 30), Wide(np.ones((30, 4))), None, accumulate, "float32")
    with pytest.raises(bp.errors.ShapeError, match="a table of at most 1000 rows on a GPU, got 1001"):
        backward(gradients(5, 1), np.zeros(5, np.int64), Wide(np.zeros((1001, 1))), None, False, "float32")


def test_the_kernels_have_the_same_numbers():
    def constant(file, name):
        text = (kernel_folder() / file).read_text()
        return int(re.search(rf"constexpr int {name} = (\d+);", text)[1])

    assert constant("embedding.cu", "MATCHES") == embedding._MATCHES
    assert constant("embedding.cu", "ROWS_A_BLOCK") == embedding._ROWS_A_BLOCK
    assert constant("embedding_sort.cu", "ROUNDS") * constant("embedding_sort.cu", "THREADS") == embedding._SPAN


@pytest.mark.parametrize(
    ("positions", "rows", "channels", "kernels"),
    [
        (768, 65, 128, ["gradient_by_row"]),  # a small model of characters
        (16, 10000, 4, ["count_digits", "scatter_by_digit"] * 2 + ["gradient_by_tile"]),
        (1100, 65, 4, ["count_digits", "scatter_by_digit", "gradient_by_tile", "combine_tiles"]),
    ],
)
def test_launches(positions, rows, channels, kernels):
    """Counted on the device that plans: nothing has to be computed for that."""
    from bp.cuda.plan import device as plan

    dy, dweight = plan.empty((positions, channels), "float32"), plan.empty((rows, channels), "float32")
    with plan.recording() as ledger:
        ops.embedding_backward_parameters(dy, plan.empty((positions,), "int64"), dweight, None, False)
    assert [launch.variant.kernel.name for launch in ledger.launches] == kernels
    assert all(launch.nbytes > 0 for launch in ledger.launches)


def test_more_than_2_31_elements():
    rows = (1 << 31) + 5
    weight = sparse((rows, 2), "float16")
    weight[rows - 2 :] = np.array([[1, 2], [3, 4]], np.float16)
    indices = to_device(np.array([rows - 1, 0, rows - 2, rows]))
    y = to_host(ops.embedding(indices, weight, None))
    np.testing.assert_array_equal(y, [[3, 4], [0, 0], [1, 2], [np.nan, np.nan]])
    dweight = sparse((rows, 2), "float32")
    ops.embedding_backward_parameters(to_device(y), indices, dweight, None, True)
    np.testing.assert_array_equal(to_host(dweight[rows - 2 :]), [[1, 2], [3, 4]])
