// The moments of the columns of a matrix, tile by tile, on its way to memory: what a batch normalisation behind a
// convolution needs, without another pass over what was stored.
//
// A tile writes the mean and the spread of each of its columns to a place of its own; merge_moments (norm_moments.cu)
// combines the tiles. They are of the elements as they are stored, rounded to their type.
#pragma once
#include "epilogue.cuh"
#include "moments.cuh"

// The first `tiles * columns` floats are the means, tile after tile, as many after them the spreads, and the last
// `tiles` the numbers of rows that the tiles have.
struct TileMoments {
    float* at;  // null: not wanted
    int64 tiles, columns;

    __device__ __forceinline__ void store(int64 tile, int64 column, float mean, float spread) const {
        at[tile * columns + column] = mean;
        at[(tiles + tile) * columns + column] = spread;
    }

    __device__ __forceinline__ void store_rows(int64 tile, float rows) const { at[2 * tiles * columns + tile] = rows; }
};

// What Epilogue::store makes of a sum where there is a bias or none, and nothing else.
template <typename Type>
__device__ __forceinline__ float as_stored(float sum, const Type* bias, int64 column) {
    return to_float(convert<Type>(bias != nullptr ? sum + to_float(bias[column]) : sum));
}

// The moments of WIDTH columns of NUMBERS numbers in registers, of those for which exists(i); the first one does, or
// none.
//
// Computed about that first number: equal ones have a spread of exactly zero. An infinite one is no pivot, so that it
// does not become NaN on its way to the mean.
//
// count: of those that exist. inverse_count: of that; of 0, anything finite.
template <int NUMBERS, int WIDTH, typename Exists>
__device__ __forceinline__ ColumnMoments<WIDTH> moments_of(const float (&x)[NUMBERS][WIDTH], float count,
                                                           float inverse_count, const Exists& exists) {
    ColumnMoments<WIDTH> own;
    own.count = count;
    if (own.count == 0.0f) return own;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        const float pivot = x[0][k] - x[0][k] == 0.0f ? x[0][k] : 0.0f;
        float distance = 0.0f;
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i)
            if (exists(i)) distance += x[i][k] - pivot;
        distance *= inverse_count;
        own.mean[k] = pivot + distance;
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i) {
            const float apart = x[i][k] - pivot - distance;
            if (exists(i)) own.spread[k] += apart * apart;
        }
    }
    return own;
}

template <int NUMBERS, int WIDTH, typename Exists>
__device__ __forceinline__ ColumnMoments<WIDTH> moments_of(const float (&x)[NUMBERS][WIDTH], const Exists& exists) {
    float count = 0.0f;
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) count += exists(i) ? 1.0f : 0.0f;
    return moments_of(x, count, count != 0.0f ? 1.0f / count : 0.0f, exists);
}

// Combines the moments of threads that have the same columns and stand `across` apart, those of the first `phases`
// times `across` threads: of all in the first `across`, which it returns. All SIZE threads of the block call it; a
// count of zero takes no part. shared: (2 * WIDTH + 1) * SIZE / 2 floats, free before and after.
template <int WIDTH, int SIZE>
__device__ __forceinline__ void gather_below(ColumnMoments<WIDTH>& own, int across, int phases, float* shared) {
    constexpr int HALF = SIZE / 2;
    const int thread = threadIdx.x;
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
}
