// Convolution by the float32 product without tensor cores: its operands are read from the images as they are
// multiplied.
//
// The three products are those of conv_tiled.cu, by the same operands:
//
//   simt_forward:             y (pixels of y, out)  = patches of x (pixels of y, taps in) W^T
//   simt_backward_input:      dx (pixels of x, in)  = patches of dy (pixels of x, taps out) W, for each Residue
//   simt_backward_parameters: dW (out, taps in)     = dy^T patches of x, and the sums of dy's columns: db
//
// blockIdx.x is the tile, blockIdx.y the part of the depth, blockIdx.z the group.
//
// Images add to the instructions of a slice (simt_tile.cuh) the bounds of four pixels and the way to the next tap or
// pixel: 57 in the forward pass, 133 for the data gradient, whose weights are turned as well, 77 for that of the
// weights. With all of a slice unrolled, as it is here, the limits are 88%, 86% and 88%.
#include "conv_operands.cuh"
#include "simt_tile.cuh"
#include "tile_moments.cuh"
#include "tile_order.cuh"

// All of a slice is unrolled: where pixels lie takes the registers that a loop would.
using Shape = SimtShape<ROWS, COLUMNS, ALIGNMENT, 16>;
static_assert(THREADS == Shape::threads, "a thread for each lane of the warps");

constexpr int GATHERED = 16;  // rows of a column whose moments are gathered at once; they follow each other in C

// moments (null: not wanted): those of y's columns, a tile for each ROWS pixels; where the depth is not cut and the
// epilogue is a bias or nothing.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void simt_forward(const T* x, const T* weight,
                                                                           EPILOGUE_PARAMETERS, float* moments,
                                                                           CONVOLUTION_PARAMETERS, int64 part) {
    typedef SimtTile<Shape, true, true> Tile;
    alignas(16) __shared__ float memory[Tile::MEMORY];
    const int64 group = blockIdx.z, group_in = channels / groups, group_out = out / groups;
    const int64 pixels = images * p * q, depth = kh * kw * group_in, begin = blockIdx.y * part;
    const Patches<T> patches = windows_of(x, {CONVOLUTION_ARGUMENTS}, group, group_in);
    const Matrix<T> weights(weight + group * group_out * depth, group_out, depth, depth);
    const TileOrder place(pixels, group_out, ROWS, COLUMNS);
    Tile tile;
    tile.multiply(patches, weights, place.row, place.column, begin, smaller(begin + part, depth), memory);
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * pixels * out;  // of this block's part
    const auto store = [&](int64 pixel, int64 column, const auto& sums) {
        const int64 channel = group * group_out + column, index = pixel * out + channel;
        epilogue.store(behind + index, index, channel, sums);
    };
    // A thread gathers the moments of one column.
    const int64 channel = group * group_out + place.column + threadIdx.x;
    const bool gathers = moments != nullptr && threadIdx.x < COLUMNS && place.column + threadIdx.x < group_out;
    ColumnMoments<1> own;
    float pivot[1] = {0.0f};
    tile.store(memory, place.row, place.column, pixels, group_out, epilogue.vectors(group_out, out), store,
               [&](int64 row) {
                   if (!gathers) return;
#pragma unroll 1
                   for (int line = 0; line < ROWS / 2; line += GATHERED) {
                       float stored[GATHERED][1];
#pragma unroll
                       for (int i = 0; i < GATHERED; ++i)
                           stored[i][0] = as_stored(memory[(line + i) * COLUMNS + threadIdx.x], bias, channel);
                       const int64 first = row + Tile::row_of(line);
                       if (own.count == 0.0f) pivot[0] = pivot_of(stored[0][0]);
                       const ColumnMoments<1> some =
                           moments_of(stored, pivot, [&](int i) { return first + i < pixels; });
                       own.add(some.count, some.mean, some.spread);
                   }
               });
    if (!gathers) return;
    const TileMoments to{moments, divide_up(pixels, ROWS), out};
    to.store(place.row / ROWS, channel, pivot[0], own.mean[0], own.spread[0]);
    if (threadIdx.x == 0 && group == 0 && place.column == 0) to.store_rows(place.row / ROWS, own.count);
}

// blockIdx.z counts the stride_h stride_w classes of pixels as well: each has its own taps and pixels. period: that of
// Residue. C is dx, its columns the input channels: a bias is that of the transposed convolution. Where a window
// reaches beyond dy it sees zeros, which an infinite weight turns into NaN; the definition has no such term.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void simt_backward_input(
    const T* dy, const T* weight, EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS, int period_h, int period_w, int64 part) {
    typedef SimtTile<Shape, true, false> Tile;
    alignas(16) __shared__ float memory[Tile::MEMORY];
    const int64 group = blockIdx.z % groups;
    const int64 group_in = channels / groups, group_out = out / groups;
    const Convolution of{CONVOLUTION_ARGUMENTS};
    const PixelClass own(static_cast<int>(blockIdx.z) / groups, of, period_h, period_w);
    if (own.pixels == 0) return;
    const TileOrder place(own.pixels, group_in, ROWS, COLUMNS);
    if (place.row >= own.pixels || place.column >= group_in) return;  // another class has more pixels
    const int64 depth = own.vertical.axis.taps * own.horizontal.axis.taps * group_out, begin = blockIdx.y * part;
    const Patches<T> patches = windows_of(dy, of, own, group, group_out);
    const TurnedWeights<T> weights(weight + group * group_out * kh * kw * group_in, group_out, kh, kw, group_in,
                                   own.vertical, own.horizontal);
    Tile tile;
    tile.multiply(patches, weights, place.row, place.column, begin, smaller(begin + part, depth), memory);
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * images * h * w * channels;  // of this block's part
    tile.store(memory, place.row, place.column, own.pixels, group_in, epilogue.vectors(group_in, channels),
               [&](int64 pixel, int64 column, const auto& sums) {
                   const int64 channel = group * group_in + column, index = own.place(pixel, of) * channels + channel;
                   epilogue.store(behind + index, index, channel, sums);
               });
}

// column_sums (null: not wanted): the sums of dy's columns, as in simt_tn. Parts have theirs behind their part of dW.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void simt_backward_parameters(
    const T* dy, const T* x, EPILOGUE_PARAMETERS, float* column_sums, CONVOLUTION_PARAMETERS, int64 part) {
    typedef SimtTile<Shape, false, false, true> Tile;
    alignas(16) __shared__ float memory[Tile::MEMORY];
    const int64 group = blockIdx.z, group_in = channels / groups, group_out = out / groups;
    const int64 pixels = images * p * q, columns = kh * kw * group_in, begin = blockIdx.y * part;
    const Matrix<T> gradients(dy + group * group_out, pixels, group_out, out);
    const Patches<T> patches = windows_of(x, {CONVOLUTION_ARGUMENTS}, group, group_in);
    const TileOrder place(group_out, columns, ROWS, COLUMNS);
    const bool wanted = column_sums != nullptr && place.column == 0;
    Tile tile;
    tile.multiply(gradients, patches, place.row, place.column, begin, smaller(begin + part, pixels), memory, wanted);
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * (out * columns + (column_sums != nullptr ? out : 0));
    const bool vectors = epilogue.vectors(columns, columns) && behind % 4 == 0;
    tile.store(memory, place.row, place.column, group_out, columns, vectors,
               [&](int64 row, int64 column, const auto& sums) {
                   const int64 index = (group * group_out + row) * columns + column;
                   epilogue.store(behind + index, index, column, sums);
               });
    if (wanted)
        tile.store_columns(place.row, group_out, [&](int64 row, float sum) {
            float* const at = column_sums + behind + group * group_out + row;
            *at = beta != 0.0f ? beta * *at + sum : sum;
        });
}
