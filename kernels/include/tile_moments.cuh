// The moments of the columns of a matrix, tile by tile, on its way to memory: what a batch normalisation behind a
// convolution needs, without another pass over what was stored.
//
// A tile writes the mean and the spread of each of its columns to a place of its own; merge_moments (norm_moments.cu)
// combines the tiles. They are of the elements as they are stored, rounded to their type.
//
// A mean stands as the sum of two floats, the pivot, which is the first number of the tile's column, and the mean
// distance from it: beside a mean of 10,000 one float would leave out up to 5e-4, which a standard deviation of 1 would
// show.
#pragma once
#include "epilogue.cuh"
#include "moments.cuh"

// The first `tiles * columns` floats are the pivots, tile after tile, as many after them the mean distances from them,
// then as many spreads, and the last `tiles` are the numbers of rows that the tiles have.
struct TileMoments {
    float* at;  // null: not wanted
    int64 tiles, columns;

    __device__ __forceinline__ void store(int64 tile, int64 column, float pivot, float distance, float spread) const {
        at[tile * columns + column] = pivot;
        at[(tiles + tile) * columns + column] = distance;
        at[(2 * tiles + tile) * columns + column] = spread;
    }

    __device__ __forceinline__ void store_rows(int64 tile, float rows) const { at[3 * tiles * columns + tile] = rows; }
};

// What Epilogue::store makes of a sum where there is a bias or none, and nothing else.
template <typename Type>
__device__ __forceinline__ float as_stored(float sum, const Type* bias, int64 column) {
    return to_float(convert<Type>(bias != nullptr ? sum + to_float(bias[column]) : sum));
}

// What the moments of numbers are computed about, of which this is the first: equal ones have a spread of exactly zero.
// An infinite one is no pivot: less itself it is NaN.
__device__ __forceinline__ float pivot_of(float first) { return first - first == 0.0f ? first : 0.0f; }

// The moments about the pivots of WIDTH columns of NUMBERS numbers in registers, of those for which exists(i).
//
// count: of those that exist. inverse_count: of that; of 0, anything finite.
template <int NUMBERS, int WIDTH, typename Exists>
__device__ __forceinline__ ColumnMoments<WIDTH> moments_of(const float (&x)[NUMBERS][WIDTH],
                                                           const float (&pivot)[WIDTH], float count,
                                                           float inverse_count, const Exists& exists) {
    ColumnMoments<WIDTH> own;
    own.count = count;
    if (own.count == 0.0f) return own;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i)
            if (exists(i)) own.mean[k] += x[i][k] - pivot[k];
        own.mean[k] *= inverse_count;
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i) {
            const float apart = x[i][k] - pivot[k] - own.mean[k];
            if (exists(i)) own.spread[k] += apart * apart;
        }
    }
    return own;
}

template <int NUMBERS, int WIDTH, typename Exists>
__device__ __forceinline__ ColumnMoments<WIDTH> moments_of(const float (&x)[NUMBERS][WIDTH],
                                                           const float (&pivot)[WIDTH], const Exists& exists) {
    float count = 0.0f;
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) count += exists(i) ? 1.0f : 0.0f;
    return moments_of(x, pivot, count, count != 0.0f ? 1.0f / count : 0.0f, exists);
}

// The moments of a tile whose threads have WIDTH columns each of NUMBERS rows, those for which exists(i); the first
// `across` threads stand beside each other and have the first rows, the next ones the rows below, in `phases` turns.
// Returns those of the tile in the first `across` threads, about the tile's pivots. All SIZE threads of the block call
// it. shared: (2 * WIDTH + 1) * SIZE / 2 floats, free before and after.
template <int SIZE, int NUMBERS, int WIDTH, typename Exists>
__device__ __forceinline__ ColumnMoments<WIDTH> moments_of_tile(const float (&x)[NUMBERS][WIDTH],
                                                                float (&pivot)[WIDTH], const Exists& exists,
                                                                int across, int phases, float* shared) {
    constexpr int HALF = SIZE / 2;
    const int thread = threadIdx.x;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k)
        if (thread < across) shared[k * across + thread] = pivot_of(x[0][k]);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) pivot[k] = shared[k * across + thread % across];
    __syncthreads();
    ColumnMoments<WIDTH> own = moments_of(x, pivot, exists);
    for (int left = phases; left > 1;) {
        // The upper part of those that are left writes, the lower one reads.
        const int half = (left + 1) / 2, place = thread - half * across;
        if (place >= 0 && thread < left * across) {
            shared[place] = own.count;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                shared[(1 + k) * HALF + place] = own.mean[k];
                shared[(1 + WIDTH + k) * HALF + place] = own.spread[k];
            }
        }
        __syncthreads();
        if (thread < (left - half) * across) {
            float mean[WIDTH], spread[WIDTH];
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                mean[k] = shared[(1 + k) * HALF + thread];
                spread[k] = shared[(1 + WIDTH + k) * HALF + thread];
            }
            own.add(shared[thread], mean, spread);
        }
        __syncthreads();
        left = half;
    }
    return own;
}
