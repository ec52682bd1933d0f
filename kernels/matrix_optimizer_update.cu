// The updates of Adafactor and Muon. COPY is the type of the low-precision copy.
#include "matrix_optimizer.cuh"

constexpr int THREADS = 256;

// Values and copy of one element.
__device__ __forceinline__ void store_value(float* values, COPY* copy, int64 i, float value, bool stochastic,
                                            const double* control) {
    values[i] = value;
    if (copy == nullptr) return;
    if (!stochastic) {
        copy[i] = convert<COPY>(value);
        return;
    }
    const uint4 bits = rounding_bits(i / QUAD, control);
    const int64 word = i % QUAD;
    copy[i] = round_at_random<COPY>(value, (word == 0 ? bits.x : word == 1 ? bits.y : word == 2 ? bits.z : bits.w) >> 16);
}

// value = kept * value - alpha / max(1, rms(u) / threshold) * u. Four blocks, as adafactor_size.
extern "C" __global__ __launch_bounds__(THREADS, 4) void adafactor_update(
    float* values, const float* gradients, const float* row_means, const float* column_means, const float* settings,
    const double* control, const double* mean_sums, const double* value_sums, const double* update_sums,
    COPY* low_precision, int64 rows, int64 columns, int64 band, int64 mean_parts, int64 parts, double eps1, double eps2,
    double threshold, bool stochastic_rounding) {
    __shared__ double scratch[WARP];
    __shared__ float shared_factor;
    if (step_is_skipped(control)) return;
    const Scaled scaled = scaled_by(row_means, column_means, mean_sums, mean_parts, rows, eps1, scratch);
    const Settings step = settings_of_step(settings, control);
    const double size = static_cast<double>(rows) * static_cast<double>(columns);
    const double value_sum = block_total(value_sums, parts, scratch), update_sum = block_total(update_sums, parts, scratch);
    if (threadIdx.x == 0) {
        const double value_size = sqrt(value_sum / size), excess = sqrt(update_sum / size) / threshold;
        const double lr = control[LEARNING_RATE] * static_cast<double>(settings[LR_FACTOR]);
        const double alpha = (value_size > eps2 ? value_size : eps2) * min(lr, 1.0 / sqrt(control[APPLIED_STEP]));
        shared_factor = static_cast<float>(alpha / (excess > 1.0 ? excess : 1.0));
    }
    __syncthreads();
    const float factor = shared_factor;
    Part(rows, columns, band)
        .each(
            [&](int64 row, int64 column, int) {
                const int64 i = row * columns + column;
                const float u = scaled(step.regularized(gradients[i], values[i]), row, column);
                store_value(values, low_precision, i, step.kept * values[i] - factor * u, stochastic_rounding, control);
            },
            [](int64) {});
}

// value = kept * value - lr ratio x.
extern "C" __global__ __launch_bounds__(THREADS) void muon_update(float* values, const float* x, const float* settings,
                                                                  const double* control, COPY* low_precision, int64 n,
                                                                  double ratio, bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    const Settings step = settings_of_step(settings, control);
    const float factor = step.lr * static_cast<float>(ratio);
    grid_stride(n, [&](int64 i) {
        store_value(values, low_precision, i, step.kept * values[i] - factor * x[i], stochastic_rounding, control);
    });
}
