"""What benchmarks ask of cuBLAS, answered by a stand-in that follows its documentation of cublasGemmEx."""

import ctypes
import importlib
import sys
import types

import numpy as np
import pytest

from bp.bench.catalogue import load

load("limits")  # makes the package of the benchmarks known
cublas = importlib.import_module("bp.benchmarks.cublas")

OP_N, OP_T = 0, 1
R_32F, R_16F = 0, 2
COMPUTE_32F, FAST_TF32 = 68, 77


class Matrix:
    """A row-major matrix, with what the benchmarks read of a CuPy array."""

    def __init__(self, values: np.ndarray):
        self.values = np.ascontiguousarray(values)
        self.shape, self.dtype = self.values.shape, self.values.dtype
        self.data = types.SimpleNamespace(ptr=self.values.ctypes.data)


def by_columns(address: int, rows: int, columns: int, leading: int, kind: int) -> np.ndarray:
    """The matrix in column-major memory, its columns `leading` elements apart."""
    dtype = {R_32F: np.dtype(np.float32), R_16F: np.dtype(np.float16)}[kind]
    assert leading >= rows
    memory = (ctypes.c_char * (leading * columns * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype).reshape(columns, leading)[:, :rows].T


def scalar(address: int) -> float:
    """alpha or beta, float32 on the host for these types."""
    return ctypes.c_float.from_address(address).value


@pytest.fixture
def computed(monkeypatch):
    """The types in which products were asked for; within the test there is a cuBLAS."""
    asked = []

    def gemm_ex(
        handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algo
    ):
        assert (handle, algo) == (7, -1)
        asked.append(compute)
        left = by_columns(a, *((m, k) if op_a == OP_N else (k, m)), lda, a_type).astype(np.float32)
        right = by_columns(b, *((k, n) if op_b == OP_N else (n, k)), ldb, b_type).astype(np.float32)
        product = (left if op_a == OP_N else left.T) @ (right if op_b == OP_N else right.T)
        result = by_columns(c, m, n, ldc, c_type)
        before = 0 if scalar(beta) == 0 else scalar(beta) * result  # so C may hold NaN
        result[...] = scalar(alpha) * product + before

    constants = {"CUBLAS_OP_N": OP_N, "CUBLAS_OP_T": OP_T, "CUBLAS_GEMM_DEFAULT": -1}
    constants |= {"CUBLAS_COMPUTE_32F": COMPUTE_32F, "CUBLAS_COMPUTE_32F_FAST_TF32": FAST_TF32}
    library = types.SimpleNamespace(gemmEx=gemm_ex, **constants)
    runtime = types.SimpleNamespace(CUDA_R_32F=R_32F, CUDA_R_16F=R_16F, CUDA_R_16BF=14)
    device = types.SimpleNamespace(get_cublas_handle=lambda: 7)
    modules = {"cupy.cuda": {"device": device, "runtime": runtime}, "cupy_backends.cuda.libs": {"cublas": library}}
    for name, contents in modules.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**contents))
    monkeypatch.setattr(cublas, "uses_tf32", lambda a: False)
    return asked


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 4, 5), (1, 4, 6), (5, 1, 1)])
def test_a_product_of_row_major_matrices(computed, m, n, k, transpose_a, transpose_b, accumulate, wide, dtype):
    draw = np.random.default_rng(0).standard_normal
    a, b = draw((m, k)).astype(dtype), draw((k, n)).astype(dtype)
    c = draw((m, n)).astype("float32" if wide else dtype)
    expected = a.astype(np.float32) @ b.astype(np.float32) + (c if accumulate else 0)
    if not accumulate:
        c[...] = np.nan
    given = Matrix(a.T if transpose_a else a), Matrix(b.T if transpose_b else b), Matrix(c)
    work = cublas.product(*given, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate)
    assert work() is given[2]
    np.testing.assert_allclose(given[2].values, expected.astype(c.dtype), rtol=1e-3, atol=1e-3)
    assert computed == [COMPUTE_32F]


def test_tf32_is_asked_for_where_the_precision_says_so(computed, monkeypatch):
    monkeypatch.setattr(cublas, "uses_tf32", lambda a: True)
    matrix = Matrix(np.ones((2, 2), np.float32))
    cublas.product(matrix, matrix, Matrix(np.zeros((2, 2), np.float32)))()
    assert computed == [FAST_TF32]
