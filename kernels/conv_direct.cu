// Convolution, the first rung: one thread computes one element, straight from the definition in bp/ops/conv.py.
//
// Neighbouring threads have neighbouring channels, so what they read lies side by side, and the windows that overlap
// meet in the cache. It is what the tiled kernels are compared with, and the faster one where a group has few channels,
// as in a depthwise convolution: a tile would multiply zeros. Names of the sizes are as in conv_tiled.cu.
#include "convolution.cuh"
#include "gemm_tile.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
constexpr int LINES = THREADS / WARP;

__device__ __forceinline__ float product(float a, float b, bool tf32) {
    return tf32 ? rounded_to_tf32(a) * rounded_to_tf32(b) : a * b;
}

extern "C" __global__ __launch_bounds__(THREADS, 3) void direct_forward(const T* x, const T* weight,
                                                                        EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS) {
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 group_in = channels / groups, group_out = out / groups;
    grid_stride(images * p * q * out, [&](int64 index) {
        const Quotient pixel = divide(index, out), line = divide(pixel.quotient, q), image = divide(line.quotient, p);
        const int64 o = pixel.remainder, first = divide(o, group_out).quotient * group_in;
        const int row = static_cast<int>(image.remainder) * stride_h - top;
        const int column = static_cast<int>(line.remainder) * stride_w - left;
        float sum[1] = {0.0f};
        for (int u = 0; u < kh; ++u)
            for (int v = 0; v < kw; ++v) {
                const int i = row + u * dilation_h, j = column + v * dilation_w;
                const bool inside = i >= 0 && i < h && j >= 0 && j < w;
                const T* const at = x + ((image.quotient * h + i) * w + j) * channels + first;
                const T* const factor = weight + ((o * kh + u) * kw + v) * group_in;
                // The padding takes part in the sum: zero times an infinite weight is NaN.
                for (int64 c = 0; c < group_in; ++c)
                    sum[0] += product(inside ? to_float(at[c]) : 0.0f, to_float(factor[c]), tf32);
            }
        epilogue.store(index, index, o, sum);
    });
}

extern "C" __global__ __launch_bounds__(THREADS, 3) void direct_backward_input(
    const T* dy, const T* weight, EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS) {
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const int64 group_in = channels / groups, group_out = out / groups;
    grid_stride(images * h * w * channels, [&](int64 index) {
        const Quotient pixel = divide(index, channels), channel = divide(pixel.remainder, group_in);
        const Quotient line = divide(pixel.quotient, w), image = divide(line.quotient, h);
        const int64 first = channel.quotient * group_out;
        const int row = static_cast<int>(image.remainder) + top, column = static_cast<int>(line.remainder) + left;
        float sum[1] = {0.0f};
        for (int u = 0; u < kh; ++u)
            for (int v = 0; v < kw; ++v) {
                // The output pixel (i, j) reads this one through tap (u, v), if there is such a pixel.
                const int i = (row - u * dilation_h) / stride_h, j = (column - v * dilation_w) / stride_w;
                const bool exists = i * stride_h + u * dilation_h == row && j * stride_w + v * dilation_w == column;
                if (!exists || i < 0 || j < 0 || i >= p || j >= q) continue;
                const T* const at = dy + ((image.quotient * p + i) * q + j) * out + first;
                const T* const turned = weight + ((first * kh + u) * kw + v) * group_in + channel.remainder;
                for (int64 o = 0; o < group_out; ++o)
                    sum[0] += product(to_float(at[o]), to_float(turned[o * kh * kw * group_in]), tf32);
            }
        epilogue.store(index, index, pixel.remainder, sum);
    });
}

// The pixels of y are cut in parts of `part`, one for each blockIdx.y; C, which is dW, has a place for each. blockIdx.x
// counts the taps, and in each of them the blocks whose lanes share its out * in / groups weights, neighbours beside
// each other. A block's warps take every LINES-th pixel of the part, and warp 0 adds what they found.
extern "C" __global__ __launch_bounds__(THREADS) void direct_backward_parameters(
    const T* dy, const T* x, EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS, int64 part) {
    __shared__ float found[LINES][WARP];
    const int64 group_in = channels / groups, group_out = out / groups;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 lanes = out * group_in;
    const Quotient tap = divide(blockIdx.x, divide_up(lanes, WARP));
    const int64 index = tap.remainder * WARP + lane;
    const Quotient weight = divide(index < lanes ? index : 0, group_in);
    const int row = static_cast<int>(tap.quotient) / kw * dilation_h - top;
    const int column = static_cast<int>(tap.quotient) % kw * dilation_w - left;
    const int64 o = weight.quotient, c = divide(o, group_out).quotient * group_in + weight.remainder;
    const int64 pixels = images * p * q, end = smaller((blockIdx.y + 1) * part, pixels);
    float sum[1] = {0.0f};
    for (int64 pixel = blockIdx.y * part + warp; pixel < end; pixel += LINES) {
        const Quotient line = divide(pixel, q), image = divide(line.quotient, p);
        const int i = static_cast<int>(image.remainder) * stride_h + row;
        const int j = static_cast<int>(line.remainder) * stride_w + column;
        const bool inside = i >= 0 && i < h && j >= 0 && j < w;
        const float factor = inside ? to_float(x[((image.quotient * h + i) * w + j) * channels + c]) : 0.0f;
        sum[0] += product(to_float(dy[pixel * out + o]), factor, tf32);
    }
    found[warp][lane] = sum[0];
    __syncthreads();
    if (warp != 0 || index >= lanes) return;
#pragma unroll
    for (int other = 1; other < LINES; ++other) sum[0] += found[other][lane];
    const int64 place = (o * kh * kw + tap.quotient) * group_in + weight.remainder;
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    epilogue.store(blockIdx.y * lanes * kh * kw + place, place, 0, sum);
}
