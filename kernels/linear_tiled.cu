// Matrix product, the second rung: tiles in shared memory, for the three ways in which a layer multiplies.
//
//   gemm_nt: C = A B^T   y = x W^T      A (m, k), B (n, k)
//   gemm_nn: C = A B     dx = dy W      A (m, k), B (k, n)
//   gemm_tn: C = A^T B   dW = dy^T x    A (k, m), B (k, n), and the sums of A's columns: db
//
// Where C has too few tiles to fill a GPU, the depth is cut into parts (product.cuh).
#include "gemm_tile.cuh"
#include "product.cuh"

constexpr int THREADS = 256;
static_assert(THREADS == MICROS * MICROS, "a thread for each micro-tile");

// sums: how many of A's columns are added up.
template <bool A_ALONG, bool B_ALONG, typename OnSlice>
__device__ __forceinline__ void multiply(const Matrix<T>& a, const Matrix<T>& b, const Epilogue<T>& epilogue,
                                         const Product& product, int64 sums, const TilePlace& tile, Tiles<T>& tiles,
                                         OnSlice on_slice) {
    Micro sum;
    multiply_tile<A_ALONG, B_ALONG, T>(a, b, tile.row, tile.column, product.begin(), product.end(), product.tf32, tiles,
                                       sum, on_slice);
    store_tile(sum, tile.row, tile.column, product.m, product.n, [&](int64 row, int64 column, float value) {
        const float one[1] = {value};
        epilogue.store(product.place(row, column, sums), product.logical(row, column), column, one);
    });
}

extern "C" __global__ __launch_bounds__(THREADS, 2) void gemm_nt(const T* a, const T* b, EPILOGUE_PARAMETERS,
                                                                 PRODUCT_PARAMETERS) {
    __shared__ Tiles<T> tiles;
    multiply<true, true>({a + blockIdx.z * a_batch, m, k, a_stride}, {b + blockIdx.z * b_batch, n, k, b_stride},
                         {EPILOGUE_ARGUMENTS}, {PRODUCT_ARGUMENTS}, 0, TilePlace(n), tiles, [] {});
}

extern "C" __global__ __launch_bounds__(THREADS, 2) void gemm_nn(const T* a, const T* b, EPILOGUE_PARAMETERS,
                                                                 PRODUCT_PARAMETERS) {
    __shared__ Tiles<T> tiles;
    multiply<true, false>({a + blockIdx.z * a_batch, m, k, a_stride}, {b + blockIdx.z * b_batch, k, n, b_stride},
                          {EPILOGUE_ARGUMENTS}, {PRODUCT_ARGUMENTS}, 0, TilePlace(n), tiles, [] {});
}

// column_sums (null: not wanted): the sums of A's columns, which the blocks of the first column of tiles have in shared
// memory anyway. They are of what is multiplied: not wanted with tf32, nor of several products. Parts have theirs
// behind their part of C.
extern "C" __global__ __launch_bounds__(THREADS, 2) void gemm_tn(const T* a, const T* b, EPILOGUE_PARAMETERS,
                                                                 float* column_sums, PRODUCT_PARAMETERS) {
    __shared__ Tiles<T> tiles;
    const TilePlace tile(n);
    const bool sums = column_sums != nullptr && tile.column == 0 && threadIdx.x < TILE;
    float total = 0.0f;
    const int64 wanted = column_sums != nullptr ? m : 0;
    multiply<false, false>({a + blockIdx.z * a_batch, k, m, a_stride}, {b + blockIdx.z * b_batch, k, n, b_stride},
                           {EPILOGUE_ARGUMENTS}, {PRODUCT_ARGUMENTS}, wanted, tile, tiles, [&] {
                               if (sums) total += row_sum<T>(tiles, threadIdx.x);
                           });
    const int64 row = tile.row + threadIdx.x;
    if (!sums || row >= m) return;
    float* const at = column_sums + blockIdx.y * (m * n + m) + row;
    *at = beta != 0.0f ? beta * *at + total : total;
}
