// Group and batch norm of (samples, positions, channels), forward: each group of channels of each sample has one mean
// and variance. Batch norm is the case of one sample, whose positions are all of the batch, and groups of one
// channel.
//
// Large arrays take three launches: channel_statistics, whose blocks each gather the moments of the channels over a
// chunk of positions; finish_statistics, which combines chunks and channels to groups; channel_norm, which writes y.
// Traffic: 3 arrays, the second reading from the L2 cache where that holds x. Small ones take one launch,
// channel_norm_at_once.
//
// Everything is computed about a pivot, the first element of the group, for the reason that norm_layer.cu gives.
#include "row.cuh"
#include "strip.cuh"

constexpr int THREADS = 256;
constexpr int FINISH_THREADS = 128;
constexpr int BATCH = 4;  // positions that a thread has in flight
constexpr int VECTOR = Vector<T>::size;

// The numbers that y of a channel takes: y = (x - mean) scale + shift.
template <int WIDTH>
struct Affine {
    float mean[WIDTH], scale[WIDTH], shift[WIDTH];

    __device__ __forceinline__ void set(
        int k, float high, float low, float rstd, const T* gamma, const T* beta, int64 channel
    ) {
        mean[k] = high;
        scale[k] = gamma ? rstd * to_float(gamma[channel]) : rstd;
        shift[k] = fmaf(-low, scale[k], beta ? to_float(beta[channel]) : 0.0f);
    }
};

// The moments of this thread's channels, about their pivots, over its phase of the positions from begin to end.
template <int WIDTH>
__device__ __forceinline__ ColumnMoments<WIDTH> collect(
    const Strip<T, WIDTH, THREADS>& strip, const T* sample, int64 channels, int64 group_size, int64 begin, int64 end,
    bool aligned
) {
    ColumnMoments<WIDTH> all;
    if (!strip.active) return all;
    float pivot[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) pivot[k] = to_float(sample[(strip.column + k) / group_size * group_size]);
    for (int64 first = begin + strip.phase; first < end; first += BATCH * strip.phases) {
        Elements<T, WIDTH> x[BATCH];
        float count = 0.0f, mean[WIDTH] = {}, spread[WIDTH] = {};
#pragma unroll
        for (int i = 0; i < BATCH; ++i)
            if (first + i * strip.phases < end) {
                x[i] = strip.load(sample + (first + i * strip.phases) * channels + strip.column, aligned);
                count += 1.0f;
            }
        const float inverse_count = 1.0f / count;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                if (first + i * strip.phases < end) mean[k] += to_float(x[i].at[k]) - pivot[k];
            mean[k] *= inverse_count;
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const float distance = to_float(x[i].at[k]) - pivot[k] - mean[k];
                if (first + i * strip.phases < end) spread[k] += distance * distance;
            }
        }
        all.add(count, mean, spread);
    }
    return all;
}

// y of this thread's channels at its phase of the positions from begin to end.
template <int WIDTH>
__device__ __forceinline__ void write(
    const Strip<T, WIDTH, THREADS>& strip, const Affine<WIDTH>& affine, const T* x, T* y, int64 channels, int64 begin,
    int64 end, bool aligned
) {
    for (int64 first = begin + strip.phase; first < end; first += BATCH * strip.phases) {
        Elements<T, WIDTH> values[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i)
            if (first + i * strip.phases < end)
                values[i] = strip.load(x + (first + i * strip.phases) * channels + strip.column, aligned);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (first + i * strip.phases >= end) break;
            float result[WIDTH];
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                result[k] = fmaf(to_float(values[i].at[k]) - affine.mean[k], affine.scale[k], affine.shift[k]);
            strip.store(y + (first + i * strip.phases) * channels + strip.column, result, aligned);
        }
    }
}

// The statistics of a group from its moments about the pivot, and the running statistics, if there are any.
struct Statistics {
    float *mean, *low, *rstd, *running_mean, *running_var;
    float eps, momentum;

    __device__ __forceinline__ WideMean save(int64 group, float pivot, const Moments& moments, float& scale) const {
        const WideMean center(pivot, moments.mean);
        scale = 1.0f / sqrtf(moments.spread / moments.count + eps);
        mean[group] = center.high;
        rstd[group] = scale;
        if (low) low[group] = center.low;
        if (running_mean) {
            running_mean[group] = (1.0f - momentum) * running_mean[group] + momentum * center.high;
            running_var[group] =
                (1.0f - momentum) * running_var[group] + momentum * (moments.spread / (moments.count - 1.0f));
        }
        return center;
    }
};

// partials: mean and spread of each channel in each chunk, (samples, channels, chunks, 2).
template <int WIDTH>
__device__ __forceinline__ void write_partials(
    const T* x, float* partials, int64 positions, int64 channels, int64 group_size, int64 chunk, int chunks, int across,
    int strips, float* shared
) {
    const Strip<T, WIDTH, THREADS> strip(channels, blockIdx.x % strips, across);
    const int64 number = blockIdx.x / strips % chunks, sample = blockIdx.x / strips / chunks;
    const int64 end = min(positions, (number + 1) * chunk);
    ColumnMoments<WIDTH> moments = collect(
        strip, x + sample * positions * channels, channels, group_size, number * chunk, end, aligned16(x));
    strip.gather(moments, shared);
    if (!strip.active || strip.phase != 0) return;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        float* const partial = partials + ((sample * channels + strip.column + k) * chunks + number) * 2;
        partial[0] = moments.mean[k];
        partial[1] = moments.spread[k];
    }
}

// Grid: samples * chunks * strips. width: elements of a thread, 16 bytes of them or 1.
extern "C" __global__ __launch_bounds__(THREADS) void channel_statistics(
    const T* x, float* partials, int64 samples, int64 positions, int64 channels, int64 group_size, int64 chunk,
    int chunks, int width, int across, int strips) {
    __shared__ float shared[(2 * VECTOR + 1) * THREADS];
    if (width > 1)
        write_partials<VECTOR>(x, partials, positions, channels, group_size, chunk, chunks, across, strips, shared);
    else
        write_partials<1>(x, partials, positions, channels, group_size, chunk, chunks, across, strips, shared);
}

// A block a group of a sample. low: what the float32 means leave out. variance, if any, receives what rstd is made of.
extern "C" __global__ __launch_bounds__(FINISH_THREADS) void finish_statistics(
    const T* x, const float* partials, float* mean, float* low, float* rstd, float* variance, float* running_mean,
    float* running_var, int64 positions, int64 channels, int64 group_size, int64 chunk, int chunks, float eps,
    float momentum) {
    __shared__ float scratch[SCRATCH];
    const int64 groups = channels / group_size, sample = blockIdx.x / groups;
    const int64 channel = blockIdx.x % groups * group_size;
    const float* const own = partials + (sample * channels + channel) * chunks * 2;
    Moments moments;
    for (int64 i = threadIdx.x; i < group_size * chunks; i += FINISH_THREADS) {
        const int64 begin = i % chunks * chunk;
        moments.add({static_cast<float>(min(chunk, positions - begin)), own[2 * i], own[2 * i + 1]});
    }
    BlockTeam<FINISH_THREADS>(scratch).gather(moments);
    if (threadIdx.x != 0) return;
    if (variance) variance[blockIdx.x] = moments.spread / moments.count;
    const Statistics statistics{mean, low, rstd, running_mean, running_var, eps, momentum};
    float scale;
    statistics.save(blockIdx.x, to_float(x[sample * positions * channels + channel]), moments, scale);
}

// y with given statistics: of groups, or, where there is a `variance`, of the channels of the one sample.
template <int WIDTH>
__device__ __forceinline__ void write_chunk(
    const T* x, const T* gamma, const T* beta, const float* mean, const float* low, const float* rstd,
    const float* variance, T* y, int64 positions, int64 channels, int64 group_size, int64 chunk, int chunks, float eps,
    int across, int strips
) {
    const Strip<T, WIDTH, THREADS> strip(channels, blockIdx.x % strips, across);
    if (!strip.active) return;
    const int64 number = blockIdx.x / strips % chunks, sample = blockIdx.x / strips / chunks;
    Affine<WIDTH> affine;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        const int64 channel = strip.column + k, group = (sample * channels + channel) / group_size;
        const float scale = variance ? 1.0f / sqrtf(variance[channel] + eps) : rstd[group];
        affine.set(k, mean[group], low ? low[group] : 0.0f, scale, gamma, beta, channel);
    }
    const int64 start = sample * positions * channels;
    write(strip, affine, x + start, y + start, channels, number * chunk, min(positions, (number + 1) * chunk),
          aligned16(x) && aligned16(y));
}

extern "C" __global__ __launch_bounds__(THREADS) void channel_norm(
    const T* x, const T* gamma, const T* beta, const float* mean, const float* low, const float* rstd, T* y,
    int64 samples, int64 positions, int64 channels, int64 group_size, int64 chunk, int chunks, int width, int across,
    int strips) {
    if (width > 1)
        write_chunk<VECTOR>(x, gamma, beta, mean, low, rstd, nullptr, y, positions, channels, group_size, chunk, chunks,
                            0.0f, across, strips);
    else
        write_chunk<1>(x, gamma, beta, mean, low, rstd, nullptr, y, positions, channels, group_size, chunk, chunks,
                       0.0f, across, strips);
}

// Batch norm with given statistics, whose rstd is saved. Those of a batch, whose mean is mean + low, move the running
// ones; the running ones themselves, in inference, have their mean saved too.
extern "C" __global__ __launch_bounds__(THREADS, 2) void channel_norm_of(
    const T* x, const T* gamma, const T* beta, const float* mean, const float* low, const float* variance, T* y,
    float* saved_mean, float* rstd, float* running_mean, float* running_var, int64 positions, int64 channels, float eps,
    float momentum, int64 chunk, int chunks, int width, int across, int strips) {
    for (int64 i = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x; i < channels;
         i += static_cast<int64>(gridDim.x) * THREADS) {
        rstd[i] = 1.0f / sqrtf(variance[i] + eps);
        if (saved_mean) saved_mean[i] = mean[i];
        if (running_mean) {
            const float count = static_cast<float>(positions);
            running_mean[i] = (1.0f - momentum) * running_mean[i] + momentum * mean[i];
            running_var[i] = (1.0f - momentum) * running_var[i] + momentum * (variance[i] * (count / (count - 1.0f)));
        }
    }
    if (width > 1)
        write_chunk<VECTOR>(x, gamma, beta, mean, low, nullptr, variance, y, positions, channels, 1, chunk, chunks, eps,
                            across, strips);
    else
        write_chunk<1>(x, gamma, beta, mean, low, nullptr, variance, y, positions, channels, 1, chunk, chunks, eps,
                       across, strips);
}

// The strip holds whole groups, so the block has all that their statistics take; x comes from a cache the second time.
template <int WIDTH>
__device__ __forceinline__ void norm_at_once(
    const T* x, const T* gamma, const T* beta, T* y, const Statistics& statistics, int64 positions, int64 channels,
    int group_size, int across, int strips, float* shared
) {
    const Strip<T, WIDTH, THREADS> strip(channels, blockIdx.x % strips, across);
    const int64 sample = blockIdx.x / strips, start = sample * positions * channels;
    const bool aligned = aligned16(x) && aligned16(y);
    ColumnMoments<WIDTH> moments = collect(strip, x + start, channels, group_size, 0, positions, aligned);
    strip.gather(moments, shared);
    __syncthreads();

    // By channel of the strip: mean and spread; then by group: the two floats of the mean, and rstd.
    const int held = across * WIDTH;
    const int64 first = blockIdx.x % strips * static_cast<int64>(held);
    const int groups = static_cast<int>(min(static_cast<int64>(held), channels - first)) / group_size;
    float *const means = shared, *const spreads = shared + held, *const of_groups = shared + 2 * held;
    if (strip.active && strip.phase == 0) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            means[strip.column - first + k] = moments.mean[k];
            spreads[strip.column - first + k] = moments.spread[k];
        }
    }
    __syncthreads();
    for (int group = threadIdx.x; group < groups; group += THREADS) {
        Moments all;
        for (int i = group * group_size; i < (group + 1) * group_size; ++i)
            all.add({static_cast<float>(positions), means[i], spreads[i]});
        const int64 channel = first + group * group_size;
        float scale;
        const WideMean center =
            statistics.save((sample * channels + channel) / group_size, to_float(x[start + channel]), all, scale);
        of_groups[3 * group] = center.high;
        of_groups[3 * group + 1] = center.low;
        of_groups[3 * group + 2] = scale;
    }
    __syncthreads();
    if (!strip.active) return;
    Affine<WIDTH> affine;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        const float* const group = of_groups + 3 * (static_cast<int>(strip.column - first + k) / group_size);
        affine.set(k, group[0], group[1], group[2], gamma, beta, strip.column + k);
    }
    write(strip, affine, x + start, y + start, channels, 0, positions, aligned);
}

// Grid: samples * strips. Shared memory serves the phases first, then 5 floats for each of at most 64 * VECTOR
// channels.
extern "C" __global__ __launch_bounds__(THREADS, 2) void channel_norm_at_once(
    const T* x, const T* gamma, const T* beta, T* y, float* mean, float* rstd, float* running_mean, float* running_var,
    int64 samples, int64 positions, int64 channels, int group_size, float eps, float momentum, int width, int across,
    int strips) {
    __shared__ float shared[(2 * VECTOR + 1) * THREADS];
    const Statistics statistics{mean, nullptr, rstd, running_mean, running_var, eps, momentum};
    if (width > 1)
        norm_at_once<VECTOR>(x, gamma, beta, y, statistics, positions, channels, group_size, across, strips, shared);
    else
        norm_at_once<1>(x, gamma, beta, y, statistics, positions, channels, group_size, across, strips, shared);
}
