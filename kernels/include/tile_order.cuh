// Which tile of a matrix a block has.
#pragma once
#include "types.cuh"

// Where the tile of this block begins. Blocks that follow each other go down GROUP tiles, then to the next column, so
// that those which run at once, some hundreds, have about as many rows as columns: they read each part of A and of B
// from memory once, and from the second-level cache after that.
struct TileOrder {
    static constexpr uint32 GROUP = 16;

    int64 row, column;

    __device__ __forceinline__ TileOrder(int64 m, int64 n, int rows, int columns) {
        const uint32 down = static_cast<uint32>((m + rows - 1) / rows);
        const uint32 across = static_cast<uint32>((n + columns - 1) / columns);
        const uint32 whole = (down < GROUP ? down : GROUP) * across, first = blockIdx.x / whole * GROUP;
        const uint32 height = down - first < GROUP ? down - first : GROUP, within = blockIdx.x % whole;
        row = static_cast<int64>(first + within % height) * rows;
        column = static_cast<int64>(within / height) * columns;
    }
};
