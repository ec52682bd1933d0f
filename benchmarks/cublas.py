"""Matrix products by cuBLAS, called through CuPy."""

import numpy as np

from bp.cuda.linear import uses_tf32


def product(a, b, c, *, transpose_a=False, transpose_b=False, accumulate=False):
    """Work that computes C = op(A) op(B), or C += op(A) op(B), and returns c; op transposes, or leaves as it is.

    a, b, c: row-major matrices of CuPy, a and b of one dtype, c of that or float32. Sums run in float32.
    """
    from cupy.cuda import device, runtime
    from cupy_backends.cuda.libs import cublas

    types = {"float32": runtime.CUDA_R_32F, "float16": runtime.CUDA_R_16F, "bfloat16": runtime.CUDA_R_16BF}
    factors, result = types[a.dtype.name], types[c.dtype.name]
    computed = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if uses_tf32(a) else cublas.CUBLAS_COMPUTE_32F
    operations = {False: cublas.CUBLAS_OP_N, True: cublas.CUBLAS_OP_T}
    one, added = np.ones(1, np.float32), np.full(1, accumulate, np.float32)
    (m, n), k = c.shape, a.shape[0 if transpose_a else 1]
    handle = device.get_cublas_handle()

    def work():
        # cuBLAS counts by columns, so what it sees are transposed matrices: C^T = op(B)^T op(A)^T.
        cublas.gemmEx(
            *(handle, operations[transpose_b], operations[transpose_a], n, m, k, one.ctypes.data),
            *(b.data.ptr, factors, b.shape[1], a.data.ptr, factors, a.shape[1], added.ctypes.data),
            *(c.data.ptr, result, n, computed, cublas.CUBLAS_GEMM_DEFAULT),
        )
        return c

    return work
