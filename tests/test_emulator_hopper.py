"""The emulator's models of sm_90: every intrinsic to the last bit, and every typical mistake in their use."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from planted import needs_nvdisasm, needs_nvrtc

from bp.cuda import disassembler, nvrtc, tensor_map
from bp.cuda.emulator import engine, unit
from bp.cuda.emulator.device import _tensor_map, device
from bp.cuda.emulator.engine import KernelFault
from bp.cuda.plan import device as plan
from bp.cuda.signature import signatures
from bp.errors import ConfigurationError, DtypeError, ShapeError

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import hopper_cases
from hopper_cases import MAJORS, PRODUCTS, depth_of, kernel

KERNELS = Path(__file__).parent / "kernels"
FAULTS = KERNELS / "hopper_faults.cu"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    for name in ("detector", "seed", "timeout"):
        monkeypatch.setattr(device, name, getattr(device, name))


def integers(rng, shape, dtype=np.float32, most=4):
    return rng.integers(-most, most + 1, shape).astype(dtype)


def launch(name, arguments, threads=128, shared=0, *, detector=True, seed=0, blocks=1):
    """A kernel of FAULTS. arguments: arrays, maps and integers."""
    values = [
        _tensor_map(a)
        if isinstance(a, bytes)
        else ctypes.c_int(a)
        if isinstance(a, int)
        else ctypes.c_void_p(a.pointer)
        for a in arguments
    ]
    function = unit.compile_unit(FAULTS, {}, detector=detector).function(name)
    engine.launch(function, name, values, (blocks, 1, 1), threads, shared, seed=seed)


def lines_of(text):
    return {number + 1 for number, line in enumerate(FAULTS.read_text().split("\n")) if text in line}


def swizzled(rows, swizzle):
    """The bytes of a box as they lie in shared memory from a multiple of 1024 on: chunks of 16 exchanged."""
    flat = np.ascontiguousarray(rows).view(np.uint8).ravel()
    at = np.arange(flat.size)
    result = np.empty_like(flat)
    result[at ^ (((at >> 7) & max(swizzle // 16 - 1, 0)) << 4)] = flat
    return result


# The pipeline of producer and consumers ---------------------------------------------------------------------

TILES, STEPS, COLUMNS = 3, 5, 64
SHARED = 3 * (128 + COLUMNS) * 64 * 2 + 2 * 64 * COLUMNS * 4


def pipeline():
    rng = np.random.default_rng(5)
    a, b = integers(rng, (TILES * 128, STEPS * 64)), integers(rng, (COLUMNS, STEPS * 64))
    on_device = [device.from_host(array.astype(ml_dtypes.bfloat16)) for array in (a, b)]
    y = device.empty((TILES * 128, COLUMNS), np.float32)
    depth = STEPS * 64
    maps = (
        tensor_map.tiled(on_device[0], (depth, TILES * 128), (2 * depth,), (64, 128)),
        tensor_map.tiled(on_device[1], (depth, COLUMNS), (2 * depth,), (64, COLUMNS)),
        tensor_map.tiled(y, (COLUMNS, TILES * 128), (4 * COLUMNS,), (COLUMNS, 64), swizzle=0),
    )
    return on_device, maps, y, a @ b.T


def run_pipeline(name, **options):
    kept, maps, y, expected = pipeline()
    launch(name, (*maps, TILES, STEPS), 384, SHARED, **options)
    del kept
    return y.get(), expected


CORRECT = ("correct", "correct_with_a_group_in_flight")

# What the report says, and the text of the line that it blames where that is the same in every order.
MISTAKES = {
    "swizzle_of_descriptor": ("the descriptor of a has swizzle mode 2", "warpgroup_multiply<"),
    "no_wait_for_loads": ("uninitialised shared memory|missing wait: .* target of the load at", "warpgroup_multiply<"),
    "stage_released_early": ("this load is not ordered after the read by a product of warpgroup [01] at", "load_box("),
    "too_few_bytes": ("more bytes have landed than were announced|was over before the 8192 bytes", "load_box("),
    "too_many_bytes": (r"deadlock: .* in barrier_wait at .* 0 of 1 arrivals and 128 bytes are missing", None),
    "no_proxy_fence": (r"missing fence_async_proxy\(\): this store", "store_box("),
    "proxy_fence_after_barrier": (r"missing fence_async_proxy\(\): this store", "store_box("),
    "no_wait_before_reuse": ("this write is not ordered after the read by a store of warpgroup", "out[row"),
    "parity_of_consumer": ("uninitialised shared memory|missing wait|race|deadlock", None),
    "parity_of_producer": ("deadlock: .* in barrier_wait at", None),
    "count_too_small": ("this load is not ordered after the read by a product|deadlock", None),
    "count_too_large": (r"deadlock: .* in barrier_wait at .* 1 of 3 arrivals and 0 bytes are missing", None),
    "stage_never_released": (r"deadlock: .* 2 of 2 arrivals and 0 bytes are missing", None),
    "no_wait_for_stage": ("missing wait|race|an arrival beyond its count of 1", None),
    "no_fence_of_registers": (r"warpgroup_fence\(\) is missing", "warpgroup_multiply<"),
    "no_wait_for_products": ("missing warpgroup_wait|by a product of warpgroup|did not wait for this product", None),
    "wait_for_all_but_one_group": ("not ordered after the read by a product of warpgroup", "load_box("),
    "no_final_wait": (r"the thread ends, .* wait_stores_read<0>\(\) is missing", "store_box("),
    "each_thread_loads": ("missing wait|was over before|more bytes have landed|race", None),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_pipeline_is_found_in_every_order(name, seed):
    reason, text = MISTAKES[name]
    with pytest.raises(KernelFault, match=reason) as caught:
        run_pipeline(name, seed=seed)
    assert caught.value.kernel == name
    if text is not None:
        assert int(re.search(r"hopper_faults.cu:(\d+)", caught.value.line)[1]) in lines_of(text)


@pytest.mark.parametrize("detector", [True, False])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CORRECT)
def test_the_pipeline_without_a_mistake(name, seed, detector):
    y, expected = run_pipeline(name, seed=seed, detector=detector)
    np.testing.assert_array_equal(y, expected)


def test_every_mistake_is_tested():
    pipelines = {name for name, kernel in signatures(FAULTS).items() if len(kernel.parameters) == 5}
    assert pipelines == {*MISTAKES, *CORRECT}


def test_without_the_detector_what_was_not_waited_for_is_wrong():
    """Loads land as late as they may, and are NaN till then."""
    for name in ("no_wait_for_loads", "parity_of_consumer"):
        try:
            y, expected = run_pipeline(name, detector=False)
        except KernelFault:
            continue
        assert not np.array_equal(y, expected)


# Short kernels ----------------------------------------------------------------------------------------------

# Name: what is said, and whether the detector alone finds it. No reason: it passes.
SHORT = {
    "barrier_without_init": ("was not initialised", False),
    "barrier_without_syncthreads": (r"was not initialised|is not ordered after its initialisation", True),
    "barrier_initialised_twice": ("is initialised again", False),
    "barrier_overwritten": ("was overwritten: it holds 0000000000000001", False),
    "arrival_missing": ("deadlock: 0 of 128 .* for phase 0 of the barrier .* 1 of 4 arrivals and 0 bytes", False),
    "arrival_too_many": ("an arrival beyond its count of 1, in phase 0, which waits for 16 bytes alone", False),
    "handed_over_too_late": ("race on shared memory|uninitialised shared memory", True),
    "handed_over_too_late_fixed": ("", False),
    "rows_copied": ("", False),
    "rows_copied_one_waits": ("", False),
    "rows_copied_last_waits": ("", False),
    "rows_without_init_fence": (r"barrier_init_fence\(\) was not called", False),
    "rows_without_wait": ("missing wait: .* target of the load at", True),
    "rows_with_syncthreads_alone": ("missing wait: .* target of the load at", True),
    "rows_overwritten": ("missing wait: .* target of the load at", True),
    "load_nobody_waits_for": ("the block has ended, and", False),
    "load_to_odd_place": ("lies at no multiple of 128", False),
    "load_of_other_rank": ("3 coordinates, and the map has 2 dimensions", False),
    "store_overwritten": ("this write is not ordered after the read by a store of warpgroup 0", True),
    "fence_after_arrival": (r"missing fence_async_proxy\(\): this store .* thread 0,0,0", True),
    "product_of_stored": ("", False),
    "product_of_one_thread": ("", False),
    "product_without_proxy_fence": (r"missing fence_async_proxy\(\): this product", True),
    "product_without_syncthreads": ("this product is not ordered after the write by thread", True),
    "product_without_wait": ("did not wait for this product", False),
    "product_touched": ("missing warpgroup_wait: this touches|an accumulator was written between", False),
    "product_by_three_warps": ("deadlock: .* in warpgroup_multiply|which has exited", False),
    "factor_overwritten": ("this write is not ordered after the read by a product of warpgroup 0", True),
    "descriptor_of_odd_tile": ("no multiple of 1024", False),
    "product_beyond_shared": ("b reaches out of the block's shared memory", False),
    "too_many_registers": ("deadlock: 0 of 384 .* in take_registers at .* waits for 72 more, .* 0 are left", False),
    "registers_given": ("", False),
    "registers_never_given": ("deadlock: .* 256 threads in take_registers at .* for 72 more, .* 0 are left", False),
    "registers_given_too_late": ("deadlock: 0 of 384 .* in take_registers at .* 128 threads in barrier_wait", False),
    "registers_taken_below": ("take_registers<24>: the threads .* have 168 registers each, which is more", False),
    "registers_given_above": ("give_registers_back<240>: the threads .* 168 registers each, which is fewer", False),
    "product_beside_branches": ("", False),
    "fence_by_odd_lanes": ("divergent warpgroup_fence: other lanes of the warp wait in warpgroup_fence at", False),
    "commit_by_odd_lanes": ("divergent warpgroup_commit: other lanes of the warp wait in warpgroup_commit at", False),
    "wait_by_odd_lanes": ("divergent warpgroup_wait: other lanes of the warp wait in warpgroup_wait at", False),
    "wait_by_the_first_warp": ("divergent warpgroup_wait: another warp .* has been in warpgroup_wait at", False),
    "one_more_fence_by_odd_lanes": ("deadlock: .* in warpgroup_fence|warpgroup_fence waits .* exited", False),
    "one_more_fence_by_the_first_warp": ("not all warps .* have executed this warpgroup_fence, which others", False),
    "most_bytes_expected": ("", False),
    "too_many_bytes_expected": ("in phase 0 1048576 bytes are announced with these 524288; .* to 1048575", False),
    "stored_and_read_back": ("missing wait: these bytes of global memory are the target of the store at", True),
    "stored_and_loaded_back": ("missing wait: these bytes of global memory are the target of the store at", True),
    "stored_waited_for_and_read_back": ("", False),
    "stored_waited_for_and_loaded_back": ("", False),
    "written_and_loaded": ("missing fence.proxy.async for global memory: this load .* thread", True),
    "written_and_loaded_after_fence_of_shared": ("missing fence.proxy.async for global memory: this load", True),
    "written_and_loaded_after_fence": ("", False),
    "handed_to_next_block": ("missing fence.proxy.async for global memory: this load .* another block", True),
    "handed_to_next_block_after_fence": ("", False),
}


def run_short(name, **options):
    parameters = signatures(FAULTS)[name].parameters
    threads = int(signatures(FAULTS)[name].threads)
    x = np.arange(1, 129, dtype=np.float32)
    y = device.zeros((128 * 32,), np.float32)
    array = device.from_host(x)
    first = [array] if len(parameters) > 1 else []
    if parameters[0].type == "TensorMap":
        first = [tensor_map.tiled(array, (16, 8), (64,), (16, 8), swizzle=0), *first][: len(parameters) - 1]
    launch(name, (*first, y), threads, 16384, blocks=2 if "next_block" in name else 1, **options)
    return y.get(), x


@pytest.mark.parametrize("name", SHORT)
def test_short_kernels(name):
    reason, needs_detector = SHORT[name]
    for detector, seed in ((True, 0), (True, 1), (False, 0)):
        if not reason:
            y, x = run_short(name, detector=detector, seed=seed)
            expected = x
            if name.startswith("product"):
                expected = np.zeros(128 * 32)
            elif name.startswith("handed_over"):
                expected = np.tile(x[:32], 4)
            elif name.startswith(("stored", "written", "handed_to")):
                expected = np.full(128, 7)
            np.testing.assert_array_equal(y[: expected.size], expected)
        elif detector or not needs_detector:
            with pytest.raises(KernelFault, match=reason):
                run_short(name, detector=detector, seed=seed)
    engine.check_canaries()


def test_what_an_earlier_launch_has_written_needs_no_fence_and_no_wait():
    """Both ways: ordinary stores that a box is loaded from, and a box stored that is read by ordinary loads."""
    x, y = device.zeros((128,), np.float32), device.zeros((128 * 32,), np.float32)
    map_ = tensor_map.tiled(x, (16, 8), (64,), (16, 8), swizzle=0)
    for value in (3.0, 4.0):
        launch("handed_over_too_late_fixed", (device.from_host(np.full(128, value, np.float32)), x))
        launch("rows_copied", (map_, y), 128, 16384)
        np.testing.assert_array_equal(y.get()[:128], value)
    stored = (map_, y, y)  # reads what it has not stored
    launch("stored_and_read_back", stored, 128, 16384)
    launch("handed_over_too_late_fixed", (x, y))
    np.testing.assert_array_equal(y.get()[:128], 7)


def test_without_the_detector_a_store_that_was_not_waited_for_is_late():
    y, x = run_short("stored_and_read_back", detector=False)
    np.testing.assert_array_equal(y[:128], x)


@pytest.mark.parametrize("seed", range(12))
def test_a_thread_that_waits_lets_the_load_it_waits_for_land(seed):
    """Whether it goes on itself then, as the only one that can, or as the one that is picked from many."""
    x, y = device.from_host(np.arange(1, 129, dtype=np.float32)), device.zeros((128,), np.float32)
    launch("rows_copied", (tensor_map.tiled(x, (16, 8), (64,), (16, 8), swizzle=0), y), 1, 16384, seed=seed)
    assert y.get()[0] == 1
    device.detector, device.seed = False, seed
    rng = np.random.default_rng(seed)
    a, b = integers(rng, (64, 64)), integers(rng, (256, 64))
    np.testing.assert_array_equal(product("bf16", "K MN", a, b, np.zeros((64, 256), np.float32)), a @ b.T)


def test_every_short_kernel_is_tested():
    assert {name for name, kernel in signatures(FAULTS).items() if len(kernel.parameters) < 5} == set(SHORT)


def test_tiles_begin_at_a_multiple_of_1024():
    y = device.empty((4096,), np.float32)
    with pytest.raises(KernelFault, match="at a multiple of 1024 takes a size that is one, got 16640 bytes"):
        launch("product_of_stored", (y,), 128, 16640)


# Products ---------------------------------------------------------------------------------------------------


def product(types, majors, a, b, c, **options):
    return hopper_cases.product(device, types, majors, a, b, c, **options)


@pytest.mark.parametrize("columns", [64, 128, 256])
@pytest.mark.parametrize(("types", "majors"), PRODUCTS)
def test_products_of_integers_are_exact(types, majors, columns):
    rng = np.random.default_rng(columns)
    depth = depth_of(types)
    a, b, c = integers(rng, (64, depth)), integers(rng, (columns, depth)), integers(rng, (64, columns), most=9)
    for device.detector, accumulate in ((False, True), (columns == 64, False)):
        y = product(types, majors, a, b, c, accumulate=accumulate)
        np.testing.assert_array_equal(y, a @ b.T + (c if accumulate else 0))


@pytest.mark.parametrize("majors", MAJORS)
def test_products_with_one_element_each(majors):
    """Where one element of a and one of b are 1, one of d is, for each depth: none is read from elsewhere."""
    rng = np.random.default_rng(1)
    for depth in range(64):
        a, b = np.zeros((64, 64), np.float32), np.zeros((128, 64), np.float32)
        row, column = rng.integers(64), rng.integers(128)
        a[row, depth] = b[column, depth] = 1
        y = product("bf16", majors, a, b, np.zeros((64, 128), np.float32))
        assert y[row, column] == y.sum() == 1


def test_products_of_nan_and_infinity():
    a, b = np.ones((64, 64), np.float32), np.ones((64, 64), np.float32)
    a[3, 5], a[9, 7] = np.nan, np.inf
    b[:, 7] = np.where(np.arange(64) % 2, 0.0, -1.0)
    y = product("bf16", "K K", a, b, np.zeros((64, 64), np.float32))
    assert np.isnan(y[3]).all()
    assert np.isnan(y[9, 1::2]).all()
    assert (y[9, ::2] == -np.inf).all()
    assert np.isfinite(np.delete(y, (3, 9), 0)).all()


def test_tf32_ignores_the_low_bits():
    a = np.full((64, 32), 1 + 2.0**-11, np.float32)
    y = product("tf32", "K K", a, np.ones((64, 32), np.float32), np.zeros((64, 64), np.float32))
    assert (y == 32).all()


def test_sums_are_near_float64():
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (256, 64), (64, 256)))
    a, b = (x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (a, b))
    y = product("bf16", "K K", a, b, c)
    bound = 65 * 2.0**-24 * (np.abs(c) + np.abs(a) @ np.abs(b).T)
    assert (np.abs(y - (a.astype(np.float64) @ b.T + c)) <= bound).all()


# Boxes ------------------------------------------------------------------------------------------------------


def box_of(x, at, box, steps):
    """What a box of x holds, (..., the innermost dimension last), zeros beyond its edges. at, box, steps: innermost
    first."""
    axes = [a + np.arange(0, n, s) for a, n, s in zip(at, box, steps, strict=True)]
    result = np.zeros([axis.size for axis in reversed(axes)], x.dtype)
    inside = [(axis >= 0) & (axis < size) for axis, size in zip(axes, reversed(x.shape), strict=True)]
    to = np.ix_(*(np.flatnonzero(i) for i in reversed(inside)))
    result[to] = x[np.ix_(*(axis[i] for axis, i in zip(reversed(axes), reversed(inside), strict=True)))]
    return result


# shape (outermost first), dtype, box (innermost first), swizzle, steps
BOXES = [
    ((9, 80), np.float16, (64, 8), 128, None),
    ((9, 24), np.float32, (16, 5), 64, None),
    ((20, 48), np.uint8, (32, 16), 32, None),
    ((9, 80), ml_dtypes.bfloat16, (40, 3), 0, None),
    ((3, 5, 32), np.float32, (32, 4, 2), 128, None),
    ((2, 3, 4, 16), np.float16, (8, 3, 2, 2), 0, None),
    ((2, 3, 2, 4, 8), np.float32, (4, 2, 2, 3, 2), 0, None),
    ((16, 7, 32), np.float32, (32, 5, 8), 128, (1, 2, 3)),
    ((1, 8), np.float16, (64, 1), 128, None),
]


def places(x, box):
    """Coordinates within x, across each of its edges, and wholly beyond them."""
    sizes = x.shape[::-1]
    yield tuple(0 for _ in box)
    yield tuple(max(0, size - n) for size, n in zip(sizes, box, strict=True))
    for i, (size, n) in enumerate(zip(sizes, box, strict=True)):
        for place in (-1, 1 - n, -n, size - 1, size, 2**31 - 1 - n, -(2**31)):
            yield tuple(place if j == i else 0 for j in range(len(box)))
    yield tuple(-1 for _ in box)


@pytest.mark.parametrize("case", BOXES, ids=str)
def test_loaded_boxes(case):
    shape, dtype, box, swizzle, steps = case
    rng = np.random.default_rng(7)
    x = rng.integers(1, 100, shape).astype(dtype)
    options = {"swizzle": swizzle, "element_strides": steps}
    for count, at in enumerate(places(x, box)):
        device.detector, device.seed = count % 4 == 0, count % 3
        expected = swizzled(box_of(x, at, box, steps or (1,) * len(box)), swizzle)
        y = hopper_cases.loaded_box(device, x, box, at, expected.size, **options)
        np.testing.assert_array_equal(y, expected, err_msg=str(at))


def test_boxes_in_tf32_are_rounded_to_the_nearest_even():
    """Ties either way, a carry into the exponent, what is subnormal, and what overflows; NaN and infinity stay."""
    device.detector = True
    bits = np.array([0x3F800FFF, 0x3F801000, 0x3F801001, 0x3F803000, 0x3FFFF000, 0x00001000, 0x00003000], np.uint32)
    special = np.array([0x7F7FEFFF, 0x7F7FF000, 0x7F800000, 0x7FC00000, 0x7F800001, 0], np.uint32)
    drawn = np.random.default_rng(9).integers(0, 0x7F800000, 9 * 40 - 26, dtype=np.uint32)
    x = np.concatenate([bits, special, bits | 1 << 31, special | 1 << 31, drawn]).reshape(9, 40)
    # The spacing is 2^-10 of the power of two below, of the subnormal numbers that of the smallest normal one.
    exponents = x >> 23 & 0xFF
    spacing = 2.0 ** (np.maximum(exponents, 1) - 127.0 - 10)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = (np.rint(x.view(np.float32) / spacing) * spacing).astype(np.float32).view(np.uint32)
    rounded[exponents == 0xFF] = x[exponents == 0xFF]
    for at in ((0, 0), (-3, 2), (20, -1)):
        y = hopper_cases.loaded_box(device, x.view(np.float32), (32, 8), at, 1024, tf32=True)
        np.testing.assert_array_equal(y, swizzled(box_of(rounded, at, (32, 8), (1, 1)), 128), err_msg=str(at))
        y = hopper_cases.loaded_box(device, x.view(np.float32), (32, 8), at, 1024)
        np.testing.assert_array_equal(y, swizzled(box_of(x, at, (32, 8), (1, 1)), 128), err_msg=str(at))


def test_a_map_in_tf32_is_for_loads():
    with pytest.raises(KernelFault, match="store_box: the map rounds what is loaded to tf32"):
        x, stored = np.zeros((9, 40), np.float32), np.zeros(1024, np.uint8)
        hopper_cases.stored_box(device, x, (32, 8), (0, 0), stored, tf32=True)


@pytest.mark.parametrize("case", BOXES, ids=str)
def test_stored_boxes(case):
    shape, dtype, box, swizzle, steps = case
    rng = np.random.default_rng(8)
    before = rng.integers(1, 100, shape).astype(dtype)
    steps = steps or (1,) * len(box)
    for count, at in enumerate(places(before, box)):
        device.detector, device.seed = count % 4 == 0, count % 3
        # Each element of the array that the box has gets the number of its place in the box, and no other.
        numbers = np.arange(before.size).reshape(shape) + 1
        taken = box_of(numbers, at, box, steps)
        values = rng.integers(1, 100, taken.shape).astype(dtype)
        expected = before.copy().ravel()
        expected[taken[taken > 0] - 1] = values[taken > 0]
        options = {"swizzle": swizzle, "element_strides": steps}
        after = hopper_cases.stored_box(device, before, box, at, swizzled(values, swizzle), **options)
        np.testing.assert_array_equal(after, expected.reshape(shape), err_msg=str(at))
    engine.check_canaries()


def test_a_view_with_a_pitch():
    """Rows further apart than they are long, and what lies between them is neither read nor written."""
    whole = np.arange(10 * 32, dtype=np.float32).reshape(10, 32)
    array = device.from_host(whole)
    map_ = tensor_map.tiled(array, (20, 10), (128,), (32, 4))
    y = device.zeros((512,), np.uint8)
    kernel("loaded_box")(1, map_, device.from_host(np.array([0, 8], np.int32)), y, 2, 512)
    np.testing.assert_array_equal(y.get(), swizzled(box_of(whole[:, :20], (0, 8), (32, 4), (1, 1)), 128))
    x = device.from_host(np.full(512, 255, np.uint8))
    kernel("stored_box")(1, map_, device.from_host(np.array([0, 8], np.int32)), x, 2, 512)
    expected = whole.copy()
    expected[8:, :20] = np.nan
    np.testing.assert_array_equal(array.get(), expected)


# Pixels -----------------------------------------------------------------------------------------------------


def column_of_pixels(x, lower, upper, channels, pixels, steps, at, tap):
    """By the definition: all pixels that a column can begin with, in order, from `at` on."""
    n, height, width, depth = x.shape
    bases = [
        (w, h, image)
        for image in range(n + 4)
        for h in range(lower[1], height + upper[1], steps[1])
        for w in range(lower[0], width + upper[0], steps[0])
    ]
    first = bases.index(tuple(at[1:]))
    result = np.zeros((pixels, channels), x.dtype)
    for i, (w, h, image) in enumerate(bases[first : first + pixels]):
        w, h = w + tap[0], h + tap[1]
        if 0 <= w < width and 0 <= h < height and image < n:
            have = np.arange(at[0], at[0] + channels)
            inside = (have >= 0) & (have < depth)
            result[i, inside] = x[image, h, w, have[inside]]
    return result


# shape, kernel size, padding, strides, dilation, channels, pixels, swizzle
CONVOLUTIONS = [
    ((2, 5, 6, 64), 3, 1, (1, 1), 1, 64, 40, 128),
    ((2, 7, 5, 16), 3, 1, (2, 2), 1, 16, 24, 32),
    ((1, 8, 8, 40), 3, 2, (1, 2), 2, 32, 32, 64),
    ((3, 4, 4, 8), 1, 0, (1, 1), 1, 8, 16, 0),
    ((2, 6, 7, 8), 5, 0, (2, 1), 1, 8, 7, 0),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_loaded_pixels(case):
    shape, size, padding, steps, dilation, channels, pixels, swizzle = case
    x = np.random.default_rng(9).integers(1, 100, shape).astype(np.float16)
    lower, upper = (-padding,) * 2, (padding - (size - 1) * dilation,) * 2
    options = {"strides": steps, "swizzle": swizzle}
    starts = [(0, lower[0], lower[1], 0), (0, lower[0] + steps[0], lower[1], shape[0] - 1)]
    starts += [(shape[3] - 8, lower[0], lower[1] + steps[1], 0), (8 - channels, lower[0], lower[1], shape[0])]
    for count, at in enumerate(starts):
        for tap in {(0, 0), (dilation * (size - 1), 0), (0, dilation * (size - 1)), (dilation * (size // 2),) * 2}:
            device.detector, device.seed = count == 0, count
            expected = swizzled(column_of_pixels(x, lower, upper, channels, pixels, steps, at, tap), swizzle)
            y = hopper_cases.loaded_pixels(device, x, (lower, upper, channels, pixels), at, tap, **options)
            np.testing.assert_array_equal(y, expected, err_msg=f"{at} {tap}")


def test_pixels_outside_the_box_of_the_map():
    array = device.from_host(np.ones((1, 4, 4, 8), np.float16))
    map_ = tensor_map.im2col(array, (-1, -1), (-1, -1), 8, 16, swizzle=0)
    y = device.empty((256,), np.uint8)
    for w, h in ((-2, 0), (3, 0), (0, 3), (0, -2)):
        with pytest.raises(KernelFault, match="is not within the box of the map, -1 to 2"):
            kernel("loaded_pixels")(1, map_, device.from_host(np.array([0, w, h, 0], np.int32)), y, 0, 0, 256)
    with pytest.raises(KernelFault, match="the map is one of pixels"):
        kernel("loaded_box")(1, map_, device.from_host(np.zeros(4, np.int32)), y, 4, 256)
    with pytest.raises(KernelFault, match="what was passed is no tensor map"):
        kernel("loaded_box")(1, bytes(128), device.from_host(np.zeros(4, np.int32)), y, 4, 256)


# 8-bit floats -----------------------------------------------------------------------------------------------


def test_fp8_is_rounded_as_ml_dtypes_does():
    """Every value of the two types, the middles between neighbours and what lies beside them, and what is too large."""
    types, found = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2), []
    for dtype in types:
        values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
        finite = np.sort(values[np.isfinite(values)])
        middles = (finite[1:] + finite[:-1]) / 2
        found += [finite, middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)]
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, 464.0, 1e-10, 61440.0]
    x = np.concatenate([*found, np.array(special, np.float32)]).astype(np.float32)
    for dtype, most, computed in zip(types, (448.0, 57344.0), hopper_cases.float_to_fp8(device, x), strict=True):
        expected = np.clip(x, -most, most).astype(dtype).view(np.uint8)
        np.testing.assert_array_equal(computed, np.where(np.isnan(x), 0x7F, expected))


# Maps -------------------------------------------------------------------------------------------------------


def matrix(shape=(16, 64), dtype=np.float16):
    return device.empty(shape, dtype)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (((64,), (), (64,)), {}, ShapeError, "2 to 5 sizes"),
        (((64, 16), (128, 128), (64, 8)), {}, ShapeError, "one stride less"),
        (((64, 16), (128,), (64, 0)), {}, ShapeError, "a box of 1 to 256"),
        (((64, 16), (128,), (64, 257)), {}, ShapeError, "a box of 1 to 256"),
        (((64, 0), (128,), (64, 8)), {}, ShapeError, r"sizes of 1 to 2\^32"),
        (((64, 16), (120,), (64, 8)), {}, ShapeError, "a multiple of 16 bytes below"),
        (((64, 16), (-128,), (64, 8)), {}, ShapeError, "a multiple of 16 bytes below"),
        (((64, 1), (1 << 40,), (64, 8)), {}, ShapeError, r"below 2\^40"),
        (((64, 17), (128,), (64, 8)), {}, ShapeError, "goes beyond an array of 2048"),
        (((64, 16), (128,), (128, 8)), {}, ShapeError, "rows of 128 bytes, as the swizzle has, got 256"),
        (((64, 16), (128,), (64, 8)), {"swizzle": 64}, ShapeError, "rows of 64 bytes, as the swizzle has, got 128"),
        (((64, 16), (128,), (32, 8)), {}, ShapeError, "rows of 128 bytes, as the swizzle has, got 64"),
        (((64, 16), (128,), (12, 8)), {"swizzle": 0}, ShapeError, "a multiple of 16 bytes, got 24"),
        (((64, 16), (128,), (64, 8)), {"swizzle": 16}, ConfigurationError, "a swizzle of 0, 32, 64, 128, got 16"),
        (((64, 16), (128,), (64, 8)), {"element_strides": (2, 1)}, ShapeError, "element strides of 1"),
        (((64, 16), (128,), (64, 8)), {"element_strides": (1, 9)}, ShapeError, "element strides of 1, then 1 to 8"),
    ],
)
def test_maps_that_the_driver_would_refuse(arguments, options, error, message):
    with pytest.raises(error, match=message):
        tensor_map.tiled(matrix(), *arguments, **options)


def test_maps_of_other_arrays():
    with pytest.raises(DtypeError, match="an array of uint8, float16, float32, bfloat16, got float64"):
        tensor_map.tiled(device.empty((4, 4), np.float64), (4, 4), (32,), (4, 4))
    with pytest.raises(DtypeError, match="in tf32 expected an array of float32, got float16"):
        tensor_map.tiled(matrix(), (64, 16), (128,), (64, 8), tf32=True)
    with pytest.raises(ShapeError, match="at a multiple of 16 bytes"):
        tensor_map.tiled(device.empty((40,), np.float16)[1:], (8, 4), (16,), (8, 4), swizzle=0)
    with pytest.raises(DtypeError):
        tensor_map.tiled(np.zeros((16, 64), np.float16), (64, 16), (128,), (64, 8))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((-129, 0), (0, 0), 8, 16), {}, "corners .* of -128 to 127"),
        (((0, 0), (0, 128), 8, 16), {}, "corners .* of -128 to 127"),
        (((0, 0), (0, 0), 257, 16), {}, "at most 256 channels and 1024 pixels"),
        (((0, 0), (0, 0), 8, 1025), {}, "at most 256 channels and 1024 pixels"),
        (((0, 0), (0, 0), 8, 16), {"strides": (9, 1)}, "strides"),
        (((0, 0), (-6, 0), 8, 16), {}, "an empty box: w from 0 to -1"),
        (((0, 0), (0, 0), 128, 16), {}, "rows of 128 bytes, as the swizzle has, got 256"),
    ],
)
def test_maps_of_pixels_that_the_driver_would_refuse(arguments, options, message):
    with pytest.raises(ShapeError, match=message):
        tensor_map.im2col(device.empty((2, 5, 6, 8), np.float16), *arguments, **options)


def test_maps_of_pixels_of_other_arrays():
    with pytest.raises(ShapeError, match=r"expected an array \(N, H, W, C\)"):
        tensor_map.im2col(matrix(), (0, 0), (0, 0), 8, 16)
    with pytest.raises(ShapeError, match="strides of a multiple of 16 bytes"):
        tensor_map.im2col(device.empty((2, 5, 6, 4), np.float16), (0, 0), (0, 0), 8, 16, swizzle=0)


def test_equal_maps_are_encoded_once():
    x = matrix()
    first = tensor_map.tiled(x, (64, 16), (128,), (64, 8))
    assert tensor_map.tiled(x, [64, 16], [128], [64, 8]) is first
    assert tensor_map.tiled(x, (64, 16), (128,), (64, 4)) != first
    assert len(first) == tensor_map.BYTES == 128


def test_a_plan_has_maps_of_zeros():
    assert tensor_map.tiled(plan.empty((16, 64), np.float16), (64, 16), (128,), (64, 8)) == bytes(128)
    with pytest.raises(ShapeError, match="goes beyond"):
        tensor_map.tiled(plan.empty((16, 64), np.float16), (64, 17), (128,), (64, 8))


# Keeps what it was called with in the map: a stand-in for the driver.
DRIVER = r"""
#include <cstdint>
#include <cstring>
extern "C" int cuGetErrorName(int, const char** name) { *name = "CUDA_ERROR_INVALID_VALUE"; return 0; }
static int keep(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes, const uint64_t* strides,
                const uint32_t* steps, const int* options, const int* more) {
    if (reinterpret_cast<uintptr_t>(map) % 64) return 1;
    int64_t out[16] = {type, rank, reinterpret_cast<int64_t>(address), 0, 0, 0, 0, 0};
    for (uint32_t i = 0; i < rank; ++i) out[3] = out[3] * 100 + static_cast<int64_t>(sizes[i]);
    for (uint32_t i = 0; i + 1 < rank; ++i) out[4] = out[4] * 10000 + static_cast<int64_t>(strides[i]);
    for (uint32_t i = 0; i < rank; ++i) out[5] = out[5] * 10 + steps[i];
    for (int i = 0; i < 4; ++i) out[6] = out[6] * 10 + options[i];
    for (int i = 0; i < 6; ++i) out[8 + i] = more[i];
    std::memcpy(map, out, 128);
    return 0;
}
extern "C" int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes,
                                      const uint64_t* strides, const uint32_t* box, const uint32_t* steps,
                                      int interleave, int swizzle, int l2, int oob) {
    const int options[] = {interleave, swizzle, l2, oob};
    int more[6] = {};
    for (uint32_t i = 0; i < rank; ++i) more[i] = static_cast<int>(box[i]);
    return box[0] == 8 ? 1 : keep(map, type, rank, address, sizes, strides, steps, options, more);
}
extern "C" int cuTensorMapEncodeIm2col(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes,
                                       const uint64_t* strides, const int* lower, const int* upper, uint32_t channels,
                                       uint32_t pixels, const uint32_t* steps, int interleave, int swizzle, int l2,
                                       int oob) {
    const int options[] = {interleave, swizzle, l2, oob};
    const int more[] = {lower[0], lower[1], upper[0], upper[1], static_cast<int>(channels), static_cast<int>(pixels)};
    return keep(map, type, rank, address, sizes, strides, steps, options, more);
}
"""


class OnGPU:
    """What tensor_map.py asks of the device "cuda"."""

    name = "cuda"

    @staticmethod
    def pointer(array):
        return array.pointer


@pytest.fixture
def driver(monkeypatch, tmp_path):
    source, library = tmp_path / "driver.cpp", tmp_path / "driver.so"
    source.write_text(DRIVER)
    subprocess.run([*unit.compiler(), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    monkeypatch.setattr(tensor_map, "LIBRARY", str(library))
    monkeypatch.setattr(tensor_map, "device_of", lambda array: OnGPU)
    tensor_map._encoded.cache_clear()
    yield
    tensor_map._encoded.cache_clear()


def test_what_the_driver_is_asked(driver):
    x = device.empty((4, 16, 64), ml_dtypes.bfloat16)
    encoded = tensor_map.tiled(x, (64, 16, 4), (128, 2048), (32, 8, 2), swizzle=64, element_strides=(1, 2, 1))
    fields = np.frombuffer(encoded, np.int64).tolist()
    assert fields[:7] == [9, 3, x.pointer, 641604, 1282048, 121, 230]
    assert fields[8:14] == [32, 8, 2, 0, 0, 0]
    floats = device.empty((16, 64), np.float32)
    types = [tensor_map.tiled(floats, (64, 16), (256,), (32, 8), tf32=tf32)[0] for tf32 in (False, True)]
    assert types == [7, 11]
    images = device.empty((3, 5, 6, 8), np.float32)
    encoded = tensor_map.im2col(images, (-1, -2), (-3, 4), 8, 48, strides=(2, 1), swizzle=32)
    fields = np.frombuffer(encoded, np.int64).tolist()
    assert fields[:7] == [7, 4, images.pointer, 8060503, 3201920960, 1211, 130]
    assert fields[8:14] == [-1, -2, -3, 4, 8, 48]


def test_what_the_driver_refuses(driver):
    message = r"cuTensorMapEncodeTiled expected .* got float16 \(64, 16\) by .*: CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(ConfigurationError, match=message):
        tensor_map.tiled(matrix(), (64, 16), (128,), (8, 8), swizzle=0)


def test_a_driver_that_is_too_old(driver, monkeypatch):
    monkeypatch.setattr(tensor_map, "LIBRARY", None)  # the program itself, which has no such function
    with pytest.raises(ConfigurationError, match=r"the driver has from CUDA 12\.0 on"):
        tensor_map.tiled(matrix(), (64, 16), (128,), (64, 8))


# On a GPU ---------------------------------------------------------------------------------------------------


@needs_nvrtc
@needs_nvdisasm
def test_the_kernels_compile_for_hopper_without_advice_of_ptxas():
    compiled = nvrtc.compile_file(KERNELS / "hopper.cu", {}, "sm_90a")
    assert "C75" not in compiled.log
    assert "warning" not in compiled.log
    found = disassembler.instructions(compiled.cubin)
    assert {name[:5] for name in found["product"]} >= {"HGMMA", "QGMMA", "UTMAL"}
    assert {f"UTMALDG.{rank}D" for rank in (2, 3, 4, 5)} <= set(found["loaded_box"])
    assert {f"UTMASTG.{rank}D" for rank in (2, 3, 4, 5)} <= set(found["stored_box"])
    assert "UTMALDG.4D.IM2COL" in found["loaded_pixels"]


@needs_nvrtc
def test_the_pipeline_compiles_for_hopper_without_advice_of_ptxas():
    """And those with a mistake that ptxas can see get its advice."""
    log = nvrtc.compile_file(FAULTS, {}, "sm_90a").log
    advised = set(re.findall(r"C75\d\d.*in function '(\w+)'", log))
    assert advised == {"no_fence_of_registers", "no_wait_for_products", "product_touched", "product_without_wait"}
    assert "warning" not in log
