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
#include "epilogue.cuh"

constexpr int THREADS = 256;
static_assert(THREADS == MICROS * MICROS, "a thread for each micro-tile");

extern "C" __global__ __launch_bounds__(THREADS, 2) void conv_forward(
    const T* x, const T* weight, const T* bias, T* y, float* wide, int64 images, int h, int w, int p, int q,
    int64 channels, int64 out, int kh, int kw, int groups, int stride_h, int stride_w, int top, int left,
    int dilation_h, int dilation_w, int64 part, bool tf32) {
    __shared__ Tiles<T> tiles;
    const int64 group = blockIdx.z, group_in = channels / groups, group_out = out / groups;
    const int64 pixels = images * p * q, depth = kh * kw * group_in, begin = blockIdx.y * part;
    const Patches<T> patches(x + group * group_in, images, {h, p, kh, stride_h, dilation_h, -top},
                             {w, q, kw, stride_w, dilation_w, -left}, channels, group_in);
    const Matrix<T> weights(weight + group * group_out * depth, group_out, depth, depth);
    const TilePlace place(group_out);
    Micro sum;
    multiply_tile<true, true, T>(patches, weights, place.row, place.column, begin, smaller(begin + part, depth), tf32,
                                 tiles, sum, [] {});
    const Epilogue<T> epilogue{bias, nullptr, y, wide != nullptr ? wide + blockIdx.y * pixels * out : nullptr, false,
                               NO_ACTIVATION};
    store_tile(sum, place.row, place.column, pixels, group_out, [&](int64 pixel, int64 column, float value) {
        const int64 channel = group * group_out + column;
        epilogue.store(pixel * out + channel, channel, value);
    });
}

// blockIdx.z counts the stride_h stride_w classes of pixels as well: each has its own taps and pixels. period: that of
// Residue. bias: one for each input channel, for the transposed convolution. Where a window reaches beyond dy it sees
// zeros, which an infinite weight turns into NaN; the definition has no such term.
extern "C" __global__ __launch_bounds__(THREADS, 2) void conv_backward_input(
    const T* dy, const T* weight, const T* bias, T* dx, float* wide, int64 images, int h, int w, int p, int q,
    int64 channels, int64 out, int kh, int kw, int groups, int stride_h, int stride_w, int top, int left,
    int dilation_h, int dilation_w, int period_h, int period_w, int64 part, bool tf32) {
    __shared__ Tiles<T> tiles;
    const int64 group = blockIdx.z % groups;
    const int residue = blockIdx.z / groups;
    const int64 group_in = channels / groups, group_out = out / groups;
    Residue vertical(residue / stride_w, h, p, kh, stride_h, top, dilation_h, period_h);
    Residue horizontal(residue % stride_w, w, q, kw, stride_w, left, dilation_w, period_w);
    // Without a tap along one axis there is none at all; a width of one keeps divisions by it defined.
    if (horizontal.axis.taps == 0) vertical.axis.taps = 0, horizontal.axis.taps = 1;
    const int64 pixels = images * vertical.axis.positions * horizontal.axis.positions;
    const TilePlace place(group_in);
    if (place.row >= pixels) return;  // another class has more pixels
    const int64 depth = vertical.axis.taps * horizontal.axis.taps * group_out, begin = blockIdx.y * part;
    const Patches<T> patches(dy + group * group_out, images, vertical.axis, horizontal.axis, out, group_out);
    const TurnedWeights<T> weights(weight + group * group_out * kh * kw * group_in, group_out, kh, kw, group_in,
                                   vertical, horizontal);
    Micro sum;
    multiply_tile<true, false, T>(patches, weights, place.row, place.column, begin, smaller(begin + part, depth), tf32,
                                  tiles, sum, [] {});
    const Epilogue<T> epilogue{
        bias, nullptr, dx, wide != nullptr ? wide + blockIdx.y * images * h * w * channels : nullptr, false,
        NO_ACTIVATION};
    store_tile(sum, place.row, place.column, pixels, group_in, [&](int64 pixel, int64 column, float value) {
        const Quotient line = divide(pixel, horizontal.axis.positions);
        const Quotient image = divide(line.quotient, vertical.axis.positions);
        const int64 row = vertical.first + image.remainder * stride_h;
        const int64 i = (image.quotient * h + row) * w + horizontal.first + line.remainder * stride_w;
        const int64 channel = group * group_in + column;
        epilogue.store(i * channels + channel, channel, value);
    });
}

// dbias (null: not wanted): the sums of dy's columns, as in gemm_tn. Parts have theirs behind their part of dW.
extern "C" __global__ __launch_bounds__(THREADS, 2) void conv_backward_parameters(
    const T* dy, const T* x, float* dweight, float* dbias, int64 images, int h, int w, int p, int q,
    int64 channels, int64 out, int kh, int kw, int groups, int stride_h, int stride_w, int top, int left,
    int dilation_h, int dilation_w, int64 part, bool accumulate, bool tf32) {
    __shared__ Tiles<T> tiles;
    const int64 group = blockIdx.z, group_in = channels / groups, group_out = out / groups;
    const int64 pixels = images * p * q, columns = kh * kw * group_in, begin = blockIdx.y * part;
    const Matrix<T> gradients(dy + group * group_out, pixels, group_out, out);
    const Patches<T> patches(x + group * group_in, images, {h, p, kh, stride_h, dilation_h, -top},
                             {w, q, kw, stride_w, dilation_w, -left}, channels, group_in);
    const TilePlace place(columns);
    const bool sums = dbias != nullptr && place.column == 0 && threadIdx.x < TILE;
    float total = 0.0f;
    Micro sum;
    multiply_tile<false, false, T>(gradients, patches, place.row, place.column, begin, smaller(begin + part, pixels),
                                   tf32, tiles, sum, [&] {
                                       if (sums) total += row_sum<T>(tiles, threadIdx.x);
                                   });
    const int64 behind = blockIdx.y * (out * columns + (dbias != nullptr ? out : 0));
    const Epilogue<T> epilogue{nullptr, nullptr, nullptr, dweight + behind, accumulate, NO_ACTIVATION};
    store_tile(sum, place.row, place.column, group_out, columns, [&](int64 row, int64 column, float value) {
        epilogue.store((group * group_out + row) * columns + column, 0, value);
    });
    const int64 row = place.row + threadIdx.x;
    if (!sums || row >= group_out) return;
    float* const at = dbias + behind + group * group_out + row;
    *at = accumulate ? *at + total : total;
}
