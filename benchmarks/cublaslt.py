"""Matrix products with what follows them in one launch by cuBLASLt, its C interface called through ctypes."""

import ctypes
import functools

from bp.cuda.product import uses_tf32

WORKSPACE = 32 << 20  # bytes: what NVIDIA's documentation of cuBLAS advises for Hopper

# Of cublasLt.h and library_types.h.
TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF
FLOAT = TYPES["float32"]
COMPUTE_32F, COMPUTE_TF32 = 68, 77
TRANSPOSE_A, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LEADING = 3, 7, 8, 11, 12  # cublasLtMatmulDescAttributes_t
BIAS, RELU, GELU, AUX, GELU_GRADIENT = 4, 2, 32, 128, 64  # bits of cublasLtEpilogue_t; its GELU is the form with tanh
PLAIN = 1
MOST_WORKSPACE = 1  # cublasLtMatmulPreferenceAttributes_t


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def product(a, b, c, *, transpose_b, bias=None, activation="identity", before=None, kept=None):
    """Work that computes C = f(A op(B) + bias), or C = (A op(B)) f'(kept), and returns c.

    a: (m, k); b: (n, k) where it is transposed, else (k, n); c, before, kept: (m, n); bias: (n,); all of one dtype,
    row-major, on CuPy's device. activation: f, "identity", "relu" or "gelu_tanh"; before: receives A op(B) + bias;
    kept: the z that the f' of "gelu_tanh" is taken of. Sums run in float32.
    Raises RuntimeError where cuBLASLt has nothing for such a product.
    """
    library, handle, workspace = _library(), _handle(), _workspace()
    (m, n), k = c.shape, a.shape[1]
    kind = TYPES[a.dtype.name]
    description = _made("cublasLtMatmulDescCreate", COMPUTE_TF32 if uses_tf32(a) else COMPUTE_32F, FLOAT)

    def describe(attribute, value):
        size = ctypes.c_size_t(ctypes.sizeof(value))
        _expect(library.cublasLtMatmulDescSetAttribute(description, attribute, ctypes.byref(value), size))

    # cuBLASLt counts by columns, so what it sees are transposed matrices: C^T = op(B)^T A^T.
    describe(TRANSPOSE_A, ctypes.c_int32(transpose_b))
    epilogue = {"identity": 0, "relu": RELU, "gelu_tanh": GELU}[activation] | (0 if bias is None else BIAS)
    aux = before if kept is None else kept
    if aux is not None:
        epilogue = epilogue | AUX if kept is None else GELU_GRADIENT | AUX
        describe(AUX_POINTER, ctypes.c_void_p(aux.data.ptr))
        describe(AUX_LEADING, ctypes.c_int64(n))
    describe(EPILOGUE, ctypes.c_uint32(epilogue or PLAIN))
    if bias is not None:
        describe(BIAS_POINTER, ctypes.c_void_p(bias.data.ptr))

    # Rows, columns, and elements from column to column.
    left = _made("cublasLtMatrixLayoutCreate", kind, *_wide((k, n, k) if transpose_b else (n, k, n)))
    right = _made("cublasLtMatrixLayoutCreate", kind, *_wide((k, m, k)))
    result = _made("cublasLtMatrixLayoutCreate", kind, *_wide((n, m, n)))
    preference, limit = _made("cublasLtMatmulPreferenceCreate"), ctypes.c_uint64(WORKSPACE)
    _expect(
        library.cublasLtMatmulPreferenceSetAttribute(
            preference, MOST_WORKSPACE, ctypes.byref(limit), ctypes.c_size_t(ctypes.sizeof(limit))
        )
    )
    found, count = Heuristic(), ctypes.c_int()
    layouts = (left, right, result, result)
    _expect(
        library.cublasLtMatmulAlgoGetHeuristic(
            handle, description, *layouts, preference, 1, ctypes.byref(found), ctypes.byref(count)
        )
    )
    if not count.value:
        raise RuntimeError(f"cuBLASLt has no algorithm for {m} x {n} x {k} with this epilogue")
    one, none = ctypes.c_float(1.0), ctypes.c_float(0.0)
    pointers = [ctypes.c_void_p(array.data.ptr) for array in (a, b, c, workspace)]

    def work():
        first, second, to, scratch = pointers
        _expect(
            library.cublasLtMatmul(
                *(handle, description, ctypes.byref(one), second, left, first, right, ctypes.byref(none)),
                *(to, result, to, result, ctypes.byref(found), scratch, ctypes.c_size_t(WORKSPACE), _stream()),
            )
        )
        return c

    return work


@functools.cache
def _library():
    """The library of the CUDA version that CuPy runs on, which comes with the cuBLAS that it loads."""
    from cupy.cuda import device, runtime

    device.get_cublas_handle()
    return ctypes.CDLL(f"libcublasLt.so.{runtime.runtimeGetVersion() // 1000}")


@functools.cache
def _handle():
    return _made("cublasLtCreate")


@functools.cache
def _workspace():
    import cupy

    return cupy.empty(WORKSPACE, "uint8")


def _stream():
    from cupy.cuda import get_current_stream

    return ctypes.c_void_p(get_current_stream().ptr)


def _made(name, *arguments):
    """A new object of the library, by the function that makes such."""
    found = ctypes.c_void_p()
    _expect(getattr(_library(), name)(ctypes.byref(found), *arguments))
    return found


def _wide(sizes):
    """uint64 rows, uint64 columns, int64 leading."""
    rows, columns, leading = sizes
    return ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(leading)


def _expect(status):
    if status:
        raise RuntimeError(f"cuBLASLt: status {status}")
