// The way of a warp's sums from the registers of matrix instructions to memory: 16 rows at a time through a slab of
// shared memory that the warp has for itself, so that what is stored lies beside each other in a row, 16 bytes a lane.
//
// The sums come in fragments of 16 x 8, in the layout that mma.sync has and wgmma repeats along a row (mma.cuh, d). All
// of this is done by whole warps, and none waits for another one.
//
// Bank conflicts: none, but for vectors of 4 floats in rows of 16. A row is 8 words longer than it has columns, which
// are a multiple of 16; so the four rows that half a warp writes, 8 words of each, lie 8 (or 24) banks apart. Where
// elements are of 16 bits, a lane reads 8 words of a row and its neighbour the next 8, of which one instruction takes
// 16 bytes: two lanes 32 words apart would meet in a bank. So the two halves of each 8 words change places in every
// other 32 words, and in every other row.
#pragma once
#include "reduce.cuh"
#include "vector.cuh"

template <int WIDE>
struct Slab {
    static_assert(WIDE % 16 == 0, "pairs of fragments");
    static constexpr int TALL = 16;
    static constexpr int STRIDE = WIDE + 8;                      // words
    static constexpr int BYTES = TALL * STRIDE * sizeof(float);  // of shared memory, for each warp

    float* at;  // of this warp, a multiple of 16 bytes

    // This lane's part of the fragment whose first column is `column`.
    __device__ __forceinline__ void put(int column, float d0, float d1, float d2, float d3) const {
        const int lane = threadIdx.x % WARP, row = lane / 4, first = column + lane % 4 * 2;
        store_pair(row, first, d0, d1);
        store_pair(row + 8, first, d2, d3);
    }

    // Calls store(row, column, sums) for the slab's elements within `rows` and `columns`, its first being at
    // (first_row, first_column): float sums[WIDTH], which lie beside each other in a row. All lanes have put their
    // parts, and have all returned before any puts again. columns: a multiple of WIDTH.
    template <int WIDTH, typename Store>
    __device__ __forceinline__ void take(int64 first_row, int64 first_column, int64 rows, int64 columns,
                                         const Store& store) const {
        static_assert(WIDTH == 1 || WIDTH % 4 == 0, "elements one by one, or vectors");
        constexpr int LANES = WIDE / WIDTH;
        __syncwarp();
#pragma unroll 1
        for (int i = threadIdx.x % WARP; i < TALL * LANES; i += WARP) {
            const int row = i / LANES, column = i % LANES * WIDTH;
            if (first_row + row >= rows || first_column + column >= columns) continue;
            float sums[WIDTH];
            if constexpr (WIDTH == 1) {
                sums[0] = at[place(row, column)];
            } else {
#pragma unroll
                for (int k = 0; k < WIDTH; k += 4) {
                    const Vector<float> part = load16(at + place(row, column + k));
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[k + e] = part.at[e];
                }
            }
            store(first_row + row, first_column + column, sums);
        }
        __syncwarp();
    }

private:
    __device__ __forceinline__ static int place(int row, int column) {
        return row * STRIDE + (column ^ ((column >> 3 ^ row << 2) & 4));
    }

    __device__ __forceinline__ void store_pair(int row, int column, float x, float y) const {
        *reinterpret_cast<float2*>(at + place(row, column)) = make_float2(x, y);
    }
};
