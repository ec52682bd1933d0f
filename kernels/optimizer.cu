// Around the step of an optimizer: counting steps, clipping, the gradient norm, the loss scale, averages of weights.
//
// What changes from step to step is read from the control block and written to it here, so the host waits for nothing.
#include "optimizer.cuh"
#include "sum_double.cuh"

constexpr int THREADS = 256;
constexpr int ONE_WARP = 32;  // of the kernels whose first thread does all there is to do
constexpr int IN_FLIGHT = 4;  // vectors that a thread of squares_in_blocks has on the way at a time

extern "C" __global__ __launch_bounds__(ONE_WARP) void advance_step(double* control) {
    if (threadIdx.x != 0) return;
    control[ATTEMPTED_STEP] += 1.0;
    if (control[SKIP_STEP] == 0.0) control[APPLIED_STEP] += 1.0;
}

extern "C" __global__ __launch_bounds__(ONE_WARP) void adjust_loss_scale(double* control, double growth_factor,
                                                                         double backoff_factor, int64 growth_interval,
                                                                         double least, double largest) {
    if (threadIdx.x != 0) return;
    const bool overflow = !(control[GRADIENT_NORM] < INFINITE);  // infinite or NaN
    const double good_steps = overflow ? 0.0 : control[GOOD_STEPS] + 1.0;
    const bool grows = good_steps >= static_cast<double>(growth_interval);
    const double scale = control[LOSS_SCALE] * (overflow ? backoff_factor : grows ? growth_factor : 1.0);
    control[SKIP_STEP] = overflow ? 1.0 : 0.0;
    control[GOOD_STEPS] = grows ? 0.0 : good_steps;
    control[LOSS_SCALE] = min(max(scale, least), largest);
}

// control[MOMENTUM_PRODUCT] *= momentum of this step. In a launch of its own: every block of nadam reads the product.
extern "C" __global__ __launch_bounds__(ONE_WARP) void nadam_momentum(double* control, double beta1,
                                                                      double momentum_decay) {
    if (step_is_skipped(control) || threadIdx.x != 0) return;
    const double t = control[APPLIED_STEP];
    control[MOMENTUM_PRODUCT] = momentum_at(t, beta1, momentum_decay) * (t <= 1.0 ? 1.0 : control[MOMENTUM_PRODUCT]);
}

// Comparisons with NaN are false, so it stays; under a loss scale an infinity does too.
extern "C" __global__ __launch_bounds__(THREADS) void clip_by_value(float* gradients, const double* control, int64 n,
                                                                    double limit) {
    const double scale = control[LOSS_SCALE];
    const float most = static_cast<float>(limit * scale);
    const bool keep_infinity = scale > 1.0;
    map1(gradients, gradients, n, [=](float g) {
        if (keep_infinity && fabsf(g) == INFINITE) return g;
        return g > most ? most : g < -most ? -most : g;
    });
}

// partial[block] = the sum of the squares that fall to it, in double: exact products, no overflow. The blocks depend on
// n alone. 4 bytes an element: a thread has 64 bytes on the way, which hides the latency of memory.
extern "C" __global__ __launch_bounds__(THREADS) void squares_in_blocks(const float* x, double* partial, int64 n) {
    __shared__ double scratch[WARP];
    constexpr int V = Vector<float>::size;
    const int64 vectors = aligned16(x) ? n / V : 0, threads = static_cast<int64>(gridDim.x) * THREADS;
    const int64 thread = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x;
    double sum[IN_FLIGHT] = {};
    for (int64 first = thread; first < vectors; first += IN_FLIGHT * threads) {
        Vector<float> v[IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k)
            v[k] = first + k * threads < vectors ? load16(x + V * (first + k * threads)) : Vector<float>{};
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k)
#pragma unroll
            for (int e = 0; e < V; ++e) sum[k] += static_cast<double>(v[k].at[e]) * static_cast<double>(v[k].at[e]);
    }
    for (int64 i = V * vectors + thread; i < n; i += threads)
        sum[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    const double total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

extern "C" __global__ __launch_bounds__(THREADS) void norm_and_scale(const double* partial, double* control, int64 count,
                                                                     double max_norm) {
    __shared__ double scratch[WARP];
    const double sum = block_total(partial, count, scratch);
    if (threadIdx.x != 0) return;
    const double scale = control[LOSS_SCALE], norm = sqrt(sum) / scale;
    const bool clips = norm > max_norm && norm < INFINITE;  // not where it is infinite or NaN
    control[GRADIENT_NORM] = norm;
    control[GRADIENT_SCALE] = (clips ? max_norm / norm : 1.0) / scale;
}

extern "C" __global__ __launch_bounds__(THREADS) void moving_average(float* averages, const float* values,
                                                                     const double* updates, int64 n, double decay,
                                                                     bool warmup) {
    const double t = updates[0];
    const float weight = static_cast<float>(1.0 - (warmup ? min(decay, (1.0 + t) / (10.0 + t)) : decay));
    map2(averages, values, averages, n, [=](float average, float value) { return average + weight * (value - average); });
}

// In a launch of its own: every block of moving_average reads the number.
extern "C" __global__ __launch_bounds__(ONE_WARP) void count_update(double* updates) {
    if (threadIdx.x == 0) updates[0] += 1.0;
}
