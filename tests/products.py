"""What the tests of matrix products and of convolutions share: exact numbers, a forced rung, tf32, huge arrays."""

import functools
import math

import numpy as np
import pytest
from emulated import to_device, to_host
from table import KERNEL_DEVICE

from bp.cuda import choice, kernel
from bp.cuda.epilogue import ADDING
from bp.cuda.product import WAYS, Matrices
from bp.ops.device import find_device, new_control
from bp.ops.dropout import Mask

# The launches that add the parts of a cut depth: few parts, or many.
ADDED = tuple([name] for name in ADDING)


def integers(*shape, most=3, seed=0):
    """Numbers so small that every sum of their products is exact in float32."""
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32)


def ternary(*shape, seed=0):
    """-1, 0 and 1: sums of up to 256 of their products are exact in bfloat16."""
    return integers(*shape, most=1, seed=seed)


def launches(work):
    """(the names of the kernels that `work()` launches on the emulator, the launches)."""
    with find_device(KERNEL_DEVICE).recording() as ledger:
        work()
    return [launch.variant.kernel.name for launch in ledger.launches], ledger.launches


def in_tf32(x):
    """To the nearest with 10 bits of mantissa, ties away from zero."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2.0**11
    return np.copysign(np.floor(np.abs(scaled) + 0.5), scaled) * 2.0 ** (exponent - 11)


def laid_out(array, dtype="float32", gap=0):
    """Matrices (m, n) or (batch, m, n) on the device, with NaN in `gap` elements behind each row."""
    array = np.asarray(array) if np.ndim(array) == 3 else np.asarray(array)[None]
    batch, rows, columns = array.shape
    stride = columns + gap
    padded = np.full((batch, rows, stride), np.nan)
    padded[:, :, :columns] = array
    return Matrices(to_device(padded.reshape(padded.size), dtype), rows, columns, stride, batch, rows * stride)


def read_back(matrices):
    """What `laid_out` made, (batch, m, n) on the host; nobody has touched what lies behind the rows."""
    padded = to_host(matrices.array).astype(np.float32).reshape(matrices.batch, matrices.rows, matrices.stride)
    assert np.isnan(padded[:, :, matrices.columns :]).all()
    return padded[:, :, : matrices.columns]


def turned(way, a, b):
    """A (.., m, k) and B (.., k, n) as they lie in memory."""
    transpose_a, transpose_b = WAYS[way]
    return a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b


def beside(given, m, n, dtype="float32"):
    """What an epilogue has beside C (m, n), of "bias", "residual", "kept" and "mask" those that `given` names.

    Where n is odd the bias begins at no multiple of 16 bytes, and the mask within a chunk.
    """
    found = {name: to_device(integers(m, n, seed=3) / 4, dtype) for name in ("residual", "kept") if name in given}
    if "bias" in given:
        found["bias"] = to_device(integers(n + n % 2, seed=2) / 4, dtype)[n % 2 :]
    if "mask" in given:
        found["mask"] = Mask(new_control(find_device(KERNEL_DEVICE), 5, 1), 3, 16 + 5 * (n % 2), 0.4)
    return found


@pytest.fixture
def blocks(monkeypatch):
    """blocks(3): as many multiprocessors, and so blocks that stay, has the device."""
    return lambda count: monkeypatch.setattr(type(find_device(KERNEL_DEVICE)), "multiprocessors", count)


@pytest.fixture
def on_hopper():
    """Some instructions are those of one architecture; the emulator has models of them."""
    if find_device(KERNEL_DEVICE).capability != 90:
        pytest.skip("wgmma exists on compute capability 9.0 alone")


@pytest.fixture
def force(monkeypatch):
    """force("linear", "naive") makes that the rung of all products of the family."""

    def set_rung(family, rung):
        monkeypatch.setenv(f"BP_{family.upper()}", rung)
        choice.forget()

    yield set_rung
    monkeypatch.undo()
    choice.forget()


@pytest.fixture
def tf32():
    """Products of float32 arrays on the emulator round their factors."""
    with find_device(KERNEL_DEVICE).running("tf32"):
        yield


@pytest.fixture
def huge(monkeypatch):
    """huge(*shape): float32 zeros that take memory only where they are touched; of each launch the last block runs."""
    if KERNEL_DEVICE != "emulator":
        pytest.skip("memory that is only partly there is the emulator's")
    engine = pytest.importorskip("bp.cuda.emulator.engine")
    device = find_device("emulator")
    launch = engine.launch

    def last_block(function, name, values, grid, *arguments, **settings):
        last = math.prod(grid) - 1
        launch(function, name, values, grid, *arguments, first_block=last, block_count=1, **settings)

    monkeypatch.setattr(kernel, "_MAX_BLOCKS", 2**31 - 1)  # so that the last block has the last elements, and no others
    monkeypatch.setattr(engine, "launch", last_block)
    monkeypatch.setattr(engine, "allocate", functools.partial(engine.allocate, sparse=True))
    return lambda *shape: device.allocate(shape, "float32")
