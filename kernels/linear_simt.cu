// Matrix product of float32, the rung of plain multiply-adds, for the three ways in which a layer multiplies.
//
//   simt_nt: C = A B^T   y = x W^T      A (m, k), B (n, k)
//   simt_nn: C = A B     dx = dy W      A (m, k), B (k, n)
//   simt_tn: C = A^T B   dW = dy^T x    A (k, m), B (k, n), and the sums of A's columns: db
//
// Where C has too few tiles to fill a GPU, or the depth is long, the depth is cut into parts (product.cuh).
#include "product.cuh"
#include "simt_tile.cuh"
#include "tile_order.cuh"

using Shape = SimtShape<ROWS, COLUMNS, ALIGNMENT, 4>;
static_assert(THREADS == Shape::threads, "a thread for each lane of the warps");

// columns: how many of A's columns are added up. Their sums lie between one part and the next.
template <typename Tile>
__device__ __forceinline__ void store(const Tile& tile, float* memory, const TileOrder& place,
                                      const Epilogue<T>& epilogue, const Product& product, int64 columns) {
    tile.store(memory, place.row, place.column, product.m, product.n, product.vectors(epilogue, columns),
               [&](int64 row, int64 column, const auto& sums) {
                   epilogue.store(product.place(row, column, columns), product.logical(row, column), column, sums);
               });
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void simt_nt(const T* a, const T* b, EPILOGUE_PARAMETERS,
                                                                      PRODUCT_PARAMETERS) {
    typedef SimtTile<Shape, true, true> Tile;
    alignas(16) __shared__ float memory[Tile::MEMORY];
    const Product product{PRODUCT_ARGUMENTS};
    const TileOrder place(m, n, ROWS, COLUMNS);
    const Matrix<T> left(a + blockIdx.z * a_batch, m, k, a_stride), right(b + blockIdx.z * b_batch, n, k, b_stride);
    Tile tile;
    tile.multiply(left, right, place.row, place.column, product.begin(), product.end(), memory);
    store(tile, memory, place, {EPILOGUE_ARGUMENTS}, product, 0);
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void simt_nn(const T* a, const T* b, EPILOGUE_PARAMETERS,
                                                                      PRODUCT_PARAMETERS) {
    typedef SimtTile<Shape, true, false> Tile;
    alignas(16) __shared__ float memory[Tile::MEMORY];
    const Product product{PRODUCT_ARGUMENTS};
    const TileOrder place(m, n, ROWS, COLUMNS);
    const Matrix<T> left(a + blockIdx.z * a_batch, m, k, a_stride), right(b + blockIdx.z * b_batch, k, n, b_stride);
    Tile tile;
    tile.multiply(left, right, place.row, place.column, product.begin(), product.end(), memory);
    store(tile, memory, place, {EPILOGUE_ARGUMENTS}, product, 0);
}

// column_sums (null: not wanted): the sums of A's columns, which the blocks of the first column of tiles have in shared
// memory anyway. Not wanted of several products. Parts have theirs behind their part of C.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void simt_tn(const T* a, const T* b, EPILOGUE_PARAMETERS,
                                                                      float* column_sums, PRODUCT_PARAMETERS) {
    typedef SimtTile<Shape, false, false, true> Tile;
    alignas(16) __shared__ float memory[Tile::MEMORY];
    const Product product{PRODUCT_ARGUMENTS};
    const TileOrder place(m, n, ROWS, COLUMNS);
    const Matrix<T> left(a + blockIdx.z * a_batch, k, m, a_stride), right(b + blockIdx.z * b_batch, k, n, b_stride);
    const bool wanted = column_sums != nullptr && place.column == 0;
    Tile tile;
    tile.multiply(left, right, place.row, place.column, product.begin(), product.end(), memory, wanted);
    store(tile, memory, place, {EPILOGUE_ARGUMENTS}, product, column_sums != nullptr ? m : 0);
    if (wanted)
        tile.store_columns(place.row, m, [&](int64 row, float sum) {
            float* const at = column_sums + blockIdx.y * (m * n + m) + row;
            *at = beta != 0.0f ? beta * *at + sum : sum;
        });
}
