"""The emulator: every fault that it must find, each beside a correct twin, and every feature against NumPy."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bp.cuda.emulator import engine, unit
from bp.cuda.emulator.engine import KernelFault
from bp.errors import ConfigurationError

KERNELS = Path(__file__).parent / "kernels"
FAULTS = KERNELS / "emulator_faults.cu"
FEATURES = KERNELS / "emulator_features.cu"


class Buffer:
    """An array in the emulator's memory."""

    def __init__(self, values):
        self.values = np.ascontiguousarray(values)
        self.memory = engine.allocate(self.values.nbytes)
        ctypes.memmove(self.memory.pointer, self.values.ctypes.data, self.values.nbytes)

    @property
    def argument(self):
        return ctypes.c_void_p(self.memory.pointer)

    def read(self):
        result = np.empty_like(self.values)
        ctypes.memmove(result.ctypes.data, self.memory.pointer, result.nbytes)
        return result


def launch(path, name, *arguments, grid=(1, 1, 1), threads=64, shared=0, detector=True, **options):
    function = unit.compile_unit(path, {}, detector=detector).function(name)
    values = [a.argument if isinstance(a, Buffer) else a for a in arguments]
    engine.launch(function, name, values, grid, threads, shared, **options)


def line_of(name, text):
    """The line of FAULTS that holds `text` in kernel `name`."""
    lines = FAULTS.read_text().split("\n")
    start = next(i for i, line in enumerate(lines) if f"void {name}(" in line)
    return next(i + 1 for i in range(start, len(lines)) if text in lines[i])


def floats(n):
    return Buffer(np.arange(1, n + 1, dtype=np.float32))


def x_and_y(nx=64, ny=64):
    return lambda: (floats(nx), floats(ny))


# name: arguments, launch options, what the reason says, the text of the line that is blamed, whether only the detector
# finds it
PLANTED = {
    "missing_barrier": (
        x_and_y(),
        {},
        "race on shared memory: this read is not ordered after the write",
        "y[thr",
        True,
    ),
    "write_after_read": (
        x_and_y(2, 128),
        {},
        "race on shared memory: this write is not ordered after the read",
        "value =",
        True,
    ),
    "missing_syncwarp": (x_and_y(), {}, "race on shared memory", "y[thr", True),
    "shuffle_as_barrier": (x_and_y(), {}, "race on shared memory", "y[thr", True),
    "missing_named_barrier": (x_and_y(), {}, "race on shared memory", "y[thr", True),
    "uninitialised_shared": (x_and_y(), {}, "uninitialised shared memory", "y[thr", True),
    "missing_copy_wait": (x_and_y(), {}, "missing wait", "y[thr", True),
    "wait_for_older_copies": (x_and_y(), {}, "missing wait", "y[thr", True),
    "missing_copy_barrier": (x_and_y(), {}, "race on shared memory", "y[thr", True),
    "out_of_bounds_read": (x_and_y(128, 64), {}, "out-of-bounds read", "y[thr", False),
    "out_of_bounds_write": (x_and_y(64, 128), {}, "out-of-bounds write", "y[thr", False),
    "misaligned_vector": (x_and_y(), {}, "load16 from .* no multiple of 16", None, False),
    "divergent_shuffle": (x_and_y(), {}, "divergent __shfl_xor_sync", "v -=", False),
    "shuffle_after_exit": (x_and_y(), {}, "exited", "__shfl", False),
    "shuffle_outside_mask": (x_and_y(), {}, "reads lane 16, which its mask 0000ffff does not name", "__shfl", False),
    "deadlock": (
        x_and_y(),
        {},
        "deadlock: .*32 threads in named barrier at .*32 threads in __syncthreads",
        None,
        False,
    ),
    "divergent_barrier": (x_and_y(), {}, "divergent __syncthreads", "__syncthreads_or", False),
    "two_blocks_one_address": (x_and_y(64, 128), {"grid": (2, 1, 1)}, "two blocks on one address", "y[thr", True),
    "read_of_another_block": (
        lambda: (floats(128),),
        {"grid": (2, 1, 1)},
        "two blocks on one address",
        "const float next",
        True,
    ),
    "write_of_what_both_read": (
        lambda: (floats(128),),
        {"grid": (2, 1, 1)},
        "this write, and a read by another block",
        "y[thr",
        True,
    ),
    "race_on_global": (lambda: (floats(64),), {}, "race on global memory", "= 1.0f", True),
    "plain_beside_atomic": (lambda: (Buffer(np.zeros(1, np.int32)),), {}, "race on shared memory", "atomicAdd", True),
    "past_dynamic_shared": (x_and_y(), {"shared": 240}, "out-of-bounds", "tile[thr", False),
    "copy_to_global": (x_and_y(), {}, "cp.async to .* not in the block's shared memory", None, False),
    "stack_overflow": (x_and_y(), {}, "stack overflow", None, False),
    "failed_assertion": (x_and_y(), {}, "the assertion threadIdx.x != 5 does not hold", "assert(", False),
    "past_a_shared_array": (x_and_y(), {}, "an index beyond a shared or local array", None, True),
    "past_a_local_array": (x_and_y(), {}, "an index beyond a shared or local array", None, True),
    "rounding_of_dynamic_shared": (
        x_and_y(),
        {"shared": 244},
        "beside the dynamic shared memory",
        "tile[thr",
        True,
    ),
    "before_dynamic_shared": (x_and_y(), {"shared": 256}, "beside the dynamic shared memory", "tile[-1]", True),
    "misaligned_pair": (x_and_y(), {}, "a vector at a misaligned address", None, False),
    "shared_atomic_between_blocks": (
        x_and_y(64, 128),
        {"grid": (2, 1, 1)},
        "two blocks on one address",
        "+= y[thr",
        True,
    ),
    "unwritten_structure": (x_and_y(), {}, "uninitialised shared memory", None, True),
    "endless_loop": (x_and_y(), {"timeout": 0.2}, "ran for 0.2 seconds of processor time", "while", False),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    arguments, options, reason, text, needs_detector = PLANTED[name]
    for detector in (True,) if needs_detector else (True, False):
        with pytest.raises(KernelFault, match=reason) as caught:
            launch(FAULTS, name, *arguments(), detector=detector, **options)
        fault = caught.value
        assert fault.kernel == name
        assert len(fault.block) == 3
        if name != "deadlock":
            assert len(fault.thread) == 3
        if text is not None:
            assert f"emulator_faults.cu:{line_of(name, text)}" in fault.line


@pytest.mark.parametrize("name", PLANTED)
def test_corrected_twin_passes(name):
    arguments, options, _, _, _ = PLANTED[name]
    results = []
    for detector, seed in ((True, 0), (True, 1), (False, 0), (False, 2)):
        buffers = arguments()
        launch(FAULTS, f"{name}_fixed", *buffers, detector=detector, seed=seed, **options)
        results.append(buffers[-1].read())
        np.testing.assert_array_equal(results[-1], results[0])
    engine.check_canaries()


@pytest.mark.parametrize("name", ["missing_barrier", "write_after_read", "two_blocks_one_address", "race_on_global"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_race_is_found_in_every_order(name, seed):
    arguments, options, _, _, _ = PLANTED[name]
    with pytest.raises(KernelFault, match=r"race|two blocks|uninitialised"):
        launch(FAULTS, name, *arguments(), seed=seed, **options)


def test_a_race_names_both_lines():
    with pytest.raises(KernelFault) as caught:
        launch(FAULTS, "missing_barrier", floats(64), floats(64))
    fault = caught.value
    assert f":{line_of('missing_barrier', 'tile[threadIdx.x] =')}" in fault.reason
    assert fault.line.endswith(f":{line_of('missing_barrier', 'y[thr')}")
    assert fault.thread == (0, 0, 0) or "thread 0,0,0" in fault.reason


def test_write_into_the_rounding_after_an_array():
    """61 floats, and 12 bytes up to the next multiple of 16: no page fault, but a canary, or the detector."""
    name, n = "write_past_the_tail", ctypes.c_int(61)
    with pytest.raises(KernelFault, match="out-of-bounds write: byte 244 of an array of 244 bytes") as caught:
        launch(FAULTS, name, floats(64), floats(61), n, detector=False)
    assert caught.value.kernel == name
    with pytest.raises(KernelFault, match="out-of-bounds write of 4 bytes, 4 bytes past the end of") as caught:
        launch(FAULTS, name, floats(64), floats(61), n, detector=True)
    assert f":{line_of(name, 'y[thr')}" in caught.value.line
    launch(FAULTS, f"{name}_fixed", floats(64), floats(61), n)
    engine.check_canaries()


def test_damage_that_no_launch_has_seen():
    """Before and after an array; found while it exists and after it was freed; reported once."""
    for offset in (-1, 61):
        memory = engine.allocate(61)
        ctypes.memset(memory.pointer + offset, 0, 1)
        with pytest.raises(KernelFault, match="an array of 61 bytes"):
            engine.check_canaries()
        engine.check_canaries()
        ctypes.memset(memory.pointer + offset, 0, 1)
        del memory
        with pytest.raises(KernelFault, match="an array of 61 bytes"):
            engine.check_canaries()
        engine.check_canaries()


@pytest.mark.parametrize("at", [-1, -17, -200, -900])
def test_write_before_an_array(at):
    """As far as its first page reaches, without the detector too."""
    for detector in (False, True):
        with pytest.raises(KernelFault, match=f"{-4 * at} bytes before an array of 244 bytes"):
            launch(FAULTS, "write_far_away", floats(61), ctypes.c_int64(at), detector=detector)


def test_released_memory():
    """A pointer that outlived its array: the kernel stops at its first access, or the launch says so afterwards."""
    for detector, reason in ((True, "write of released memory: an array of 252 bytes was here"), (False, "released")):
        y = floats(63)
        pointer, address = y.argument, y.memory.pointer
        del y
        assert ctypes.string_at(address, 252) == b"\xff" * 252
        with pytest.raises(KernelFault, match=reason):
            launch(FAULTS, "write_far_away", pointer, ctypes.c_int64(3), detector=detector)
        floats(63)  # takes the place
    engine.check_canaries()


def test_a_timer_of_the_program_is_left_alone():
    """Where SIGVTALRM has a handler already there is no time limit, and the handler stays."""
    script = f"""
import signal, sys
sys.path.insert(0, {str(KERNELS.parent)!r})
from test_emulator import *
signal.signal(signal.SIGVTALRM, lambda *_: None)
before = signal.getsignal(signal.SIGVTALRM)
signal.setitimer(signal.ITIMER_VIRTUAL, 1000)
launch(FAULTS, "divergent_barrier_fixed", floats(64), floats(64), timeout=0.001)
assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 900
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_memory_starts_as_nan_or_zero():
    for n in (0, 1, 4, 4095, 4096, 100_000):
        memory = engine.allocate(n)
        assert memory.pointer % 16 == 0
        assert memory.nbytes == n
        assert ctypes.string_at(memory.pointer, n) == b"\xff" * n
        ctypes.memset(memory.pointer, 7, n)
        del memory
        assert ctypes.string_at(engine.allocate(n, zeros=True).pointer, 0) == b""
        zeros = engine.allocate(n, zeros=True)
        assert ctypes.string_at(zeros.pointer, n) == b"\0" * n
    thousands = [engine.allocate(20) for _ in range(3000)]
    assert len({memory.pointer for memory in thousands}) == 3000
    engine.check_canaries()


def test_signal_handlers_are_given_back():
    """After a fault, a segmentation fault elsewhere in the process is a crash that faulthandler shows, as before."""
    script = f"""
import ctypes, sys
sys.path.insert(0, {str(KERNELS.parent)!r})
from test_emulator import *
for _ in range(3):
    with pytest.raises(KernelFault):
        launch(FAULTS, "out_of_bounds_read", floats(128), floats(64), detector=False)
print("alive", flush=True)
ctypes.string_at(1)
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "alive\n"
    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr


def test_the_engine_goes_on_after_faults():
    for _ in range(5):
        for name in ("out_of_bounds_read", "divergent_shuffle", "deadlock", "stack_overflow"):
            arguments, options, *_ = PLANTED[name]
            with pytest.raises(KernelFault):
                launch(FAULTS, name, *arguments(), detector=False, **options)
        x, y = floats(64), floats(64)
        launch(FAULTS, "divergent_shuffle_fixed", x, y)
        lane, other = np.arange(64) % 32, x.values[np.arange(64) ^ 1]
        np.testing.assert_array_equal(y.read(), np.where(lane < 16, x.values + other, x.values - other))


def test_uninitialised_shared_memory_is_nan_without_the_detector():
    y = floats(64)
    launch(FAULTS, "uninitialised_shared", floats(64), y, detector=False)
    assert np.isnan(y.read()[63])
    assert not np.isnan(y.read()[:63]).any()
    y = floats(64)
    launch(FAULTS, "missing_copy_wait", floats(64), y, detector=False)
    assert np.isnan(y.read()).all()


def test_launches_no_gpu_would_take():
    arguments = floats(64), floats(64)
    for options in (
        {"threads": 1025},
        {"threads": 0},
        {"grid": (1, 65536, 1)},
        {"grid": (0, 1, 1)},
        {"shared": 1 << 20},
    ):
        with pytest.raises(ConfigurationError):
            launch(FAULTS, "divergent_barrier_fixed", *arguments, **options)
    with pytest.raises(ConfigurationError, match="has no kernel nothing"):
        launch(FAULTS, "nothing")


@pytest.mark.parametrize(
    "body",
    [
        "atomicAdd(x, 1.0f);",
        "x[0] = surely_undefined(x[0]);",
        "threadIdx.x = 3;",
        "x[0] = __nv_intrinsic(x[0]);",
    ],
)
def test_what_must_not_compile(tmp_path, body):
    source = tmp_path / "wrong.cu"
    source.write_text(f'extern "C" __global__ __launch_bounds__(32) void wrong(float* x) {{\n    {body}\n}}\n')
    with pytest.raises(ConfigurationError, match=r"wrong\.cu"):
        unit.compile_unit(source, {}, detector=False)


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="C\\+\\+ compiler"):
        unit.compiler()
    monkeypatch.setenv("CXX", "no-such-compiler --flag")
    with pytest.raises(ConfigurationError, match="no-such-compiler cannot be run"):
        unit.compiler_version()


def _compile_here(arguments):
    folder, source = arguments
    os.environ["BP_CACHE_DIR"] = folder
    return unit.compile_unit(Path(source), {"VALUE": "3.0f"}, detector=False).function("fill") != 0


def test_two_processes_compile_at_once(tmp_path):
    source = tmp_path / "fill.cu"
    source.write_text(
        'extern "C" __global__ __launch_bounds__(32) void fill(float* x) {\n    x[threadIdx.x] = VALUE;\n}\n'
    )
    engine_before = unit.load_engine()._name
    cache = tmp_path / "cache"
    (cache / "emulator").mkdir(parents=True)
    os.link(engine_before, cache / "emulator" / Path(engine_before).name)  # its compilation takes seconds
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_compile_here, [(str(cache), str(source))] * 2) == [True, True]
    assert len(list((cache / "emulator").glob("fill-*.so"))) == 1
    assert not list((cache / "emulator").glob(".*"))


# Features against NumPy.


def test_conversions_of_all_16_bit_floats():
    bits = np.arange(65536, dtype=np.uint16)
    for kernel, kind in (("half_to_float", np.float16), ("bfloat_to_float", ml_dtypes.bfloat16)):
        y = Buffer(np.zeros(65536, np.float32))
        launch(FEATURES, kernel, Buffer(bits), y, ctypes.c_int64(65536), grid=(16, 1, 1), threads=256)
        with np.errstate(invalid="ignore"):
            expected = bits.view(kind).astype(np.float32)
        np.testing.assert_array_equal(y.read(), expected)
        finite = ~np.isnan(expected)
        np.testing.assert_array_equal(y.read().view(np.uint32)[finite], expected.view(np.uint32)[finite])


def test_rounding_to_16_bits():
    """Random bit patterns, and every 16-bit value with the middle between it and the next, a bit below and above."""
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    for kernel, kind in (("float_to_half", np.float16), ("float_to_bfloat", ml_dtypes.bfloat16)):
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.arange(65536, dtype=np.uint16).view(kind).astype(np.float32)
            middle = ((values.astype(np.float64) + np.roll(values, -1)) / 2).astype(np.float32)
            around = [middle, np.nextafter(middle, np.float32(-np.inf)), np.nextafter(middle, np.float32(np.inf))]
            x = np.concatenate([random.view(np.float32), values, *around]).astype(np.float32)
            expected = x.astype(kind)
        y = Buffer(np.zeros(len(x), np.uint16))
        launch(FEATURES, kernel, Buffer(x), y, ctypes.c_int64(len(x)), grid=(16, 1, 1), threads=256)
        nan = np.isnan(x)
        np.testing.assert_array_equal(y.read()[~nan], expected.view(np.uint16)[~nan])
        assert (y.read()[nan] == 0x7FFF).all()


@pytest.mark.parametrize("width", [32, 16, 4, 1])
def test_shuffles(width):
    lane = np.arange(32)
    segment = lane // width * width
    for index, delta, xor in ((0, 0, 0), (3, 1, 1), (5, 3, 2), (31, 17, 16), (33, 31, 31)):
        y = Buffer(np.zeros((4, 32), np.int32))
        launch(
            FEATURES,
            "shuffles",
            y,
            *(ctypes.c_int(v) for v in (index, delta, xor, width)),
            threads=32,
        )
        up = np.where(lane - delta >= segment, lane - delta, lane)
        down = np.where(lane + delta < segment + width, lane + delta, lane)
        across = np.where((lane ^ xor) < segment + width, lane ^ xor, lane)
        np.testing.assert_array_equal(y.read() - 100, [segment + index % width, up, down, across])


def test_shuffles_of_other_types():
    d, i, f = (Buffer(np.zeros(32, kind)) for kind in (np.float64, np.int64, np.float32))
    launch(FEATURES, "wide_shuffles", d, i, f, threads=32)
    reverse = np.arange(31, -1, -1)
    np.testing.assert_array_equal(d.read(), 1.0 / (1 + reverse))
    np.testing.assert_array_equal(i.read(), reverse << 40)
    np.testing.assert_array_equal(f.read(), np.float32(1) / (1 + reverse).astype(np.float32))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_votes_of_two_halves_of_a_warp(seed):
    x = np.random.default_rng(seed).integers(-50, 100, 32).astype(np.int32)
    y = Buffer(np.zeros((6, 32), np.uint32))
    launch(FEATURES, "votes", Buffer(x), y, threads=32, seed=seed)
    for parity in (0, 1):
        mine = np.arange(parity, 32, 2)
        positive = x[mine] > 0
        expected = [
            int(np.sum(1 << mine[positive])),
            int(positive.any()),
            int(positive.all()),
            int(x[mine].sum()),
            int(x[mine].max()),
            int(np.bitwise_xor.reduce(x[mine].view(np.uint32))),
        ]
        for row, value in zip(y.read(), expected, strict=True):
            assert (row[mine] == np.uint32(value % 2**32)).all()


def test_votes_of_a_block():
    for x in (np.ones(128, np.int32), np.zeros(128, np.int32), np.arange(128, dtype=np.int32) - 100):
        y = Buffer(np.zeros((3, 128), np.int32))
        launch(FEATURES, "block_votes", Buffer(x), y, threads=128)
        positive = x > 0
        count, any_of, all_of = y.read()
        assert (count == positive.sum()).all()
        assert (any_of == positive.any()).all()
        assert (all_of == positive.all()).all()


@pytest.mark.parametrize("columns", [1, 31, 256, 1000])
def test_block_reduction_is_the_same_in_every_order(columns):
    x = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
    results = []
    for seed, detector in ((0, True), (1, True), (2, False)):
        y = Buffer(np.zeros((3, 2), np.float32))
        launch(
            FEATURES,
            "row_sums",
            Buffer(x),
            y,
            ctypes.c_int64(columns),
            grid=(3, 1, 1),
            threads=256,
            seed=seed,
            detector=detector,
        )
        results.append(y.read())
        np.testing.assert_array_equal(results[-1], results[0])
    # Sums of n terms: n roundings at most, each of the sum of magnitudes.
    bound = columns * np.finfo(np.float32).eps * np.abs(x).sum(1)
    assert (np.abs(results[0][:, 0] - x.astype(np.float64).sum(1)) <= bound).all()
    np.testing.assert_array_equal(results[0][:, 1], x.max(1))


def test_integer_functions():
    x = np.array([0, 1, 2, 3, 0x80000000, 0xFFFFFFFF, 0x00F0F000, 0x12345678], np.uint32)
    y = Buffer(np.zeros((5, len(x)), np.uint32))
    launch(FEATURES, "integers", Buffer(x), y, ctypes.c_int(len(x)))
    numbers = [int(v) for v in x]
    expected = [
        [v.bit_count() for v in numbers],
        [32 - v.bit_length() for v in numbers],
        [(v & -v).bit_length() for v in numbers],
        [int(f"{v:032b}"[::-1], 2) for v in numbers],
        [v * 0x9E3779B9 >> 32 for v in numbers],
    ]
    np.testing.assert_array_equal(y.read(), np.array(expected, np.uint32))


def test_seeds_change_the_order():
    orders = []
    for seed in (0, 1, 1, 2):
        counter, order = Buffer(np.zeros(2, np.int32)), Buffer(np.zeros(256, np.int32))
        launch(FEATURES, "tickets", counter, order, grid=(4, 1, 1), seed=seed)
        np.testing.assert_array_equal(counter.read(), [256, 64])
        np.testing.assert_array_equal(np.sort(order.read()), np.arange(256))
        orders.append(order.read())
    natural, seeded, again, other = orders
    np.testing.assert_array_equal(natural, np.arange(256))
    np.testing.assert_array_equal(seeded, again)
    assert (seeded != other).any()
    assert (np.diff(seeded.reshape(4, 64)) < 0).any(1).all()  # the threads of every block
    first_of_blocks = np.stack([seeded, other]).reshape(2, 4, 64).min(2)
    assert (np.diff(first_of_blocks) < 0).any()  # the blocks


# Fragments, written from the PTX ISA ("Matrix fragments for mma.m16n8k16 with floating point type", "... mma.m16n8k8",
# "ldmatrix"): groupID = lane >> 2, threadID_in_group = lane % 4.


def test_load_matrix():
    x = np.arange(32 * 8, dtype=np.uint16).reshape(4, 8, 8)
    for transposed in (0, 1):
        y = Buffer(np.zeros((7, 32), np.uint32))
        launch(FEATURES, "matrices", Buffer(x), y, ctypes.c_int(transposed), threads=32)
        source = x.transpose(0, 2, 1) if transposed else x
        pairs = np.ascontiguousarray(source).reshape(4, 32, 2).astype(np.uint32)
        words = pairs[:, :, 0] | pairs[:, :, 1] << 16  # row lane / 4, elements 2 (lane % 4) and the next
        np.testing.assert_array_equal(y.read(), words[[0, 0, 1, 0, 1, 2, 3]])


def a_index_16(lane, i):
    row = (lane >> 2) if i < 2 or 4 <= i < 6 else (lane >> 2) + 8
    return row, (lane % 4) * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_index_16(lane, i):
    return (lane % 4) * 2 + (i & 1) + (8 if i >= 2 else 0), lane >> 2


def c_index(lane, i):
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


@pytest.mark.parametrize("element", ["float16", "bfloat16"])
def test_matrix_product_of_16_bit_floats(element):
    kind = np.dtype(np.float16 if element == "float16" else ml_dtypes.bfloat16)
    random = np.random.default_rng(1)
    a, b = (random.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8)))
    c = random.integers(-100, 100, (16, 8)).astype(np.float32)
    words = [np.zeros((registers, 32, 2), kind) for registers in (4, 2)]
    d = np.zeros((4, 32), np.float32)
    for lane in range(32):
        for i in range(8):
            words[0][i // 2, lane, i % 2] = a[a_index_16(lane, i)]
        for i in range(4):
            words[1][i // 2, lane, i % 2] = b[b_index_16(lane, i)]
            d[i, lane] = c[c_index(lane, i)]
    result = run_product(words[0].view(np.uint32), words[1].view(np.uint32), d, 0 if element == "float16" else 1)
    np.testing.assert_array_equal(result, c + a @ b)  # small integers: exact


def test_matrix_product_of_tf32():
    random = np.random.default_rng(2)
    a, b = (random.integers(-1000, 1001, shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    c = random.integers(-100, 100, (16, 8)).astype(np.float32)
    x, y, d = np.zeros((4, 32), np.float32), np.zeros((2, 32), np.float32), np.zeros((4, 32), np.float32)
    for lane in range(32):
        group, within = lane >> 2, lane % 4
        for i in range(4):
            x[i, lane] = a[group if i in (0, 2) else group + 8, within if i < 2 else within + 4]
            d[i, lane] = c[c_index(lane, i)]
        for i in range(2):
            y[i, lane] = b[within if i == 0 else within + 4, group]
    low_bits = np.uint32(0x1FFF)  # of the mantissa, which tf32 does not have
    result = run_product(x.view(np.uint32) | low_bits * (x != 0), y.view(np.uint32), d, 2)
    np.testing.assert_array_equal(result, c + a @ b)


def run_product(a, b, d, element):
    out = Buffer(d)
    launch(FEATURES, "products", Buffer(a), Buffer(b), out, ctypes.c_int(element), threads=32)
    fragments, result = out.read(), np.zeros((16, 8), np.float32)
    for lane in range(32):
        for i in range(4):
            result[c_index(lane, i)] = fragments[i, lane]
    return result


@pytest.mark.parametrize("rows,last", [(1, 64), (2, 1), (5, 37), (5, 0)])
def test_asynchronous_copies_in_two_stages(rows, last):
    x = np.random.default_rng(0).integers(-9, 9, (rows, 64)).astype(np.float32)
    padded = x.copy()
    padded[-1, last:] = 0
    for seed, detector in ((0, True), (1, True), (0, False)):
        y = floats(64)
        arguments = Buffer(x.reshape(-1)[: rows * 64 - 64 + last]), y, ctypes.c_int(rows), ctypes.c_int(last)
        launch(FEATURES, "pipeline", *arguments, shared=512, seed=seed, detector=detector)
        np.testing.assert_array_equal(y.read(), padded.sum(0)[::-1])


@pytest.mark.parametrize("detector", [True, False])
def test_blocks_far_into_a_huge_array(detector):
    """A range of blocks around element 2^32 of an array that has 2^32 + 1000 elements, and memory for a few pages."""
    n = 2**32 + 1000
    memory = engine.allocate(n, sparse=True)
    blocks = -(-n // 256)
    first = 2**32 // 256 - 2
    launch(
        FEATURES,
        "fill_index",
        ctypes.c_void_p(memory.pointer),
        ctypes.c_int64(n),
        grid=(blocks, 1, 1),
        threads=256,
        first_block=first,
        block_count=blocks - first,
        detector=detector,
    )
    begin = first * 256
    written = np.frombuffer(ctypes.string_at(memory.pointer + begin - 256, n - begin + 256), np.uint8)
    assert (written[:256] == 0).all()
    np.testing.assert_array_equal(written[256:], (np.arange(begin, n) % 251).astype(np.uint8))


def test_coordinates_of_threads_and_blocks():
    y = Buffer(np.zeros((24, 8, 6), np.int32))
    launch(FEATURES, "coordinates", y, grid=(2, 3, 4), threads=(2, 2, 2), seed=3)
    for block in range(24):
        for thread in range(8):
            expected = [thread % 2, thread // 2 % 2, thread // 4, block % 2, block // 2 % 3, block // 6]
            assert y.read()[block, thread].tolist() == expected
