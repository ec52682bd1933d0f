"""A stand-in for cuBLAS as CuPy offers it, beside tests/stand_in_cupy.py: cublasGemmEx and cublasGemmStridedBatchedEx.

It follows their documentation: matrices lie by columns, their columns `ld` elements apart; alpha and beta are float32
on the host; C is not read where beta is 0. Like CuPy's, its functions refuse to be recorded in a graph.
"""

import ctypes
import sys
import types

import numpy as np
import stand_in_cupy

from bp.ops.array import known_dtype

OP_N, OP_T = 0, 1
COMPUTE_32F, FAST_TF32 = 68, 77
HANDLE, DEFAULT = 7, -1
KINDS = {0: "float32", 2: "float16", 14: "bfloat16"}  # cudaDataType_t


def install(patch):
    """Put it where `bp.cuda.gpu` finds cuBLAS; returns the list of (function, compute type, batch) asked for."""
    asked = []

    def batched(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, a_step, b, b_type, ldb, b_step, *rest):
        beta, c, c_type, ldc, c_step, count, compute, algorithm = rest
        asked.append(("gemmStridedBatchedEx", compute, count))
        for i in range(count):
            one = [at + i * step * known_dtype(KINDS[kind]).itemsize for at, step, kind in
                   ((a, a_step, a_type), (b, b_step, b_type), (c, c_step, c_type))]  # fmt: skip
            _gemm(handle, op_a, op_b, m, n, k, alpha, one[0], a_type, lda, one[1], b_type, ldb, beta, one[2], c_type,
                  ldc, compute, algorithm)  # fmt: skip

    def single(*given):
        asked.append(("gemmEx", given[-2], 1))
        _gemm(*given)

    library = types.SimpleNamespace(
        gemmEx=single,
        gemmStridedBatchedEx=batched,
        CUBLAS_OP_N=OP_N,
        CUBLAS_OP_T=OP_T,
        CUBLAS_GEMM_DEFAULT=DEFAULT,
        CUBLAS_COMPUTE_32F=COMPUTE_32F,
        CUBLAS_COMPUTE_32F_FAST_TF32=FAST_TF32,
    )
    runtime = types.SimpleNamespace(CUDA_R_32F=0, CUDA_R_16F=2, CUDA_R_16BF=14)
    device = types.SimpleNamespace(get_cublas_handle=lambda: HANDLE)
    patch.setitem(sys.modules, "cupy.cuda", types.SimpleNamespace(device=device, runtime=runtime))
    patch.setitem(sys.modules, "cupy_backends.cuda.libs", types.SimpleNamespace(cublas=library))
    return asked


def _gemm(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algorithm):
    assert (handle, algorithm) == (HANDLE, DEFAULT) and a_type == b_type and min(m, n, k) > 0
    if stand_in_cupy.current_stream().captured is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    left = _by_columns(a, *((m, k) if op_a == OP_N else (k, m)), lda, a_type).astype(np.float32)
    right = _by_columns(b, *((k, n) if op_b == OP_N else (n, k)), ldb, b_type).astype(np.float32)
    product = (left if op_a == OP_N else left.T) @ (right if op_b == OP_N else right.T)
    result = _by_columns(c, m, n, ldc, c_type)
    before = 0 if _scalar(beta) == 0 else _scalar(beta) * result.astype(np.float32)  # so C may hold NaN
    result[...] = (_scalar(alpha) * product + before).astype(result.dtype)


def _by_columns(address, rows, columns, leading, kind):
    """The matrix in memory; the last column may end before the next one would begin."""
    dtype = known_dtype(KINDS[kind])
    assert leading >= rows
    memory = (ctypes.c_char * (((columns - 1) * leading + rows) * dtype.itemsize)).from_address(address)
    flat = np.frombuffer(memory, dtype)
    strides = (dtype.itemsize, leading * dtype.itemsize)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)


def _scalar(address):
    return ctypes.c_float.from_address(address).value
