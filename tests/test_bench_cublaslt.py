"""What benchmarks ask of cuBLASLt, answered by a stand-in that follows its documentation."""

import ctypes
import importlib
import sys
import types

import numpy as np
import pytest

from bp.bench.catalogue import load

load("limits")  # makes the package of the benchmarks known
cublaslt = importlib.import_module("bp.benchmarks.cublaslt")

TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16)}
STREAM, WORKSPACE = 4242, 4343


class Matrix:
    """A row-major array, with what the benchmarks read of a CuPy array."""

    def __init__(self, values):
        self.values = np.ascontiguousarray(values)
        self.shape, self.dtype = self.values.shape, self.values.dtype
        self.data = types.SimpleNamespace(ptr=self.values.ctypes.data)


def gelu(z):
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def gelu_slope(z):
    step = 1e-4
    return (gelu(z + step) - gelu(z - step)) / (2 * step)


def by_columns(address, rows, columns, leading, dtype):
    """The matrix in column-major memory, its columns `leading` elements apart."""
    assert leading >= rows
    memory = (ctypes.c_char * (leading * columns * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype).reshape(columns, leading)[:, :rows].T


class Library:
    """The functions of cublasLt.h, by their documentation; matrices are column-major. found: how many algorithms."""

    def __init__(self):
        self.objects, self.found = {}, 1

    def _make(self, place, thing):
        self.objects[1000 + len(self.objects)] = thing
        place._obj.value = 999 + len(self.objects)
        return 0

    def cublasLtCreate(self, handle):
        return self._make(handle, "handle")

    def cublasLtMatmulDescCreate(self, place, compute, scale):
        assert compute in (68, 77) and scale == 0  # float32
        return self._make(place, {"compute": compute, 3: 0, 4: 0, 7: 1})

    def cublasLtMatmulDescSetAttribute(self, description, attribute, value, size):
        sizes = {3: 4, 7: 4, 8: 8, 11: 8, 12: 8}
        assert size.value == ctypes.sizeof(value._obj) == sizes[attribute]
        self.objects[description.value][attribute] = value._obj.value
        return 0

    def cublasLtMatrixLayoutCreate(self, place, kind, rows, columns, leading):
        assert [type(n) for n in (rows, columns, leading)] == [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64]
        return self._make(place, (rows.value, columns.value, leading.value, TYPES[kind]))

    def cublasLtMatmulPreferenceCreate(self, place):
        return self._make(place, {})

    def cublasLtMatmulPreferenceSetAttribute(self, preference, attribute, value, size):
        assert attribute == 1 and size.value == 8
        self.objects[preference.value][attribute] = value._obj.value
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, handle, description, a, b, c, d, preference, wanted, result, count):
        assert self.objects[handle.value] == "handle" and wanted == 1
        assert self.objects[preference.value] == {1: cublaslt.WORKSPACE}
        assert ctypes.sizeof(result._obj) == 96
        result._obj.algorithm[0], count._obj.value = 77, self.found
        return 0

    def cublasLtMatmul(
        self, handle, description, alpha, a, a_of, b, b_of, beta, c, c_of, d, d_of, algorithm, scratch, nbytes, stream
    ):
        assert (alpha._obj.value, beta._obj.value, algorithm._obj.algorithm[0]) == (1.0, 0.0, 77)
        assert (scratch.value, nbytes.value, stream.value) == (WORKSPACE, cublaslt.WORKSPACE, STREAM)
        told = self.objects[description.value]
        left, right, result = (
            by_columns(at.value, *self.objects[of.value]) for at, of in ((a, a_of), (b, b_of), (d, d_of))
        )
        left, right = left.astype(np.float64), right.astype(np.float64)
        z = (left.T if told[3] else left) @ (right.T if told[4] else right)
        rows, columns, _, dtype = self.objects[d_of.value]
        assert z.shape == (rows, columns)
        epilogue = told[7]
        aux = by_columns(told[11], rows, columns, told[12], dtype) if epilogue & 128 else None
        if epilogue & 4:
            z = z + by_columns(told[8], rows, 1, rows, dtype)
        if epilogue & 128 and not epilogue & 64:
            aux[...] = z
        following = {0: lambda z: z, 2: lambda z: np.maximum(z, 0), 32: gelu, 64: lambda z: z * gelu_slope(aux)}
        result[...] = following[epilogue & ~(1 | 4 | 128)](z)
        return 0


@pytest.fixture
def library(monkeypatch):
    found = Library()
    monkeypatch.setattr(cublaslt, "_library", lambda: found)
    monkeypatch.setattr(cublaslt, "uses_tf32", lambda a: False)
    monkeypatch.setattr(
        cublaslt, "_workspace", lambda: types.SimpleNamespace(data=types.SimpleNamespace(ptr=WORKSPACE))
    )
    stream = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=STREAM))
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=stream))
    monkeypatch.setitem(sys.modules, "cupy.cuda", stream)
    cublaslt._handle.cache_clear()
    yield found
    cublaslt._handle.cache_clear()


def operands(m, n, k, transpose_b, dtype):
    draw = np.random.default_rng(0).standard_normal
    a, b = draw((m, k)).astype(dtype), draw((k, n)).astype(dtype)
    product = a.astype(np.float64) @ b.astype(np.float64)
    return Matrix(a), Matrix(b.T if transpose_b else b), Matrix(np.full((m, n), np.nan, dtype)), product


def expect(matrix, expected):
    np.testing.assert_allclose(matrix.values, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("transpose_b", [True, False])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 4, 5), (1, 8, 6), (5, 1, 1)])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu_tanh"])
def test_a_product_with_bias_and_activation(library, m, n, k, transpose_b, dtype, activation):
    a, b, c, product = operands(m, n, k, transpose_b, dtype)
    bias = Matrix(np.arange(n).astype(dtype))
    assert cublaslt.product(a, b, c, transpose_b=transpose_b, bias=bias, activation=activation)() is c
    apply = {"identity": lambda z: z, "relu": lambda z: np.maximum(z, 0), "gelu_tanh": gelu}[activation]
    expect(c, apply(product + np.arange(n)))


def test_what_backward_needs_is_kept(library):
    a, b, c, product = operands(3, 8, 5, True, "float32")
    bias, before = Matrix(np.arange(8, dtype=np.float32)), Matrix(np.full((3, 8), np.nan, np.float32))
    cublaslt.product(a, b, c, transpose_b=True, bias=bias, activation="gelu_tanh", before=before)()
    expect(before, product + np.arange(8))
    expect(c, gelu(product + np.arange(8)))


def test_the_gradient_of_gelu_follows_a_product(library):
    a, b, c, product = operands(3, 8, 5, False, "float32")
    kept = Matrix(np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32))
    cublaslt.product(a, b, c, transpose_b=False, activation="gelu_tanh", kept=kept)()
    expect(c, product * gelu_slope(kept.values.astype(np.float64)))


def test_a_plain_product(library):
    a, b, c, product = operands(3, 8, 5, True, "float32")
    cublaslt.product(a, b, c, transpose_b=True)()
    expect(c, product)


def test_what_it_has_nothing_for_is_an_error(library):
    library.found = 0
    a, b, c, _ = operands(3, 8, 5, True, "float32")
    with pytest.raises(RuntimeError, match="no algorithm for 3 x 8 x 5"):
        cublaslt.product(a, b, c, transpose_b=True)


def test_tf32_is_asked_for_where_the_precision_says_so(library, monkeypatch):
    monkeypatch.setattr(cublaslt, "uses_tf32", lambda a: True)
    a, b, c, _ = operands(3, 8, 5, True, "float32")
    cublaslt.product(a, b, c, transpose_b=True)()
    assert [one["compute"] for one in library.objects.values() if isinstance(one, dict) and "compute" in one] == [77]
