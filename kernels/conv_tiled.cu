// Convolution by the tiled matrix product: its operands are read from the images as they are multiplied.
//
// Images are (N, H, W, C), weights (out, kh, kw, in / groups); h, w are sizes of the input and p, q of the output. The
// three products of one group, with the pixels of all images in a row:
//
//   conv_forward:             y (pixels of y, out)  = patches of x (pixels of y, taps in) W^T
//   conv_backward_input:      dx (pixels of x, in)  = patches of dy (pixels of x, taps out) W, for each Residue
//   conv_backward_parameters: dW (out, taps in)     = dy^T patches of x
//
// blockIdx.x is the tile, blockIdx.y the part of the depth (parts are `part` long; see linear_tiled.cu; `stride` apart
// in wide), blockIdx.z the group.
#include "conv_operands.cuh"
#include "tile_moments.cuh"

constexpr int THREADS = 256;
static_assert(THREADS == MICROS * MICROS, "a thread for each micro-tile");
static_assert(sizeof(Tiles<T>) >= (2 * MICRO + 1) * THREADS / 2 * sizeof(float), "moments pass where the slices were");

// moments (null: not wanted): those of y's columns, a tile for each TILE pixels; where the depth is not cut and the
// epilogue is a bias or nothing.
extern "C" __global__ __launch_bounds__(THREADS, 2) void conv_forward(const T* x, const T* weight, EPILOGUE_PARAMETERS,
                                                                      float* moments, CONVOLUTION_PARAMETERS,
                                                                      int64 part) {
    __shared__ Tiles<T> tiles;
    const int64 group = blockIdx.z, group_in = channels / groups, group_out = out / groups;
    const int64 pixels = images * p * q, depth = kh * kw * group_in, begin = blockIdx.y * part;
    const Patches<T> patches = windows_of(x, {CONVOLUTION_ARGUMENTS}, group, group_in);
    const Matrix<T> weights(weight + group * group_out * depth, group_out, depth, depth);
    const TilePlace place(group_out);
    Micro sum;
    multiply_tile<true, true, T>(patches, weights, place.row, place.column, begin, smaller(begin + part, depth), tf32,
                                 tiles, sum, [] {});
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * pixels * out;  // of this block's part
    store_tile(sum, place.row, place.column, pixels, group_out, [&](int64 pixel, int64 column, float value) {
        const int64 channel = group * group_out + column, index = pixel * out + channel;
        const float one[1] = {value};
        epilogue.store(behind + index, index, channel, one);
    });
    if (moments == nullptr) return;
    const int64 row = place.row + threadIdx.x / MICROS * MICRO, column = place.column + threadIdx.x % MICROS * MICRO;
    float stored[MICRO][MICRO], pivot[MICRO];
#pragma unroll
    for (int i = 0; i < MICRO; ++i)
#pragma unroll
        for (int j = 0; j < MICRO; ++j)
            stored[i][j] = as_stored(sum.at[i][j], column + j < group_out ? bias : nullptr,
                                     group * group_out + column + j);
    const auto exists = [&](int i) { return row + i < pixels; };
    const ColumnMoments<MICRO> own =
        moments_of_tile<THREADS>(stored, pivot, exists, MICROS, MICROS, reinterpret_cast<float*>(&tiles));
    const TileMoments to{moments, divide_up(pixels, TILE), out};
    if (threadIdx.x == 0 && group == 0 && place.column == 0) to.store_rows(place.row / TILE, own.count);
    if (threadIdx.x >= MICROS) return;
#pragma unroll
    for (int j = 0; j < MICRO; ++j)
        if (column + j < group_out)
            to.store(place.row / TILE, group * group_out + column + j, pivot[j], own.mean[j], own.spread[j]);
}

// blockIdx.z counts the stride_h stride_w classes of pixels as well: each has its own taps and pixels. period: that of
// Residue. C is dx, its columns the input channels: a bias is that of the transposed convolution. Where a window
// reaches beyond dy it sees zeros, which an infinite weight turns into NaN; the definition has no such term.
extern "C" __global__ __launch_bounds__(THREADS, 2) void conv_backward_input(
    const T* dy, const T* weight, EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS, int period_h, int period_w, int64 part) {
    __shared__ Tiles<T> tiles;
    const int64 group = blockIdx.z % groups;
    const int64 group_in = channels / groups, group_out = out / groups;
    const Convolution of{CONVOLUTION_ARGUMENTS};
    const PixelClass own(static_cast<int>(blockIdx.z) / groups, of, period_h, period_w);
    const TilePlace place(group_in);
    if (place.row >= own.pixels) return;  // another class has more pixels
    const int64 depth = own.vertical.axis.taps * own.horizontal.axis.taps * group_out, begin = blockIdx.y * part;
    const Patches<T> patches = windows_of(dy, of, own, group, group_out);
    const TurnedWeights<T> weights(weight + group * group_out * kh * kw * group_in, group_out, kh, kw, group_in,
                                   own.vertical, own.horizontal);
    Micro sum;
    multiply_tile<true, false, T>(patches, weights, place.row, place.column, begin, smaller(begin + part, depth), tf32,
                                  tiles, sum, [] {});
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 behind = blockIdx.y * images * h * w * channels;  // of this block's part
    store_tile(sum, place.row, place.column, own.pixels, group_in, [&](int64 pixel, int64 column, float value) {
        const int64 channel = group * group_in + column, index = own.place(pixel, of) * channels + channel;
        const float one[1] = {value};
        epilogue.store(behind + index, index, channel, one);
    });
}

// sums (null: not wanted): the sums of dy's columns, as in gemm_tn. Parts have theirs behind their part of dW.
extern "C" __global__ __launch_bounds__(THREADS, 2) void conv_backward_parameters(
    const T* dy, const T* x, EPILOGUE_PARAMETERS, float* sums, CONVOLUTION_PARAMETERS, int64 part) {
    __shared__ Tiles<T> tiles;
    const int64 group = blockIdx.z, group_in = channels / groups, group_out = out / groups;
    const int64 pixels = images * p * q, columns = kh * kw * group_in, begin = blockIdx.y * part;
    const Matrix<T> gradients(dy + group * group_out, pixels, group_out, out);
    const Patches<T> patches = windows_of(x, {CONVOLUTION_ARGUMENTS}, group, group_in);
    const TilePlace place(columns);
    const bool adds = sums != nullptr && place.column == 0 && threadIdx.x < TILE;
    float total = 0.0f;
    Micro sum;
    multiply_tile<false, false, T>(gradients, patches, place.row, place.column, begin, smaller(begin + part, pixels),
                                   tf32, tiles, sum, [&] {
                                       if (adds) total += row_sum<T>(tiles, threadIdx.x);
                                   });
    const int64 behind = blockIdx.y * (out * columns + (sums != nullptr ? out : 0));
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    store_tile(sum, place.row, place.column, group_out, columns, [&](int64 row, int64 column, float value) {
        const int64 index = (group * group_out + row) * columns + column;
        const float one[1] = {value};
        epilogue.store(behind + index, index, column, one);
    });
    const int64 row = place.row + threadIdx.x;
    if (!adds || row >= group_out) return;
    float* const at = sums + behind + group * group_out + row;
    *at = beta != 0.0f ? beta * *at + total : total;
}
