// Transposition of the two axes along which source and result are contiguous, tile by tile through shared memory.
//
// Elements that are neighbours in the source are far apart in the result, and the other way round. A tile of 32 x 32 is
// read along the rows of the source and written along the rows of the result, so both are whole sectors of memory. Its
// rows in shared memory are one element longer than needed: without that, a column would lie in one bank.
// Source: Ruetsch and Micikevicius, Optimizing Matrix Transpose in CUDA (2009).
#include "indexing.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 32;
constexpr int PITCH = TILE + 1;

template <typename Word>
__device__ __forceinline__ void transpose(const Word* x, Word* y, Word* tile, int64 rows, int64 columns,
                                          int64 row_step, int64 column_step, const int64 (&sizes)[4],
                                          const int64 (&source_steps)[4], const int64 (&destination_steps)[4]) {
    const int lane = threadIdx.x % TILE, line = threadIdx.x / TILE;
    const int64 across = divide_up(columns, TILE), down = divide_up(rows, TILE);
    const int64 tiles = sizes[0] * sizes[1] * sizes[2] * sizes[3] * down * across;
    for (int64 task = blockIdx.x; task < tiles; task += gridDim.x) {
        Quotient part = divide(task, across);
        const int64 column = part.remainder * TILE;
        part = divide(part.quotient, down);
        const int64 row = part.remainder * TILE;
        int64 rest = part.quotient, from = 0, to = 0;
#pragma unroll
        for (int axis = 3; axis >= 0; --axis) {
            if (sizes[axis] == 1) continue;
            part = divide(rest, sizes[axis]);
            from += part.remainder * source_steps[axis];
            to += part.remainder * destination_steps[axis];
            rest = part.quotient;
        }
#pragma unroll
        for (int r = line; r < TILE; r += THREADS / TILE)
            if (row + r < rows && column + lane < columns)
                tile[r * PITCH + lane] = x[from + (row + r) * row_step + column + lane];
        __syncthreads();
#pragma unroll
        for (int c = line; c < TILE; c += THREADS / TILE)
            if (row + lane < rows && column + c < columns)
                y[to + (column + c) * column_step + row + lane] = tile[lane * PITCH + c];
        __syncthreads();
    }
}

// Elements of `width` bytes (1, 2, 4, 8). Rows lie `row_step` apart in the source, columns `column_step` in the result;
// up to four more axes of these sizes lie around them. All steps are in elements.
extern "C" __global__ __launch_bounds__(THREADS) void transpose_tiles(
    const void* source, void* destination, int width, int64 rows, int64 columns, int64 row_step, int64 column_step,
    int64 size0, int64 size1, int64 size2, int64 size3, int64 source_step0, int64 source_step1, int64 source_step2,
    int64 source_step3, int64 destination_step0, int64 destination_step1, int64 destination_step2,
    int64 destination_step3) {
    __shared__ uint64 tile[TILE * PITCH];
    const int64 sizes[4] = {size0, size1, size2, size3};
    const int64 from[4] = {source_step0, source_step1, source_step2, source_step3};
    const int64 to[4] = {destination_step0, destination_step1, destination_step2, destination_step3};
    if (width == 8)
        transpose(static_cast<const uint64*>(source), static_cast<uint64*>(destination), tile, rows, columns, row_step,
                  column_step, sizes, from, to);
    if (width == 4)
        transpose(static_cast<const uint32*>(source), static_cast<uint32*>(destination),
                  reinterpret_cast<uint32*>(tile), rows, columns, row_step, column_step, sizes, from, to);
    if (width == 2)
        transpose(static_cast<const uint16*>(source), static_cast<uint16*>(destination),
                  reinterpret_cast<uint16*>(tile), rows, columns, row_step, column_step, sizes, from, to);
    if (width == 1)
        transpose(static_cast<const uint8*>(source), static_cast<uint8*>(destination), reinterpret_cast<uint8*>(tile),
                  rows, columns, row_step, column_step, sizes, from, to);
}
