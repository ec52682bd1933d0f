// The intrinsics of kernels/include that emulator_features.cu does not show, each alone: tests/gpu/golden.py records what
// a GPU returns.
#include "async.cuh"
#include "math.cuh"
#include "mma.cuh"
#include "rounding.cuh"
#include "vector.cuh"

// y: one row of n for each function.
extern "C" __global__ __launch_bounds__(256) void instructions(const float* x, float* y, int64 n) {
    grid_stride(n, [&](int64 i) {
        y[i] = exp2_approximate(x[i]);
        y[n + i] = log2_approximate(fabsf(x[i]));
        y[2 * n + i] = reciprocal(x[i]);
    });
}

// What is defined on a part of the line takes x into that part.
extern "C" __global__ __launch_bounds__(256) void functions(const float* x, float* y, int64 n) {
    grid_stride(n, [&](int64 i) {
        const float size = fabsf(x[i]);
        y[i] = exponential<T>(x[i]);
        y[n + i] = exponential_minus_one<T>(-size);
        y[2 * n + i] = log_one_plus<T>(1.0f / (1.0f + size));
        y[3 * n + i] = hyperbolic_tangent<T>(x[i]);
        y[4 * n + i] = logistic<T>(x[i]);
        y[5 * n + i] = normal_tail_over_decay<T>(size);
    });
}

extern "C" __global__ __launch_bounds__(256) void float_to_tf32(const float* x, uint32* y, int64 n) {
    grid_stride(n, [&](int64 i) { y[i] = to_tf32(x[i]); });
}

// counters: n rows of 4; y likewise.
extern "C" __global__ __launch_bounds__(256) void random_words(const double* control, const uint32* counters, uint32* y,
                                                               int64 n) {
    grid_stride(n, [&](int64 i) {
        const uint32* counter = counters + 4 * i;
        const uint4 words =
            philox4x32(make_uint4(counter[0], counter[1], counter[2], counter[3]), random_key(control));
        y[4 * i] = words.x, y[4 * i + 1] = words.y, y[4 * i + 2] = words.z, y[4 * i + 3] = words.w;
    });
}

extern "C" __global__ __launch_bounds__(256) void rounded_at_random(const float* x, const uint32* bits, float16* half,
                                                                    bfloat16* bfloat, int64 n) {
    grid_stride(n, [&](int64 i) {
        half[i] = round_at_random<float16>(x[i], bits[i] >> 16);
        bfloat[i] = round_at_random<bfloat16>(x[i], bits[i] >> 16);
    });
}

// The first warp hands numbers to the second, and takes them back.
extern "C" __global__ __launch_bounds__(64) void handed_over(const int* x, int* y) {
    __shared__ int there[32], back[32];
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        there[lane] = x[lane];
        named_barrier_arrive(1, 64);
        named_barrier_sync(2, 64);
        y[lane] = back[31 - lane];
    } else {
        named_barrier_sync(1, 64);
        back[lane] = 3 * there[31 - lane];
        named_barrier_arrive(2, 64);
    }
}
