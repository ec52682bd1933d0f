// The mean and variance of each column of a matrix from the moments of its tiles, which whoever stored them left
// behind.
#include "tile_moments.cuh"

constexpr int THREADS = 256;
constexpr int CHANNELS = 8;  // of a block: a sector of 32 bytes of each row
constexpr int PHASES = THREADS / CHANNELS;

// moments: as TileMoments lays them out. Threads of one channel share its tiles, always in the same way.
//
// The formulae of Chan, Golub and LeVeque (moments.cuh) for all tiles at once: the mean is that of the tiles' means,
// the spread that of the tiles and the squared distances of their means from it. Means are added up about the first
// tile's pivot; rest receives what the float32 mean leaves out of the sum of both.
extern "C" __global__ __launch_bounds__(THREADS) void merge_moments(const float* moments, float* mean, float* rest,
                                                                    float* variance, int64 tiles, int64 channels) {
    __shared__ float found[2][THREADS];
    const int phase = threadIdx.x / CHANNELS;
    const int64 channel = static_cast<int64>(blockIdx.x) * CHANNELS + threadIdx.x % CHANNELS;
    const bool active = channel < channels;
    const float *const pivots = moments, *const distances = pivots + tiles * channels;
    const float *const spreads = distances + tiles * channels, *const rows = spreads + tiles * channels;
    const float pivot = active ? pivots[channel] : 0.0f;
    const auto distance_of = [&](int64 tile) {
        return pivots[tile * channels + channel] - pivot + distances[tile * channels + channel];
    };
    // Both sums of all phases, in every thread of the channel.
    auto total = [&](float x, float y, float& all_x, float& all_y) {
        found[0][threadIdx.x] = x;
        found[1][threadIdx.x] = y;
        __syncthreads();
        all_x = all_y = 0.0f;
#pragma unroll
        for (int other = 0; other < PHASES; ++other) {
            all_x += found[0][other * CHANNELS + threadIdx.x % CHANNELS];
            all_y += found[1][other * CHANNELS + threadIdx.x % CHANNELS];
        }
        __syncthreads();
    };
    float count = 0.0f, sum = 0.0f, all, distance;
    if (active) {
#pragma unroll 4
        for (int64 tile = phase; tile < tiles; tile += PHASES) {
            count += rows[tile];
            sum += rows[tile] * distance_of(tile);
        }
    }
    total(count, sum, all, distance);
    distance /= all;
    float within = 0.0f, between = 0.0f, all_within, all_between;
    if (active) {
#pragma unroll 4
        for (int64 tile = phase; tile < tiles; tile += PHASES) {
            const float apart = distance_of(tile) - distance;
            within += spreads[tile * channels + channel];
            between += rows[tile] * apart * apart;
        }
    }
    total(within, between, all_within, all_between);
    if (phase != 0 || !active) return;
    const WideMean center(pivot, distance);
    mean[channel] = center.high;
    rest[channel] = center.low;
    variance[channel] = (all_within + all_between) / all;
}
