// Group and batch norm of (samples, positions, channels), backward.
//
// Large arrays take three launches: channel_sums, whose blocks each sum over a chunk of positions; finish_sums, which
// combines chunks and channels to groups; channel_gradient, which writes dx. Traffic: 5 arrays, of which the last
// kernel reads two from the L2 cache where that holds them. Small ones take one launch, channel_gradient_at_once.
//
// The sums of a channel are of dy, dy (x - mean) and x - mean. Scaled by gamma they add up to those of the group, and
// with what they say of the mean they give dgamma = rstd (sum(dy (x - mean)) - rest sum(dy)) and dbeta = sum(dy).
#include "norm.cuh"
#include "row.cuh"
#include "strip.cuh"

constexpr int THREADS = 256;
constexpr int FINISH_THREADS = 128;
constexpr int BATCH = 2;  // positions that a thread has in flight
constexpr int VECTOR = Vector<T>::size;

struct Backward {
    const T *dy, *x, *gamma;
    const float *mean, *rstd;
    T* dx;
    int64 positions, channels, group_size;
    bool aligned;

    __device__ __forceinline__ void check_alignment() { aligned = aligned16(dy) && aligned16(x) && aligned16(dx); }

    __device__ __forceinline__ float scale(int64 channel) const { return gamma ? to_float(gamma[channel]) : 1.0f; }
};

// Where dgamma and dbeta go: into the parameters' gradients where there is one sample, else as (samples, 2, channels)
// to what sum_partials adds up. All may be null.
struct Destination {
    float *dgamma, *dbeta, *partials;
    int accumulate;

    __device__ __forceinline__ void write(
        int64 sample, int64 channels, int64 channel, float gamma_sum, float beta_sum
    ) const {
        if (dgamma) dgamma[channel] = accumulate ? dgamma[channel] + gamma_sum : gamma_sum;
        if (dbeta) dbeta[channel] = accumulate ? dbeta[channel] + beta_sum : beta_sum;
        if (partials) {
            partials[2 * sample * channels + channel] = gamma_sum;
            partials[(2 * sample + 1) * channels + channel] = beta_sum;
        }
    }
};

template <int WIDTH>
__device__ __forceinline__ void collect(
    const Backward& b, const Strip<T, WIDTH, THREADS>& strip, int64 sample, int64 begin, int64 end,
    float (&sums)[3][WIDTH]
) {
    if (!strip.active) return;
    float mean[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) mean[k] = b.mean[(sample * b.channels + strip.column + k) / b.group_size];
    const int64 start = sample * b.positions * b.channels + strip.column;
    for (int64 first = begin + strip.phase; first < end; first += BATCH * strip.phases) {
        Elements<T, WIDTH> dy[BATCH], x[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i)
            if (first + i * strip.phases < end) {
                dy[i] = strip.load(b.dy + start + (first + i * strip.phases) * b.channels, b.aligned);
                x[i] = strip.load(b.x + start + (first + i * strip.phases) * b.channels, b.aligned);
            }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (first + i * strip.phases >= end) break;
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float gradient = to_float(dy[i].at[k]), distance = to_float(x[i].at[k]) - mean[k];
                sums[0][k] += gradient;
                sums[1][k] += gradient * distance;
                sums[2][k] += distance;
            }
        }
    }
}

template <int WIDTH>
__device__ __forceinline__ void write(
    const Backward& b, const Strip<T, WIDTH, THREADS>& strip, const NormGradient (&of)[WIDTH], int64 sample,
    int64 begin, int64 end
) {
    float gamma[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) gamma[k] = b.scale(strip.column + k);
    const int64 start = sample * b.positions * b.channels + strip.column;
    for (int64 first = begin + strip.phase; first < end; first += BATCH * strip.phases) {
        Elements<T, WIDTH> dy[BATCH], x[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i)
            if (first + i * strip.phases < end) {
                dy[i] = strip.load(b.dy + start + (first + i * strip.phases) * b.channels, b.aligned);
                x[i] = strip.load(b.x + start + (first + i * strip.phases) * b.channels, b.aligned);
            }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (first + i * strip.phases >= end) break;
            float dx[WIDTH];
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                dx[k] = of[k].gradient(__fmul_rn(to_float(dy[i].at[k]), gamma[k]), of[k].xhat(to_float(x[i].at[k])));
            strip.store(b.dx + start + (first + i * strip.phases) * b.channels, dx, b.aligned);
        }
    }
}

// partials: the three sums of each channel in each chunk, (samples, channels, chunks, 3).
template <int WIDTH>
__device__ __forceinline__ void write_partials(
    const Backward& b, float* partials, int64 chunk, int chunks, int across, int strips, float* shared
) {
    const Strip<T, WIDTH, THREADS> strip(b.channels, blockIdx.x % strips, across);
    const int64 number = blockIdx.x / strips % chunks, sample = blockIdx.x / strips / chunks;
    float sums[3][WIDTH] = {};
    collect(b, strip, sample, number * chunk, min(b.positions, (number + 1) * chunk), sums);
    strip.sum(sums, shared);
    if (!strip.active || strip.phase != 0) return;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k)
#pragma unroll
        for (int i = 0; i < 3; ++i)
            partials[((sample * b.channels + strip.column + k) * chunks + number) * 3 + i] = sums[i][k];
}

// Grid: samples * chunks * strips. width: elements of a thread, 16 bytes of them or 1.
extern "C" __global__ __launch_bounds__(THREADS) void channel_sums(
    const T* dy, const T* x, const float* mean, float* partials, int64 samples, int64 positions, int64 channels,
    int64 group_size, int64 chunk, int chunks, int width, int across, int strips) {
    __shared__ float shared[3 * VECTOR * THREADS];
    Backward b{dy, x, nullptr, mean, nullptr, nullptr, positions, channels, group_size};
    b.check_alignment();
    if (width > 1)
        write_partials<VECTOR>(b, partials, chunk, chunks, across, strips, shared);
    else
        write_partials<1>(b, partials, chunk, chunks, across, strips, shared);
}

// A block a group of a sample: of_groups receives its rest, mean(g) and mean(g xhat). channel_totals, (samples,
// channels, 2), is work space. lanes: threads that add up the chunks of a channel. constant: mean and rstd did not
// depend on x.
extern "C" __global__ __launch_bounds__(FINISH_THREADS) void finish_sums(
    const float* partials, const T* gamma, const float* mean, const float* rstd, float* channel_totals,
    float* of_groups, float* dgamma, float* dbeta, float* parameter_partials, int64 positions, int64 channels,
    int64 group_size, int chunks, int lanes, int constant, int accumulate) {
    __shared__ float scratch[SCRATCH];
    const int64 groups = channels / group_size, sample = blockIdx.x / groups, first = blockIdx.x % groups * group_size;
    float group_sums[3] = {0.0f, 0.0f, 0.0f};
    LaneTeam team(lanes);
    const int teams = FINISH_THREADS / lanes, number = threadIdx.x / lanes;
    for (int64 i = number; i - number < group_size; i += teams) {  // all threads as often: they sum together
        const int64 channel = sample * channels + first + i;
        float sums[3] = {0.0f, 0.0f, 0.0f};
        if (i < group_size)
            for (int64 chunk = team.rank; chunk < chunks; chunk += lanes)
                for (int k = 0; k < 3; ++k) sums[k] += partials[(channel * chunks + chunk) * 3 + k];
        team.sum(sums);
        if (i < group_size && team.rank == 0) {
            channel_totals[2 * channel] = sums[0];
            channel_totals[2 * channel + 1] = sums[1];
            const float scale = gamma ? to_float(gamma[first + i]) : 1.0f;
            group_sums[0] += __fmul_rn(scale, sums[0]);
            group_sums[1] += scale * sums[1];
            group_sums[2] += sums[2];
        }
    }
    BlockTeam<FINISH_THREADS>(scratch).sum(group_sums);  // and orders the totals before what follows
    NormGradient of{mean[blockIdx.x], rstd[blockIdx.x], 0.0f, 0.0f, 0.0f};
    if (!constant) of.finish(group_sums, positions * group_size, 1);
    if (threadIdx.x == 0) {
        of_groups[3 * blockIdx.x] = of.rest;
        of_groups[3 * blockIdx.x + 1] = of.mean_g;
        of_groups[3 * blockIdx.x + 2] = of.mean_g_xhat;
    }
    const Destination destination{dgamma, dbeta, parameter_partials, accumulate};
    for (int64 i = threadIdx.x; i < group_size; i += FINISH_THREADS) {
        const float* const totals = channel_totals + 2 * (sample * channels + first + i);
        destination.write(sample, channels, first + i, of.rstd * (totals[1] - of.rest * totals[0]), totals[0]);
    }
}

template <int WIDTH>
__device__ __forceinline__ void write_chunk(
    const Backward& b, const float* of_groups, int64 chunk, int chunks, int across, int strips
) {
    const Strip<T, WIDTH, THREADS> strip(b.channels, blockIdx.x % strips, across);
    if (!strip.active) return;
    const int64 number = blockIdx.x / strips % chunks, sample = blockIdx.x / strips / chunks;
    NormGradient of[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        const int64 group = (sample * b.channels + strip.column + k) / b.group_size;
        of[k] = {b.mean[group], b.rstd[group], 0.0f, 0.0f, 0.0f};
        if (of_groups) {
            of[k].rest = of_groups[3 * group];
            of[k].mean_g = of_groups[3 * group + 1];
            of[k].mean_g_xhat = of_groups[3 * group + 2];
        }
    }
    write(b, strip, of, sample, number * chunk, min(b.positions, (number + 1) * chunk));
}

// of_groups: null where mean and rstd were constants.
extern "C" __global__ __launch_bounds__(THREADS) void channel_gradient(
    const T* dy, const T* x, const T* gamma, const float* mean, const float* rstd, const float* of_groups, T* dx,
    int64 samples, int64 positions, int64 channels, int64 group_size, int64 chunk, int chunks, int width, int across,
    int strips) {
    Backward b{dy, x, gamma, mean, rstd, dx, positions, channels, group_size};
    b.check_alignment();
    if (width > 1)
        write_chunk<VECTOR>(b, of_groups, chunk, chunks, across, strips);
    else
        write_chunk<1>(b, of_groups, chunk, chunks, across, strips);
}

// The strip holds whole groups, so the block has all that their sums take; dy and x come from a cache the second time.
template <int WIDTH>
__device__ __forceinline__ void gradient_at_once(
    const Backward& b, const Destination& destination, int constant, int across, int strips, float* shared
) {
    const Strip<T, WIDTH, THREADS> strip(b.channels, blockIdx.x % strips, across);
    const int64 sample = blockIdx.x / strips;
    float sums[3][WIDTH] = {};
    collect(b, strip, sample, 0, b.positions, sums);
    strip.sum(sums, shared);
    __syncthreads();

    // The sums of each channel of the strip, (3, channels).
    const int held = across * WIDTH, group_size = static_cast<int>(b.group_size);
    const int64 first = blockIdx.x % strips * static_cast<int64>(held);
    const int channels = static_cast<int>(min(static_cast<int64>(held), b.channels - first));
    if (strip.active && strip.phase == 0) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)
#pragma unroll
            for (int i = 0; i < 3; ++i) shared[i * held + static_cast<int>(strip.column - first) + k] = sums[i][k];
    }
    __syncthreads();
    // Then of each group its rest, mean(g) and mean(g xhat), (groups, 3).
    float* const of_groups = shared + 3 * held;
    for (int group = threadIdx.x; group < channels / group_size; group += THREADS) {
        const int64 number = (sample * b.channels + first) / b.group_size + group;
        float group_sums[3] = {0.0f, 0.0f, 0.0f};
        for (int i = group * group_size; i < (group + 1) * group_size; ++i) {
            const float scale = b.scale(first + i);
            group_sums[0] += __fmul_rn(scale, shared[i]);
            group_sums[1] += scale * shared[held + i];
            group_sums[2] += shared[2 * held + i];
        }
        NormGradient of{b.mean[number], b.rstd[number], 0.0f, 0.0f, 0.0f};
        if (!constant) of.finish(group_sums, b.positions * b.group_size, 1);
        for (int i = group * group_size; i < (group + 1) * group_size; ++i)
            destination.write(
                sample, b.channels, first + i, of.rstd * (shared[held + i] - of.rest * shared[i]), shared[i]);
        of_groups[3 * group] = of.rest;
        of_groups[3 * group + 1] = of.mean_g;
        of_groups[3 * group + 2] = of.mean_g_xhat;
    }
    __syncthreads();
    if (!strip.active) return;
    NormGradient of[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
        const int local = static_cast<int>(strip.column - first + k) / group_size;
        const int64 number = (sample * b.channels + strip.column + k) / b.group_size;
        const float* const group = of_groups + 3 * local;
        of[k] = {b.mean[number], b.rstd[number], group[0], group[1], group[2]};
    }
    write(b, strip, of, sample, 0, b.positions);
}

// Grid: samples * strips. Shared memory serves the phases first, then 6 floats for each of at most 64 * VECTOR
// channels.
extern "C" __global__ __launch_bounds__(THREADS, 2) void channel_gradient_at_once(
    const T* dy, const T* x, const T* gamma, const float* mean, const float* rstd, T* dx, float* dgamma, float* dbeta,
    float* parameter_partials, int64 samples, int64 positions, int64 channels, int64 group_size, int constant,
    int accumulate, int width, int across, int strips) {
    __shared__ float shared[3 * VECTOR * THREADS];
    Backward b{dy, x, gamma, mean, rstd, dx, positions, channels, group_size};
    b.check_alignment();
    const Destination destination{dgamma, dbeta, parameter_partials, accumulate};
    if (width > 1)
        gradient_at_once<VECTOR>(b, destination, constant, across, strips, shared);
    else
        gradient_at_once<1>(b, destination, constant, across, strips, shared);
}
