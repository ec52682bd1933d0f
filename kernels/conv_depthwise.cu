// Convolution where each output channel sees one input channel: depthwise, or with several outputs for each input.
//
// There is nothing to share between channels, so no tile of a matrix product fits: what counts is that every array goes
// through once. Neighbouring threads have neighbouring channels, 16 bytes of them each (`across` threads), and then
// neighbouring runs of pixels, so the inputs that the windows of a block share meet in its cache. Names of the sizes
// are as in conv_tiled.cu.
//
// Macros: TAPS and STEP: of a square kernel of so many taps along each axis and a stride of STEP, without dilation,
// whose threads keep what the windows of a run have in common in registers; TAPS 0: any other, one tap at a time. BAND,
// RUN: rows and columns of pixels that a thread computes at least. THREADS, of a block; BLOCKS, that fit a
// multiprocessor.
//
// Sums run in float, of factors as they are: with tf32 too, since no matrix instruction asks for less.
//
// What 8 channels of BAND x RUN pixels cost a thread, with TAPS 3 and STEP 1 in 16-bit types: 24 loads and 8 stores of
// 16 bytes, 36 of weights from shared memory, 192 conversions, 576 multiply-adds, about 1,000 instructions. The memory
// of an H200, which moves x and y in 4 bytes an element, would keep about 60% of the issue slots busy so. A block's
// windows overlap those of its neighbours: it brings 1.4 times its part of x into its cache.
#include "depthwise.cuh"
#include "tile_moments.cuh"

// On the way back a thread begins at a multiple of the stride in the padded image, in both directions.
constexpr int BAND_BACK = BAND < STEP ? STEP : BAND;
static_assert(RUN % STEP == 0 && BAND_BACK % STEP == 0, "whole strides");

// Which results a thread computes: WIDTH channels from `channel` on of ROWS x RUN pixels from (row, column) of an image
// on. The first pixels may lie before the image (by `shift` of the padding) and the last ones behind it.
//
// A block has `across` threads beside each other along the channels, `abreast` runs along a row, and as many bands as
// it has threads for, of one image after the other. Blocks that share pixels follow each other.
template <int ROWS>
struct Place {
    bool active;
    int64 channel, image, tile, tiles;
    int row, column;

    __device__ __forceinline__ Place(int width, int64 images, int rows, int columns, int shift_h, int shift_w,
                                     int64 channels, int across, int abreast) {
        const int64 strips = divide_up(channels, across * width);
        const int64 bands = divide_up(rows + shift_h, ROWS), runs = divide_up(columns + shift_w, RUN);
        const int64 beside = divide_up(runs, abreast), lane = threadIdx.x % across;
        const int tall = THREADS / (across * abreast), slot = threadIdx.x / across;
        const Quotient strip = divide(blockIdx.x, strips), block = divide(strip.quotient, beside);
        tile = strip.quotient;
        tiles = divide_up(images * bands, tall) * beside;
        channel = (strip.remainder * across + lane) * width;
        const int64 run = block.remainder * abreast + slot % abreast;
        const Quotient band = divide(block.quotient * tall + slot / abreast, bands);
        image = band.quotient;
        row = static_cast<int>(band.remainder) * ROWS - shift_h;
        column = static_cast<int>(run) * RUN - shift_w;
        active = channel < channels && slot < abreast * tall && run < runs && image < images;
    }

    // Whether its result i, row by row, lies in the image.
    __device__ __forceinline__ bool has(int i, int rows, int columns) const {
        const int r = row + i / RUN, c = column + i % RUN;
        return r >= 0 && r < rows && c >= 0 && c < columns;
    }
};

template <int WIDTH, int ROWS>
struct Sums {
    static constexpr int COUNT = ROWS * RUN;
    float at[COUNT][WIDTH] = {};
};

// Kernels of TAPS x TAPS ----------------------------------------------------------------------------------------------

#if TAPS > 0

// The weights of the block's channels in shared memory, as floats. Threads beside each other read 16 bytes beside each
// other, half of their channels at a time where those are 8: no two of them meet in a bank.
struct Weights {
    static constexpr int COUNT = TAPS * TAPS;
    static constexpr int MOST_ACROSS = 8;
    float at[COUNT * MOST_ACROSS * V];

    // Returns whether they are finite.
    __device__ __forceinline__ bool load(const T* weight, int64 first, int64 channels, int across) {
        bool finite = true;
        const int64 count = smaller(across * V, channels - first) * COUNT;
        for (int i = threadIdx.x; i < count; i += THREADS) {
            const int channel = i / COUNT, tap = i % COUNT, element = channel % V;
            const float factor = to_float(weight[first * COUNT + i]);
            at[place(tap, element / 4, channel / V, across) + element % 4] = factor;
            finite = finite && factor - factor == 0.0f;
        }
        return __syncthreads_and(finite);
    }

    __device__ __forceinline__ void of(int tap, int lane, int across, float (&factors)[V]) const {
#pragma unroll
        for (int part = 0; part < V; part += 4) {
            const Vector<float> found = load16(at + place(tap, part / 4, lane, across));
#pragma unroll
            for (int k = 0; k < 4; ++k) factors[part + k] = found.at[k];
        }
    }

private:
    __device__ __forceinline__ static int place(int tap, int part, int lane, int across) {
        return ((tap * (V / 4) + part) * across + lane) * 4;
    }
};

// BACK: the data gradient, whose input is dy and whose results are dx. A window that reaches beyond the input sees
// zeros, which take part: zero times an infinite weight is NaN. On the way back there is no such term, so this is for
// finite weights there.
//
// input: of h x w pixels. (row, column): where the window of the first result begins.
template <bool BACK>
__device__ __forceinline__ void multiply(const T* input, int h, int w, int64 channels, const Weights& weights, int row,
                                         int column, int across, Sums<V, BACK ? BAND_BACK : BAND>& sums) {
    constexpr int ROWS = BACK ? BAND_BACK : BAND;
    using Down = Reach<ROWS, BACK>;
    using Along = Reach<RUN, BACK>;
    const int lane = threadIdx.x % across;
#pragma unroll TAPS == 3 ? Down::SIZE : 1
    for (int i = 0; i < Down::SIZE; ++i) {
        // As unsigned numbers, what lies before the image lies far behind it.
        const bool row_exists = static_cast<uint32>(row + i) < static_cast<uint32>(h);
        const T* const line = input + (static_cast<int64>(row + i) * w + column) * channels;
        Channels<V> loaded[Along::SIZE];
        Floats<V> seen[Along::SIZE];
#pragma unroll
        for (int j = 0; j < Along::SIZE; ++j) {
            loaded[j] = {};
            if (row_exists && static_cast<uint32>(column + j) < static_cast<uint32>(w))
                loaded[j] = load_channels<V>(line + j * channels);
        }
#pragma unroll
        for (int j = 0; j < Along::SIZE; ++j) seen[j] = widened(loaded[j]);
#pragma unroll
        for (int a = 0; a < ROWS; ++a) {
            const int u = Down::tap(a, i);
            if (u < 0 || u >= TAPS) continue;
#pragma unroll
            for (int v = 0; v < TAPS; ++v) {
                float factors[V];
                weights.of(u * TAPS + v, lane, across, factors);
#pragma unroll
                for (int r = 0; r < RUN; ++r) {
#pragma unroll
                    for (int j = 0; j < Along::SIZE; ++j) {
                        if (Along::tap(r, j) != v) continue;
#pragma unroll
                        for (int k = 0; k < V; ++k)
                            sums.at[a * RUN + r][k] = fmaf(seen[j].at[k], factors[k], sums.at[a * RUN + r][k]);
                    }
                }
            }
        }
    }
}

#endif

// One tap at a time ---------------------------------------------------------------------------------------------------

// dx, of the terms that there are. Several outputs of a channel are read one by one: WIDTH is 1
// then. outputs_of_each: output channels of an input channel.
template <int WIDTH, int ROWS>
__device__ __forceinline__ void multiply_back(const T* dy, const T* weight, const Place<ROWS>& place, int w, int p,
                                              int q, int64 out, int64 outputs_of_each, int kh, int kw, int stride_h,
                                              int stride_w, int top, int left, int dilation_h, int dilation_w,
                                              Sums<WIDTH, ROWS>& sums) {
#pragma unroll 1
    for (int64 tap = 0; tap < static_cast<int64>(kh) * kw; ++tap)
#pragma unroll 1
        for (int64 o = 0; o < outputs_of_each; ++o) {
            const int64 first = place.channel * outputs_of_each + o;
            Floats<WIDTH> factors;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) factors.at[k] = to_float(weight[(first + k) * kh * kw + tap]);
            const int u = static_cast<int>(tap / kw), v = static_cast<int>(tap % kw);
#pragma unroll
            for (int a = 0; a < ROWS; ++a) {
                // The output pixel (i, j) reads this one through the tap, if there is such a pixel.
                const int row = place.row + a + top - u * dilation_h, i = row / stride_h;
                if (row < 0 || i * stride_h != row || i >= p) continue;
#pragma unroll
                for (int r = 0; r < RUN; ++r) {
                    const int column = place.column + r + left - v * dilation_w, j = column / stride_w;
                    if (place.column + r >= w || column < 0 || j * stride_w != column || j >= q) continue;
                    const T* const at = dy + (((place.image * p + i) * q + j) * out + first);
                    const Floats<WIDTH> seen = widened(load_channels<WIDTH>(at));
#pragma unroll
                    for (int k = 0; k < WIDTH; ++k)
                        sums.at[a * RUN + r][k] = fmaf(seen.at[k], factors.at[k], sums.at[a * RUN + r][k]);
                }
            }
        }
}

// Whether an epilogue is a bias and a ReLU at most.
__device__ __forceinline__ bool is_short(const Epilogue<T>& e) {
    return e.kept == nullptr && e.residual == nullptr && e.control == nullptr && e.before == nullptr &&
           e.wide == nullptr && e.alpha == 1.0f && e.beta == 0.0f && e.activation <= RELU;
}

template <int WIDTH>
__device__ __forceinline__ void store_all(T* at, const Elements<T, WIDTH>& y) {
    if constexpr (WIDTH == 1) {
        *at = y.at[0];
    } else {
        Vector<T> v;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) v.at[k] = y.at[k];
        store16_global(at, v);
    }
}

// Stores what a thread computed, results of `rows` x `columns` pixels.
//
// Mostly that takes a bias and a ReLU at most. The code of all that an epilogue can be is long, and stands here once:
// the results move up, one after the other, to where it takes them from.
template <int WIDTH, int ROWS>
__device__ __forceinline__ void store(const Epilogue<T>& epilogue, const Place<ROWS>& place, Sums<WIDTH, ROWS>& sums,
                                      int rows, int columns, int64 channels) {
    constexpr int RESULTS = Sums<WIDTH, ROWS>::COUNT;
    const int64 first = ((place.image * rows + place.row) * columns + place.column) * channels + place.channel;
    auto index = [&](int i) { return first + (static_cast<int64>(i / RUN) * columns + i % RUN) * channels; };
    if (is_short(epilogue)) {
        Floats<WIDTH> bias = all_of<WIDTH>(0.0f);
        if (epilogue.bias != nullptr) bias = load_floats<WIDTH>(epilogue.bias + place.channel);
#pragma unroll
        for (int i = 0; i < RESULTS; ++i) {
            if (!place.has(i, rows, columns)) continue;
            Elements<T, WIDTH> y;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float z = epilogue.bias != nullptr ? sums.at[i][k] + bias.at[k] : sums.at[i][k];
                y.at[k] = convert<T>(epilogue.activation == RELU ? relu(z) : z);
            }
            store_all(epilogue.y + index(i), y);
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; i < RESULTS; ++i) {
        if (place.has(i, rows, columns)) epilogue.store(index(i), index(i), place.channel, sums.at[0]);
#pragma unroll
        for (int other = 1; other < RESULTS; ++other)
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) sums.at[other - 1][k] = sums.at[other][k];
    }
}

// The moments of the block's results as a short epilogue has stored them. All threads call it. scratch: MOMENTS<WIDTH>
// floats.
template <int WIDTH>
constexpr int MOMENTS = (2 * WIDTH + 1) * (THREADS / 2);

template <int WIDTH, int ROWS>
__device__ __forceinline__ void store_moments(const TileMoments& moments, const T* bias, const Place<ROWS>& place,
                                              const Sums<WIDTH, ROWS>& sums, int rows, int columns, int64 channels,
                                              int across, float* scratch) {
    constexpr int RESULTS = Sums<WIDTH, ROWS>::COUNT;
    float stored[RESULTS][WIDTH], pivot[WIDTH];
#pragma unroll
    for (int i = 0; i < RESULTS; ++i)
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)
            stored[i][k] = as_stored(sums.at[i][k], place.active ? bias : nullptr, place.channel + k);
    const auto exists = [&](int i) { return place.active && place.has(i, rows, columns); };
    const ColumnMoments<WIDTH> own =
        moments_of_tile<THREADS>(stored, pivot, exists, across, THREADS / across, scratch);
    if (threadIdx.x >= across) return;
    if (place.channel == 0) moments.store_rows(place.tile, own.count);
    if (place.channel >= channels) return;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k)
        moments.store(place.tile, place.channel + k, pivot[k], own.mean[k], own.spread[k]);
}

#if TAPS == 0

// y. A window that reaches beyond the image sees zeros, as in `multiply`.
template <int WIDTH>
__device__ __forceinline__ void multiply_forward(const T* x, const T* weight, const Place<BAND>& place, int h, int w,
                                                 int q, int64 channels, int64 outputs_of_each, int kh, int kw,
                                                 int stride_h, int stride_w, int top, int left, int dilation_h,
                                                 int dilation_w, Sums<WIDTH, BAND>& sums) {
    const int64 channel = outputs_of_each == 1 ? place.channel : divide(place.channel, outputs_of_each).quotient;
#pragma unroll 1
    for (int u = 0; u < kh; ++u) {
        const int row = place.row * stride_h - top + u * dilation_h;
        const bool row_exists = row >= 0 && row < h;
        const T* const line = x + (place.image * h + row) * w * channels + channel;
#pragma unroll 1
        for (int v = 0; v < kw; ++v) {
            Floats<WIDTH> factors;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                factors.at[k] = to_float(weight[((place.channel + k) * kh + u) * kw + v]);
#pragma unroll
            for (int r = 0; r < RUN; ++r) {
                if (place.column + r >= q) continue;
                const int column = (place.column + r) * stride_w - left + v * dilation_w;
                Channels<WIDTH> loaded = {};
                if (row_exists && column >= 0 && column < w)
                    loaded = load_channels<WIDTH>(line + column * channels, outputs_of_each != 1);
                const Floats<WIDTH> seen = widened(loaded);
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) sums.at[r][k] = fmaf(seen.at[k], factors.at[k], sums.at[r][k]);
            }
        }
    }
}

template <int WIDTH>
__device__ __forceinline__ void forward(const T* x, const T* weight, const Epilogue<T>& epilogue, float* moments,
                                        int64 images, int h, int w, int p, int q, int64 channels, int64 out, int kh,
                                        int kw, int stride_h, int stride_w, int top, int left, int dilation_h,
                                        int dilation_w, int across, int abreast, float* scratch) {
    const Place<BAND> place(WIDTH, images, p, q, 0, 0, out, across, abreast);
    Sums<WIDTH, BAND> sums;
    if (place.active)
        multiply_forward(x, weight, place, h, w, q, channels, divide(out, channels).quotient, kh, kw, stride_h,
                         stride_w, top, left, dilation_h, dilation_w, sums);
    if (place.active) store(epilogue, place, sums, p, q, out);
    if (moments != nullptr)
        store_moments({moments, place.tiles, out}, epilogue.bias, place, sums, p, q, out, across, scratch);
}

template <int WIDTH>
__device__ __forceinline__ void backward_input(const T* dy, const T* weight, const Epilogue<T>& epilogue, int64 images,
                                               int h, int w, int p, int q, int64 channels, int64 out, int kh, int kw,
                                               int stride_h, int stride_w, int top, int left, int dilation_h,
                                               int dilation_w, int across, int abreast) {
    const Place<BAND> place(WIDTH, images, h, w, 0, 0, channels, across, abreast);
    if (!place.active) return;
    Sums<WIDTH, BAND> sums;
    multiply_back(dy, weight, place, w, p, q, out, divide(out, channels).quotient, kh, kw, stride_h, stride_w, top,
                  left, dilation_h, dilation_w, sums);
    store(epilogue, place, sums, h, w, channels);
}

#endif

// The kernels ---------------------------------------------------------------------------------------------------------

// width: channels of a thread, V or 1; 1 only where TAPS is 0. moments: null, or as in tile_moments.cuh.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void depthwise_forward(
    const T* x, const T* weight, EPILOGUE_PARAMETERS, float* moments, CONVOLUTION_PARAMETERS, int width, int across,
    int abreast) {
    __shared__ float scratch[MOMENTS<V>];
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
#if TAPS > 0
    __shared__ Weights weights;
    const Place<BAND> place(V, images, p, q, 0, 0, out, across, abreast);
    weights.load(weight, place.channel - threadIdx.x % across * V, out, across);
    Sums<V, BAND> sums;
    if (place.active)
        multiply<false>(x + place.image * h * w * channels + place.channel, h, w, channels, weights,
                        place.row * STEP - top, place.column * STEP - left, across, sums);
    if (place.active) store(epilogue, place, sums, p, q, out);
    if (moments != nullptr)
        store_moments({moments, place.tiles, out}, epilogue.bias, place, sums, p, q, out, across, scratch);
#else
    if (width > 1)
        forward<V>(x, weight, epilogue, moments, images, h, w, p, q, channels, out, kh, kw, stride_h, stride_w, top,
                   left, dilation_h, dilation_w, across, abreast, scratch);
    else
        forward<1>(x, weight, epilogue, moments, images, h, w, p, q, channels, out, kh, kw, stride_h, stride_w, top,
                   left, dilation_h, dilation_w, across, abreast, scratch);
#endif
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void depthwise_backward_input(
    const T* dy, const T* weight, EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS, int width, int across, int abreast) {
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
#if TAPS > 0
    using Down = Reach<BAND_BACK, true>;
    using Along = Reach<RUN, true>;
    __shared__ Weights weights;
    const Place<BAND_BACK> place(V, images, h, w, top & (STEP - 1), left & (STEP - 1), channels, across, abreast);
    const bool finite = weights.load(weight, place.channel - threadIdx.x % across * V, channels, across);
    if (!place.active) return;
    Sums<V, BAND_BACK> sums;
    if (!finite)
        multiply_back(dy, weight, place, w, p, q, out, 1, TAPS, TAPS, STEP, STEP, top, left, 1, 1, sums);
    else
        multiply<true>(dy + place.image * p * q * out + place.channel, p, q, out, weights,
                       (place.row + top) / STEP - Down::BEFORE, (place.column + left) / STEP - Along::BEFORE, across,
                       sums);
    store(epilogue, place, sums, h, w, channels);
#else
    if (width > 1)
        backward_input<V>(dy, weight, epilogue, images, h, w, p, q, channels, out, kh, kw, stride_h, stride_w, top,
                          left, dilation_h, dilation_w, across, abreast);
    else
        backward_input<1>(dy, weight, epilogue, images, h, w, p, q, channels, out, kh, kw, stride_h, stride_w, top,
                          left, dilation_h, dilation_w, across, abreast);
#endif
}
