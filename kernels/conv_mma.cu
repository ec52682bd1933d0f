// Convolution, the rung of mma.sync: the matrix products of conv_tiled.cu in tiles on tensor cores, their operands
// copied from the images into shared memory as they are needed.
//
//   mma_forward:             y (pixels of y, out)  = patches of x (pixels of y, taps in) W^T
//   mma_backward_input:      dx (pixels of x, in)  = patches of dy (pixels of x, taps out) W, for each Residue
//   mma_backward_parameters: dW (out, taps in)     = dy^T patches of x, and the sums of dy's columns: db
//
// blockIdx.x is the tile, blockIdx.y the part of the depth, blockIdx.z the group. A group has whole pieces of ALIGNMENT
// bytes of channels, so that none lies under two taps.
#include "conv_walk.cuh"
#include "registers.cuh"
#include "tile_moments.cuh"
#include "tile_order.cuh"

using Shape = TileShape<ROWS, COLUMNS, DOWN, ACROSS, SLICE, STAGES, ALIGNMENT>;
static_assert(THREADS == Shape::threads, "a thread for each lane of the warps");
constexpr int DEEP = SLICE / sizeof(T);  // elements of the depth in a slice
// A data gradient in tiles of 128 x 64 has no registers left beside two other blocks.
constexpr int BLOCKS_BACK = ROWS < 128 || BLOCKS < 3 ? BLOCKS : 2;
using Taps = FilledTaps<DEEP>;
constexpr bool FILLED = ALIGNMENT == 16;  // every tap, to whole slices (conv_walk.cuh); else taps follow each other
static_assert(DOWN * (1 + 3 * COLUMNS) * 4 <= Shape::stages * Shape::stage, "moments pass where the slices were");
static_assert(DOWN * ACROSS * Slab<Shape::warp_columns>::BYTES + ROWS * 4 <= Shape::stages * Shape::stage,
              "and so do results, and the pixels of rows");

// The moments of the columns of a tile, from the sums in the registers of its warps: down the fragments of a thread,
// then over the 8 lanes that have the same columns, then over the warps below each other. memory: that of the tile.
//
// All columns have equally many rows, so the weights by which lanes are combined (moments.cuh) are computed once. Lanes
// of a warp take the first row of the warp for the pivot, so that one shuffle brings it; that of the tile is the first
// warp's.
template <typename Tile>
__device__ __forceinline__ void store_moments(const Tile& tile, unsigned char* memory, const TileMoments& to,
                                              const T* bias, const TileOrder& place, int64 first_channel, int64 rows,
                                              int64 columns) {
    constexpr int COUNT = 2 * Tile::FRAGMENTS, ROUNDS = 3;
    const int lane = threadIdx.x % WARP, down = Tile::warp_down(), across = Tile::warp_across() * Shape::warp_columns;
    const int64 row = place.row + down * Shape::warp_rows + lane / 4;
    float count = 0.0f, weight[ROUNDS], factor[ROUNDS];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) count += row + 8 * i < rows ? 1.0f : 0.0f;
    const float own_count = count, inverse_count = count != 0.0f ? 1.0f / count : 0.0f;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const float other = __shfl_down_sync(ALL_LANES, count, 16 >> round), total = count + other;
        weight[round] = other == 0.0f ? 0.0f : other / total;
        factor[round] = count * weight[round];
        count = total;
    }
    float* const counts = reinterpret_cast<float*>(memory);  // of the warps below each other
    float* const means = counts + DOWN + down * 3 * COLUMNS;
    if (lane == 0 && across == 0) counts[down] = count;
#pragma unroll
    for (int j = 0; j < 2 * Tile::PAIRS; ++j) {
        const int first = across + 8 * j + 2 * (lane % 4);
        float stored[COUNT][2], pivot[2];
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const int64 column = place.column + first + k;
                stored[i][k] = as_stored(tile.sums[i / 2][j][2 * (i % 2) + k], column < columns ? bias : nullptr,
                                         first_channel + column);
            }
#pragma unroll
        for (int k = 0; k < 2; ++k) pivot[k] = pivot_of(__shfl_sync(ALL_LANES, stored[0][k], lane % 4));
        ColumnMoments<2> own =
            moments_of(stored, pivot, own_count, inverse_count, [&](int i) { return row + 8 * i < rows; });
#pragma unroll
        for (int k = 0; k < 2; ++k) {
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                const float distance = __shfl_down_sync(ALL_LANES, own.mean[k], 16 >> round) - own.mean[k];
                const float spread = __shfl_down_sync(ALL_LANES, own.spread[k], 16 >> round);
                // Lanes without a row have no moments: nothing of them takes part.
                if (weight[round] == 0.0f) continue;
                own.mean[k] += distance * weight[round];
                own.spread[k] += spread + distance * distance * factor[round];
            }
            if (lane >= 4) continue;
            means[first + k] = own.mean[k];
            means[COLUMNS + first + k] = own.spread[k];
            means[2 * COLUMNS + first + k] = pivot[k];
        }
    }
    __syncthreads();
    for (int column = threadIdx.x; column < COLUMNS && place.column + column < columns; column += THREADS) {
        const float pivot = counts[DOWN + 2 * COLUMNS + column];
        Moments all;
#pragma unroll
        for (int i = 0; i < DOWN; ++i) {
            const float* const found = counts + DOWN + i * 3 * COLUMNS + column;
            all.add({counts[i], found[2 * COLUMNS] - pivot + found[0], found[COLUMNS]});
        }
        const int64 channel = first_channel + place.column + column;
        to.store(place.row / ROWS, channel, pivot, all.mean, all.spread);
        if (channel == 0) to.store_rows(place.row / ROWS, all.count);
    }
}

// moments (null: not wanted): those of y's columns, a tile for each ROWS pixels; where the depth is not cut and the
// epilogue is a bias or nothing.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void mma_forward(const T* x, const T* weight,
                                                                          EPILOGUE_PARAMETERS, float* moments,
                                                                          CONVOLUTION_PARAMETERS, int64 part) {
    DYNAMIC_SHARED(unsigned char, memory);
    __shared__ Tap table[MOST_TAPS];
    const int group = blockIdx.z, pixels = images * p * q;
    MmaTile<T, Shape, true, true> tile;
    {
        const int group_in = static_cast<int>(channels) / groups, group_out = static_cast<int>(out) / groups;
        const int64 depth = static_cast<int64>(kh) * kw * group_in, begin = blockIdx.y * part;
        const Patches<T> patches = windows_of(x, {CONVOLUTION_ARGUMENTS}, group, group_in);
        const T* const of_group = weight + static_cast<int64>(group) * group_out * depth;
        const TileOrder place(pixels, group_out, ROWS, COLUMNS);
        if constexpr (FILLED) {
            Taps taps(table, begin, group_in, patches.height, patches.width,
                      [&](int u, int v) { return (u * kw + v) * group_in; });
            const FilledPatches<T, DEEP> left_factor{patches, taps, begin};
            const FilledWeights<T, DEEP> right_factor{of_group, group_out, static_cast<int>(depth), taps, begin};
            const int64 end = smaller(begin + part, taps.depth());
            tile.multiply(left_factor, right_factor, place.row, place.column, begin, end, memory);
        } else {
            const Matrix<T> matrix(of_group, group_out, depth, depth);
            tile.multiply(patches, matrix, place.row, place.column, begin, smaller(begin + part, depth), memory);
        }
    }
    // Computed again, so that it had no registers until here.
    const int group_out = forgotten(out) / groups;
    const TileOrder place(forgotten(pixels), group_out, ROWS, COLUMNS);
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * pixels * out;  // of this block's part
    tile.store(memory, place.row, place.column, pixels, group_out, epilogue.vectors(group_out, out),
               [&](int64 pixel, int64 column, const auto& sums) {
                   const int64 channel = group * group_out + column, index = pixel * out + channel;
                   epilogue.store(behind + index, index, channel, sums);
               });
    if (moments == nullptr) return;
    __syncthreads();
    store_moments(tile, memory, {moments, (pixels + ROWS - 1) / ROWS, out}, bias, place, group * group_out, pixels,
                  group_out);
}

// blockIdx.z counts the group and the class. period: that of Residue. C is dx, its columns the input channels: a bias
// is that of the transposed convolution. Where a window reaches beyond dy it sees zeros, which an infinite weight turns
// into NaN; the definition has no such term.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS_BACK) void mma_backward_input(
    const T* dy, const T* weight, EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS, int period_h, int period_w, int64 part) {
    DYNAMIC_SHARED(unsigned char, memory);
    const Convolution of{CONVOLUTION_ARGUMENTS};
    __shared__ Tap table[MOST_TAPS];
    MmaTile<T, Shape, true, false> tile;
    {
        const int group = blockIdx.z % groups;
        const PixelClass own(static_cast<int>(blockIdx.z) / groups, of, period_h, period_w);
        const int pixels = static_cast<int>(own.pixels);
        if (pixels == 0) return;
        const int group_in = static_cast<int>(channels) / groups, group_out = static_cast<int>(out) / groups;
        const int64 begin = blockIdx.y * part;
        const TileOrder place(pixels, group_in, ROWS, COLUMNS);
        if (place.row >= pixels || place.column >= group_in) return;  // another class has more pixels
        const Patches<T> patches = windows_of(dy, of, own, group, group_out);
        const int filter = kh * kw * group_in;  // elements
        const T* const of_group = weight + static_cast<int64>(group) * group_out * filter;
        if constexpr (FILLED) {
            Taps taps(table, begin, group_out, own.vertical.axis, own.horizontal.axis, [&](int u, int v) {
                const int down = own.vertical.first_tap + u * own.vertical.period;
                return (down * kw + own.horizontal.first_tap + v * own.horizontal.period) * group_in;
            });
            const FilledPatches<T, DEEP> left_factor{patches, taps, begin};
            const FilledTurnedWeights<T, DEEP> right_factor{of_group, filter, group_in, taps, begin};
            const int64 end = smaller(begin + part, taps.depth());
            tile.multiply(left_factor, right_factor, place.row, place.column, begin, end, memory);
        } else {
            const TurnedWeights<T> weights(of_group, group_out, kh, kw, group_in, own.vertical, own.horizontal);
            const int64 depth = static_cast<int64>(own.vertical.axis.taps) * own.horizontal.axis.taps * group_out;
            tile.multiply(patches, weights, place.row, place.column, begin, smaller(begin + part, depth), memory);
        }
    }
    // Computed again, so that none of it had a register until here.
    const int z = forgotten(blockIdx.z), group = z % groups;
    const PixelClass own(z / groups, of, period_h, period_w);
    const int group_in = forgotten(channels) / groups;
    const int count = static_cast<int>(own.pixels);
    const TileOrder place(count, group_in, ROWS, COLUMNS);
    // Which pixels of dx the rows of the tile are, behind the slabs that results pass through.
    uint32* const pixels = reinterpret_cast<uint32*>(memory + Shape::stages * Shape::stage) - ROWS;
    for (int i = threadIdx.x; i < ROWS; i += THREADS) pixels[i] = own.place(static_cast<uint32>(place.row) + i, of);
    __syncthreads();
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * images * h * w * channels;  // of this block's part
    tile.store(memory, place.row, place.column, count, group_in, epilogue.vectors(group_in, channels),
               [&](int64 row, int64 column, const auto& sums) {
                   const int64 channel = group * group_in + column;
                   const int64 index = static_cast<int64>(pixels[row - place.row]) * channels + channel;
                   epilogue.store(behind + index, index, channel, sums);
               });
}

// column_sums (null: not wanted): the sums of dy's columns, as in mma_tn. Parts have theirs behind their part of dW.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS_WITH_SUMS) void mma_backward_parameters(
    const T* dy, const T* x, EPILOGUE_PARAMETERS, float* column_sums, CONVOLUTION_PARAMETERS, int64 part) {
    DYNAMIC_SHARED(unsigned char, memory);
    const int group = blockIdx.z;
    constexpr bool SUMS = is_16_bit<T>::value;
    MmaTile<T, Shape, false, false, SUMS> tile;
    {
        const int group_in = static_cast<int>(channels) / groups, group_out = static_cast<int>(out) / groups;
        const int64 begin = blockIdx.y * part, pixels = images * p * q;
        const Matrix<T> gradients(dy + group * group_out, pixels, group_out, out);
        const Patches<T> patches = windows_of(x, {CONVOLUTION_ARGUMENTS}, group, group_in);
        const Windows<T> windows{patches, static_cast<int>(images)};
        const TileOrder place(group_out, kh * kw * group_in, ROWS, COLUMNS);
        const bool wanted = SUMS && column_sums != nullptr && place.column == 0;
        const int64 end = smaller(begin + part, pixels);
        tile.multiply(gradients, windows, place.row, place.column, begin, end, memory, wanted);
    }
    // Computed again, so that it had no registers until here.
    const int group_out = forgotten(out) / groups, columns = forgotten(kh) * kw * (forgotten(channels) / groups);
    const TileOrder place(group_out, columns, ROWS, COLUMNS);
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * (out * columns + (column_sums != nullptr ? out : 0));
    const bool vectors = epilogue.vectors(columns, columns) && behind % 4 == 0;
    tile.store(memory, place.row, place.column, group_out, columns, vectors,
               [&](int64 row, int64 column, const auto& sums) {
                   const int64 index = (group * group_out + row) * columns + column;
                   epilogue.store(behind + index, index, column, sums);
               });
    if constexpr (SUMS) {
        if (column_sums != nullptr && place.column == 0)
            tile.store_columns(place.row, group_out, [&](int64 row, float sum) {
                float* const at = column_sums + behind + group * group_out + row;
                *at = beta != 0.0f ? beta * *at + sum : sum;
            });
    }
}
