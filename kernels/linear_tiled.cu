// Matrix product, the second rung: tiles in shared memory, for the three ways in which a layer multiplies.
//
//   gemm_nt: C = A B^T   y = x W^T      A (m, k), B (n, k)
//   gemm_nn: C = A B     dx = dy W      A (m, k), B (k, n)
//   gemm_tn: C = A^T B   dW = dy^T x    A (k, m), B (k, n), and the sums of A's columns: db
//
// Where C has too few tiles to fill a GPU, the depth is cut into parts of `part` steps, a multiple of 32, one for each
// blockIdx.y; each part writes its own sums, and add_parts (linear_parts.cu) adds them in their order.
#include "epilogue.cuh"
#include "gemm_tile.cuh"

constexpr int THREADS = 256;
static_assert(THREADS == MICROS * MICROS, "a thread for each micro-tile");

// wide, where the depth is cut: a place for each part, `stride` apart.
template <bool A_ALONG, bool B_ALONG, typename OnSlice>
__device__ __forceinline__ void product(const Matrix<T>& a, const Matrix<T>& b, Epilogue<T> epilogue, int64 m, int64 n,
                                        int64 k, int64 part, int64 stride, bool tf32, const TilePlace& place,
                                        Tiles<T>& tiles, OnSlice on_slice) {
    const int64 begin = blockIdx.y * part;
    Micro sum;
    multiply_tile<A_ALONG, B_ALONG, T>(a, b, place.row, place.column, begin, smaller(begin + part, k), tf32, tiles, sum,
                                       on_slice);
    if (epilogue.wide != nullptr) epilogue.wide += blockIdx.y * stride;
    store_tile(sum, place.row, place.column, m, n, [&](int64 row, int64 column, float value) {
        epilogue.store(row * n + column, column, value);
    });
}

extern "C" __global__ __launch_bounds__(THREADS, 2) void gemm_nt(
    const T* a, const T* b, const T* bias, T* before, T* y, float* wide, int64 m, int64 n, int64 k, int64 part,
    bool accumulate, int activation, bool tf32) {
    __shared__ Tiles<T> tiles;
    product<true, true>(Matrix<T>(a, m, k, k), Matrix<T>(b, n, k, k), {bias, before, y, wide, accumulate, activation},
                        m, n, k, part, m * n, tf32, TilePlace(n), tiles, [] {});
}

extern "C" __global__ __launch_bounds__(THREADS, 2) void gemm_nn(
    const T* a, const T* b, const T* bias, T* before, T* y, float* wide, int64 m, int64 n, int64 k, int64 part,
    bool accumulate, int activation, bool tf32) {
    __shared__ Tiles<T> tiles;
    product<true, false>(Matrix<T>(a, m, k, k), Matrix<T>(b, k, n, n), {bias, before, y, wide, accumulate, activation},
                         m, n, k, part, m * n, tf32, TilePlace(n), tiles, [] {});
}

// column_sums (null: not wanted): the sums of A's columns, which the blocks of the first column of tiles have in shared
// memory anyway. They are of what is multiplied: not wanted with tf32. Parts have theirs behind their part of C.
extern "C" __global__ __launch_bounds__(THREADS, 2) void gemm_tn(
    const T* a, const T* b, const T* bias, T* before, T* y, float* wide, float* column_sums, int64 m, int64 n, int64 k,
    int64 part, bool accumulate, int activation, bool tf32) {
    __shared__ Tiles<T> tiles;
    const TilePlace place(n);
    const bool sums = column_sums != nullptr && place.column == 0 && threadIdx.x < TILE;
    float total = 0.0f;
    const int64 stride = m * n + (column_sums != nullptr ? m : 0);
    product<false, false>(Matrix<T>(a, k, m, m), Matrix<T>(b, k, n, n), {bias, before, y, wide, accumulate, activation},
                          m, n, k, part, stride, tf32, place, tiles, [&] {
                              if (sums) total += row_sum<T>(tiles, threadIdx.x);
                          });
    const int64 row = place.row + threadIdx.x;
    if (!sums || row >= m) return;
    float* const at = column_sums + blockIdx.y * stride + row;
    *at = accumulate ? *at + total : total;
}
