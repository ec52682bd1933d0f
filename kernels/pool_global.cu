// Global average pooling: the mean over all pixels of an image, channel by channel, and back.
//
// A block is a table of `lanes` columns, each of one group of channels, and THREADS / lanes rows, among which the
// pixels are dealt out; with few channels `lanes` is small, so that a warp still reads one contiguous piece. Each
// thread sums its pixels, then the rows are summed in pairs. A large image is cut into chunks whose sums a second
// launch adds up: one block would take too long for it, and a long sum in float would lose digits.
#include "elements.cuh"
#include "indexing.cuh"

constexpr int THREADS = 256;

// y = factor times the sum over the pixels of each (image, chunk of pixels, channel): (images, pixels, channels) ->
// (images, chunks, channels). scratch: THREADS * WIDTH floats of shared memory.
template <int WIDTH, typename In, typename Out>
__device__ __forceinline__ void sum_pixels(const In* x, Out* y, float* scratch, int64 images, int64 pixels,
                                           int64 channels, int64 chunk, int lanes, float factor) {
    const int64 groups = channels / WIDTH, tiles = divide_up(groups, lanes), chunks = divide_up(pixels, chunk);
    const int rows = THREADS / lanes, row = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    for (int64 task = blockIdx.x; task < images * chunks * tiles; task += gridDim.x) {
        const Quotient part = divide(task, tiles);  // its quotient: image * chunks + chunk
        const Quotient image = divide(part.quotient, chunks);
        const int64 group = part.remainder * lanes + lane;
        const int64 begin = image.remainder * chunk, end = smaller(begin + chunk, pixels);
        Floats<WIDTH> sum = all_of<WIDTH>(0.0f);
        if (group < groups) {
            const In* column = x + image.quotient * pixels * channels + group * WIDTH;
#pragma unroll 4
            for (int64 p = begin + row; p < end; p += rows) add_to(sum, load_floats<WIDTH>(column + p * channels));
        }
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) scratch[k * THREADS + threadIdx.x] = sum.at[k];
        for (int half = rows / 2; half > 0; half /= 2) {
            __syncthreads();
            if (row < half)
#pragma unroll
                for (int k = 0; k < WIDTH; ++k)
                    scratch[k * THREADS + threadIdx.x] += scratch[k * THREADS + threadIdx.x + half * lanes];
        }
        if (row == 0 && group < groups) {  // these threads wrote last what they read here
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) sum.at[k] = scratch[k * THREADS + threadIdx.x] * factor;
            store_floats<WIDTH>(y + part.quotient * channels + group * WIDTH, sum);
        }
        __syncthreads();
    }
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void mean_of_pixels(const T* x, T* y, int64 images, int64 pixels,
                                                                        int64 channels, int lanes) {
    constexpr int V = Vector<T>::size;
    __shared__ float scratch[THREADS * V];
    if (channels % V == 0 && aligned16(x) && aligned16(y))
        sum_pixels<V>(x, y, scratch, images, pixels, channels, pixels, lanes, 1.0f / static_cast<float>(pixels));
    else
        sum_pixels<1>(x, y, scratch, images, pixels, channels, pixels, lanes, 1.0f / static_cast<float>(pixels));
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void sums_of_chunks(const T* x, float* sums, int64 images,
                                                                        int64 pixels, int64 channels, int64 chunk,
                                                                        int lanes) {
    constexpr int V = Vector<T>::size;
    __shared__ float scratch[THREADS * V];
    if (channels % V == 0 && aligned16(x) && aligned16(sums))
        sum_pixels<V>(x, sums, scratch, images, pixels, channels, chunk, lanes, 1.0f);
    else
        sum_pixels<1>(x, sums, scratch, images, pixels, channels, chunk, lanes, 1.0f);
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void mean_of_sums(const float* sums, T* y, int64 images,
                                                                      int64 pixels, int64 channels, int64 chunks,
                                                                      int lanes) {
    constexpr int V = Vector<T>::size;
    __shared__ float scratch[THREADS * V];
    if (channels % V == 0 && aligned16(sums) && aligned16(y))
        sum_pixels<V>(sums, y, scratch, images, chunks, channels, chunks, lanes, 1.0f / static_cast<float>(pixels));
    else
        sum_pixels<1>(sums, y, scratch, images, chunks, channels, chunks, lanes, 1.0f / static_cast<float>(pixels));
}

template <int WIDTH>
__device__ __forceinline__ void spread(const T* dy, T* dx, int64 images, int64 pixels, int64 channels) {
    const int64 groups = channels / WIDTH;
    const float factor = 1.0f / static_cast<float>(pixels);
    grid_stride(images * pixels * groups, [&](int64 item) {
        const Quotient pixel = divide(item, groups);
        const int64 image = divide(pixel.quotient, pixels).quotient;
        Floats<WIDTH> share = load_floats<WIDTH>(dy + image * channels + pixel.remainder * WIDTH);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) share.at[k] *= factor;
        store_floats<WIDTH>(dx + item * WIDTH, share);
    });
}

// dy is small and stays in the caches: the launch is the writing of dx.
extern "C" __global__ __launch_bounds__(THREADS) void spread_over_pixels(const T* dy, T* dx, int64 images, int64 pixels,
                                                                         int64 channels) {
    constexpr int V = Vector<T>::size;
    if (channels % V == 0 && aligned16(dy) && aligned16(dx))
        spread<V>(dy, dx, images, pixels, channels);
    else
        spread<1>(dy, dx, images, pixels, channels);
}
