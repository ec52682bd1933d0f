"""What benchmarks ask of cuBLAS, answered by stand-ins for CuPy and for cuBLAS."""

import importlib

import numpy as np
import pytest
import stand_in_cublas
import stand_in_cupy

from bp.bench.catalogue import load
from bp.cuda import gpu

load("limits")  # makes the package of the benchmarks known
cublas = importlib.import_module("bp.benchmarks.cublas")


@pytest.fixture
def device(monkeypatch):
    stand_in_cupy.install(monkeypatch)
    return gpu.GPUDevice()


@pytest.fixture
def asked(device, monkeypatch):
    """What was asked for; within the test there is a cuBLAS."""
    return stand_in_cublas.install(monkeypatch)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 4, 5), (1, 4, 6), (5, 1, 1)])
def test_a_product_of_row_major_matrices(device, asked, m, n, k, transpose_a, transpose_b, accumulate, wide, dtype):
    draw = np.random.default_rng(0).standard_normal
    a, b = draw((m, k)).astype(dtype), draw((k, n)).astype(dtype)
    c = draw((m, n)).astype("float32" if wide else dtype)
    expected = a.astype(np.float32) @ b.astype(np.float32) + (c if accumulate else 0)
    if not accumulate:
        c[...] = np.nan
    given = [device.from_host(x) for x in (a.T if transpose_a else a, b.T if transpose_b else b, c)]
    work = cublas.product(*given, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate)
    assert work() is given[2]
    np.testing.assert_allclose(device.to_host(given[2]), expected.astype(c.dtype), rtol=1e-3, atol=1e-3)
    assert asked == [("gemmEx", stand_in_cublas.COMPUTE_32F, 1)]


def test_tf32_is_asked_for_where_the_precision_says_so(device, asked):
    matrix, result = (device.from_host(np.ones((2, 2), np.float32)) for _ in range(2))
    with device.running("tf32"):
        cublas.product(matrix, matrix, result)()
    assert asked == [("gemmEx", stand_in_cublas.FAST_TF32, 1)]
