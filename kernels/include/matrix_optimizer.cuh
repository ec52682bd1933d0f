// What the kernels of Adafactor and Muon share: parts of a matrix, and the scaled gradient of Adafactor.
#pragma once
#include "optimizer.cuh"
#include "sum_double.cuh"

constexpr int WARPS = 8;
constexpr int COLUMNS = 128;  // of the part of a matrix that a block has; it has `band` rows, a warp one of them at a time
constexpr int LANE_COLUMNS = COLUMNS / WARP;

__device__ __forceinline__ Settings settings_of_step(const float* settings, const double* control) {
    return Settings(settings, static_cast<float>(control[LEARNING_RATE]), static_cast<float>(control[GRADIENT_SCALE]));
}

// The part of a matrix that a block has: blocks go along the columns first.
struct Part {
    int64 first_row, end_row, first_column, columns;
    int64 tile, band;  // which part it is, along the columns and along the rows

    __device__ __forceinline__ Part(int64 rows, int64 all_columns, int64 band_rows) {
        const int64 tiles = (all_columns + COLUMNS - 1) / COLUMNS;
        tile = blockIdx.x % tiles;
        band = blockIdx.x / tiles;
        first_row = band * band_rows;
        end_row = min(first_row + band_rows, rows);
        first_column = tile * COLUMNS;
        columns = min(static_cast<int64>(COLUMNS), all_columns - first_column);
    }

    // Calls body(row, column, k) for the elements of this thread, where k < LANE_COLUMNS tells its columns apart, and
    // after each row end_row(row), which the whole warp reaches.
    template <typename Body, typename EndRow>
    __device__ __forceinline__ void each(Body body, EndRow end) const {
        for (int64 row = first_row + threadIdx.x / WARP; row < end_row; row += WARPS) {
#pragma unroll
            for (int k = 0; k < LANE_COLUMNS; ++k) {
                const int64 column = threadIdx.x % WARP + k * WARP;
                if (column < columns) body(row, first_column + column, k);
            }
            end(row);
        }
    }
};

// u = g / sqrt(v) of an element; NaN stays.
struct Scaled {
    const float *row_means, *column_means;
    float per_row_mean, least;  // 1 / max(mean of the row means, eps1); the least v

    __device__ __forceinline__ float operator()(float g, int64 row, int64 column) const {
        float v = column_means[column];
        if (row_means != nullptr) v *= row_means[row] * per_row_mean;
        return g / sqrtf(v < least ? least : v);
    }
};

// A v of zero must not divide a gradient of zero, so the least is a normal float.
__device__ __forceinline__ Scaled scaled_by(const float* row_means, const float* column_means, const double* mean_sums,
                                            int64 mean_parts, int64 rows, double eps1, double* scratch) {
    constexpr double SMALLEST = 1.17549435082228750797e-38;
    double mean = 1.0;
    if (row_means != nullptr) mean = block_total(mean_sums, mean_parts, scratch) / static_cast<double>(rows);
    const double least = eps1 * eps1;
    return {row_means, column_means, static_cast<float>(1.0 / (mean < eps1 ? eps1 : mean)),
            static_cast<float>(least < SMALLEST ? SMALLEST : least)};
}
