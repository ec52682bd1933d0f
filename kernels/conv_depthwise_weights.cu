// The weight gradient of a convolution of one input channel for each output: sums over all pixels, in fixed parts.
//
// As in conv_depthwise.cu, threads beside each other have 16 bytes of channels beside each other, and read them in runs
// of RUN pixels along a row. Macros: TAPS, STEP: as there; RUN; BLOCKS: that fit a multiprocessor.
#include "depthwise.cuh"

constexpr int THREADS = 256;

// The weight gradient of WIDTH output channels, of the taps of a row of the kernel or, where TAPS is 0, of one tap.
//
// A block's threads stand beside each other along the channels, then along the rows of the kernel, so that these read
// the same pixels at about the same time; then come its phases, which take turns at the runs of pixels from begin to
// end.
template <int WIDTH>
__device__ __forceinline__ void weight_gradient(const T* dy, const T* x, const Epilogue<T>& epilogue, float* sums,
                                                int64 images, int h, int w, int p, int q, int64 channels, int64 out,
                                                int kh, int kw, int stride_h, int stride_w, int top, int left,
                                                int dilation_h, int dilation_w, int64 part, int across,
                                                float (*scratch)[THREADS]) {
    using Along = Reach<RUN, false>;
    const int64 strips = divide_up(out, across * WIDTH);
    const Quotient of_block = divide(blockIdx.x, strips);
    const int beside = threadIdx.x / across, phases = THREADS / (across * KEPT);
    const int phase = beside / KEPT;
    // The first tap of this thread, and from one input that it has at once to the next.
    const int u = TAPS > 0 ? beside % KEPT : static_cast<int>(of_block.quotient / kw);
    const int first_tap = TAPS > 0 ? 0 : static_cast<int>(of_block.quotient % kw), spacing = TAPS > 0 ? 1 : stride_w;
    const int64 channel = (of_block.remainder * across + threadIdx.x % across) * WIDTH;
    const int64 outputs_of_each = divide(out, channels).quotient;
    const int64 input_channel = outputs_of_each == 1 ? channel : divide(channel, outputs_of_each).quotient;
    const int64 runs = divide_up(q, RUN), units = images * p * runs;
    const int64 begin = blockIdx.y * part + phase, end = smaller((blockIdx.y + 1) * part, units);
    float gradient[KEPT][WIDTH] = {}, bias[WIDTH] = {};
    if (channel < out && phase < phases) {
        // The place of a unit, (image, row, run), and how far it is to the next one of this thread.
        const Quotient line = divide(begin, runs), image = divide(line.quotient, p);
        const Quotient step = divide(phases, runs), rows_step = divide(step.quotient, p);
        int64 at_image = image.quotient;
        int run = static_cast<int>(line.remainder), row = static_cast<int>(image.remainder);
        for (int64 unit = begin; unit < end; unit += phases) {
            const int column = run * RUN, input_row = row * stride_h - top + u * dilation_h;
            const int input_column = column * stride_w - left + first_tap * dilation_w;
            const bool row_exists = input_row >= 0 && input_row < h;
            const T* const gradients = dy + ((at_image * p + row) * q + column) * out + channel;
            const T* const inputs = x + ((at_image * h + input_row) * w + input_column) * channels + input_channel;
            Channels<WIDTH> given[RUN], seen[Along::SIZE];
#pragma unroll
            for (int r = 0; r < RUN; ++r)
                if (column + r < q) given[r] = load_channels<WIDTH>(gradients + r * out);
#pragma unroll
            for (int j = 0; j < Along::SIZE; ++j) {
                const int64 at = input_column + static_cast<int64>(j) * spacing;
                seen[j] = {};
                if (row_exists && at >= 0 && at < w && (TAPS > 0 || column + j < q))
                    seen[j] = load_channels<WIDTH>(inputs + j * (spacing * channels), outputs_of_each != 1);
            }
            Floats<WIDTH> g[RUN];
#pragma unroll
            for (int r = 0; r < RUN; ++r) {
                if (column + r >= q) continue;
                g[r] = widened(given[r]);
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) bias[k] += g[r].at[k];
            }
            // One input after the other, so that no more than one is there as floats.
#pragma unroll
            for (int j = 0; j < Along::SIZE; ++j) {
                const Floats<WIDTH> input = widened(seen[j]);
#pragma unroll
                for (int r = 0; r < RUN; ++r) {
                    const int v = Along::tap(r, j);
                    if (v < 0 || v >= KEPT || column + r >= q) continue;
#pragma unroll
                    for (int k = 0; k < WIDTH; ++k)
                        gradient[v][k] = fmaf(g[r].at[k], input.at[k], gradient[v][k]);
                }
            }
            run += static_cast<int>(step.remainder);
            row += static_cast<int>(rows_step.remainder);
            at_image += rows_step.quotient;
            if (run >= runs) run -= runs, ++row;
            if (row >= p) row -= p, ++at_image;
        }
    }
    // One tap after the other, and behind them the bias: what the phases found is added up in their order.
    const int64 weights = out * kh * kw, behind = blockIdx.y * (weights + (sums != nullptr ? out : 0));
    const int threads = across * KEPT, rounds = sums != nullptr ? KEPT + 1 : KEPT;
    const int64 first_channel = of_block.remainder * across * WIDTH;
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            float found = bias[k];
#pragma unroll
            for (int v = 0; v < KEPT; ++v)
                if (round == v) found = gradient[v][k];
            scratch[k][threadIdx.x] = found;
        }
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < WIDTH * threads; i += THREADS) {
            const int k = i / threads, thread = i % threads;
            float total[1] = {0.0f};
            for (int other = 0; other < phases; ++other) total[0] += scratch[k][other * threads + thread];
            const int64 own = first_channel + thread % across * WIDTH + k;
            if (own >= out) continue;
            const int row = TAPS > 0 ? thread / across : u;
            if (round < KEPT) {
                const int64 place = (own * kh + row) * kw + first_tap + round;
                epilogue.store(behind + place, place, 0, total);
            } else if (row == 0 && first_tap == 0) {
                float* const at = sums + behind + own;
                *at = epilogue.beta != 0.0f ? epilogue.beta * *at + total[0] : total[0];
            }
        }
        __syncthreads();
    }
}

// part: runs of pixels for each blockIdx.y; C, which is dW, has a place for each, and so have the sums of dy's columns
// (null: not wanted). blockIdx.x counts strips of channels and, where TAPS is 0, taps.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void depthwise_backward_parameters(
    const T* dy, const T* x, EPILOGUE_PARAMETERS, float* sums, CONVOLUTION_PARAMETERS, int64 part, int width,
    int across) {
    __shared__ float scratch[V][THREADS];
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
#if TAPS > 0
    weight_gradient<V>(dy, x, epilogue, sums, images, h, w, p, q, channels, out, TAPS, TAPS, STEP, STEP, top, left, 1,
                       1, part, across, scratch);
#else
    if (width > 1)
        weight_gradient<V>(dy, x, epilogue, sums, images, h, w, p, q, channels, out, kh, kw, stride_h, stride_w, top,
                           left, dilation_h, dilation_w, part, across, scratch);
    else
        weight_gradient<1>(dy, x, epilogue, sums, images, h, w, p, q, channels, out, kh, kw, stride_h, stride_w, top,
                           left, dilation_h, dilation_w, part, across, scratch);
#endif
}
