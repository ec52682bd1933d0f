// Matrix product, the first rung: one thread computes one element of C, straight from the definition.
//
// An element of A is read once for each column of C and one of B for each row: 2 k reads for 2 k operations, which only
// the caches keep from main memory. It is what the other rungs are compared with, and the fastest one where k is so
// small that staging a tile costs more than it saves.
#include "epilogue.cuh"
#include "gemm_tile.cuh"

constexpr int THREADS = 256;

// A (m, k) and B (k, n) with any strides along both axes, so a transposed matrix is one with its strides exchanged.
extern "C" __global__ __launch_bounds__(THREADS) void gemm_naive(
    const T* a, const T* b, const T* bias, T* before, T* y, float* wide, int64 m, int64 n, int64 k, int64 a_row,
    int64 a_column, int64 b_row, int64 b_column, bool accumulate, int activation, bool tf32) {
    const Epilogue<T> epilogue{bias, before, y, wide, accumulate, activation};
    grid_stride(m * n, [&](int64 index) {
        const Quotient place = divide(index, n);
        const int64 row = place.quotient, column = place.remainder;
        float sum = 0.0f;
        for (int64 i = 0; i < k; ++i) {
            float u = to_float(a[row * a_row + i * a_column]), v = to_float(b[i * b_row + column * b_column]);
            if (tf32) u = rounded_to_tf32(u), v = rounded_to_tf32(v);
            sum += u * v;
        }
        epilogue.store(index, column, sum);
    });
}
