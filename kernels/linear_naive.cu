// Matrix product, the first rung: one thread computes one element of C, straight from the definition.
//
// An element of A is read once for each column of C and one of B for each row: 2 k reads for 2 k operations, which only
// the caches keep from main memory. It is what the other rungs are compared with, and the fastest one where k is so
// small that staging a tile costs more than it saves.
#include "gemm_tile.cuh"
#include "product.cuh"

constexpr int THREADS = 256;

// A and B may be transposed (kernels/linear_tiled.cu has the three ways). The depth is not cut.
extern "C" __global__ __launch_bounds__(THREADS) void gemm_naive(const T* a, const T* b, EPILOGUE_PARAMETERS,
                                                                 PRODUCT_PARAMETERS, bool transpose_a,
                                                                 bool transpose_b) {
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    grid_stride(batch * m * n, [&](int64 index) {
        const Quotient line = divide(index, n), matrix = divide(line.quotient, m);
        const int64 row = matrix.remainder, column = line.remainder;
        const T* const left = a + matrix.quotient * a_batch;
        const T* const right = b + matrix.quotient * b_batch;
        float sum[1] = {0.0f};
        for (int64 i = 0; i < k; ++i) {
            float u = to_float(left[transpose_a ? i * a_stride + row : row * a_stride + i]);
            float v = to_float(right[transpose_b ? column * b_stride + i : i * b_stride + column]);
            if (tf32) u = rounded_to_tf32(u), v = rounded_to_tf32(v);
            sum[0] += u * v;
        }
        epilogue.store(matrix.quotient * c_batch + row * c_stride + column, index, column, sum);
    });
}
