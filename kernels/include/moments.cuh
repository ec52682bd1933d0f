// Mean and spread of numbers, gathered in parts and combined: never as E[x^2] - E[x]^2, which cancels.
#pragma once
#include "types.cuh"

// `count` numbers of that mean; `spread` is the sum of their squared distances from it.
//
// Combining is exact but for rounding, in whatever parts the numbers come. Source: Chan, Golub, LeVeque, Updating
// Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
struct Moments {
    float count = 0.0f;
    float mean = 0.0f;
    float spread = 0.0f;

    __device__ __forceinline__ void add(const Moments& other) {
        if (other.count == 0.0f) return;
        const float total = count + other.count, weight = other.count / total;
        const float distance = other.mean - mean;
        mean += distance * weight;
        spread += other.spread + distance * distance * (count * weight);
        count = total;
    }

    // Those of `lanes` neighbouring lanes, a power of two, combined: of all in each. The whole warp calls it.
    __device__ __forceinline__ void gather(int lanes) {
        for (int offset = lanes / 2; offset > 0; offset /= 2) {
            Moments other;
            other.count = __shfl_down_sync(0xffffffffu, count, offset, lanes);
            other.mean = __shfl_down_sync(0xffffffffu, mean, offset, lanes);
            other.spread = __shfl_down_sync(0xffffffffu, spread, offset, lanes);
            add(other);
        }
        count = __shfl_sync(0xffffffffu, count, 0, lanes);
        mean = __shfl_sync(0xffffffffu, mean, 0, lanes);
        spread = __shfl_sync(0xffffffffu, spread, 0, lanes);
    }
};

// The moments of WIDTH columns of equally many numbers.
template <int WIDTH>
struct ColumnMoments {
    float count = 0.0f;
    float mean[WIDTH] = {};
    float spread[WIDTH] = {};

    // By Chan's formulae, as Moments::add; one division for all columns.
    __device__ __forceinline__ void add(
        float other_count, const float (&other_mean)[WIDTH], const float (&other_spread)[WIDTH]
    ) {
        if (other_count == 0.0f) return;
        const float total = count + other_count, weight = other_count / total;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            const float distance = other_mean[k] - mean[k];
            mean[k] += distance * weight;
            spread[k] += other_spread[k] + distance * distance * (count * weight);
        }
        count = total;
    }
};

// A mean as the sum of two floats: `high` is the float next to it, `low` what that leaves out, up to half a unit in
// its last place. Beside a mean of 10,000 that is 5e-4, which a standard deviation of 1 would show.
struct WideMean {
    float high;
    float low;

    // a + b without loss. Source: Knuth, The Art of Computer Programming, volume 2, 4.2.2.
    __device__ __forceinline__ WideMean(float a, float b) : high(a + b) {
        const float part = high - a;
        low = (a - (high - part)) + (b - part);
    }
};
