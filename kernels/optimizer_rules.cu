// The elementwise optimizer steps: one pass over the arena each; the formulas stand in bp/ops/optimizer.py.
//
// Streaming kernels. Bytes an element: 12 for values and gradients, 8 for each state, 2 for a copy, so 28 for AdamW
// without one. What a step needs of powers and roots of the step count is computed once a block, in double, by its
// first thread. COPY is the type of the low-precision copy; where that is null the type does not matter.
#include "optimizer.cuh"

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void sgd(float* values, const float* gradients, float* velocity,
                                                          const float* settings, const double* control,
                                                          COPY* low_precision, int64 n, double momentum,
                                                          double dampening, bool nesterov, bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    const bool has_velocity = velocity != nullptr, is_first = control[APPLIED_STEP] <= 1.0;
    const float kept = static_cast<float>(is_first ? 0.0 : momentum), ahead = static_cast<float>(momentum);
    const float weight = static_cast<float>(is_first ? 1.0 : 1.0 - dampening);
    float* const states[] = {velocity};
    update_arena(values, gradients, states, settings, control, low_precision, stochastic_rounding, n,
                 [=](float g, float (&v)[1]) {
                     if (!has_velocity) return g;
                     v[0] = is_first ? g : kept * v[0] + weight * g;
                     return nesterov ? g + ahead * v[0] : v[0];
                 });
}

extern "C" __global__ __launch_bounds__(THREADS) void adagrad(float* values, const float* gradients,
                                                              float* sum_of_squares, const float* settings,
                                                              const double* control, COPY* low_precision, int64 n,
                                                              double lr_decay, double eps, bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    __shared__ float shrink;
    if (threadIdx.x == 0) shrink = static_cast<float>(1.0 / (1.0 + (control[APPLIED_STEP] - 1.0) * lr_decay));
    __syncthreads();
    const float factor = shrink, least = static_cast<float>(eps);
    float* const states[] = {sum_of_squares};
    update_arena(values, gradients, states, settings, control, low_precision, stochastic_rounding, n,
                 [=](float g, float (&s)[1]) {
                     s[0] += g * g;
                     return g / (sqrtf(s[0]) + least) * factor;
                 });
}

extern "C" __global__ __launch_bounds__(THREADS) void adadelta(float* values, const float* gradients, float* mean_square,
                                                               float* mean_square_step, const float* settings,
                                                               const double* control, COPY* low_precision, int64 n,
                                                               double rho, double eps, bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    const float kept = static_cast<float>(rho), weight = static_cast<float>(1.0 - rho), least = static_cast<float>(eps);
    float* const states[] = {mean_square, mean_square_step};
    update_arena(values, gradients, states, settings, control, low_precision, stochastic_rounding, n,
                 [=](float g, float (&s)[2]) {
                     s[0] = kept * s[0] + weight * (g * g);
                     const float direction = g * sqrtf((s[1] + least) / (s[0] + least));
                     s[1] = kept * s[1] + weight * (direction * direction);
                     return direction;
                 });
}

extern "C" __global__ __launch_bounds__(THREADS) void rmsprop(float* values, const float* gradients, float* mean_square,
                                                              float* mean, float* velocity, const float* settings,
                                                              const double* control, COPY* low_precision, int64 n,
                                                              double alpha, double eps, double momentum,
                                                              bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    const float kept = static_cast<float>(alpha), weight = static_cast<float>(1.0 - alpha);
    const float least = static_cast<float>(eps), factor = static_cast<float>(momentum);
    const bool centered = mean != nullptr, has_velocity = velocity != nullptr;
    float* const states[] = {mean_square, mean, velocity};
    update_arena(values, gradients, states, settings, control, low_precision, stochastic_rounding, n,
                 [=](float g, float (&s)[3]) {
                     s[0] = kept * s[0] + weight * (g * g);
                     float square = s[0];
                     if (centered) {
                         s[1] = kept * s[1] + weight * g;
                         square -= s[1] * s[1];
                         square = square < 0.0f ? 0.0f : square;  // rounding; NaN stays
                     }
                     const float direction = g / (sqrtf(square) + least);
                     if (!has_velocity) return direction;
                     s[2] = factor * s[2] + direction;
                     return s[2];
                 });
}

extern "C" __global__ __launch_bounds__(THREADS) void adam(float* values, const float* gradients, float* first_moment,
                                                           float* second_moment, float* largest_second_moment,
                                                           const float* settings, const double* control,
                                                           COPY* low_precision, int64 n, double beta1, double beta2,
                                                           double eps, bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    __shared__ float corrections[2];  // 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
    if (threadIdx.x == 0) {
        const double t = control[APPLIED_STEP];
        corrections[0] = static_cast<float>(1.0 / (1.0 - pow(beta1, t)));
        corrections[1] = static_cast<float>(1.0 / sqrt(1.0 - pow(beta2, t)));
    }
    __syncthreads();
    const float first = corrections[0], second = corrections[1], least = static_cast<float>(eps);
    const float kept1 = static_cast<float>(beta1), weight1 = static_cast<float>(1.0 - beta1);
    const float kept2 = static_cast<float>(beta2), weight2 = static_cast<float>(1.0 - beta2);
    const bool amsgrad = largest_second_moment != nullptr;
    float* const states[] = {first_moment, second_moment, largest_second_moment};
    update_arena(values, gradients, states, settings, control, low_precision, stochastic_rounding, n,
                 [=](float g, float (&s)[3]) {
                     s[0] = kept1 * s[0] + weight1 * g;
                     s[1] = kept2 * s[1] + weight2 * (g * g);
                     float square = s[1];
                     if (amsgrad) square = s[2] = s[2] >= square ? s[2] : square;  // NaN of either stays
                     return first * s[0] / (sqrtf(square) * second + least);
                 });
}

extern "C" __global__ __launch_bounds__(THREADS) void nadam(float* values, const float* gradients, float* first_moment,
                                                            float* second_moment, const float* settings,
                                                            const double* control, COPY* low_precision, int64 n,
                                                            double beta1, double beta2, double eps,
                                                            double momentum_decay, bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    __shared__ float factors[3];  // of g and of m in the direction, of sqrt(v) below it
    if (threadIdx.x == 0) {
        const double t = control[APPLIED_STEP], product = control[MOMENTUM_PRODUCT];
        const double mu = momentum_at(t, beta1, momentum_decay), mu_next = momentum_at(t + 1.0, beta1, momentum_decay);
        factors[0] = static_cast<float>((1.0 - mu) / (1.0 - product));
        factors[1] = static_cast<float>(mu_next / (1.0 - product * mu_next));
        factors[2] = static_cast<float>(1.0 / sqrt(1.0 - pow(beta2, t)));
    }
    __syncthreads();
    const float of_g = factors[0], of_mean = factors[1], correction = factors[2], least = static_cast<float>(eps);
    const float kept1 = static_cast<float>(beta1), weight1 = static_cast<float>(1.0 - beta1);
    const float kept2 = static_cast<float>(beta2), weight2 = static_cast<float>(1.0 - beta2);
    float* const states[] = {first_moment, second_moment};
    update_arena(values, gradients, states, settings, control, low_precision, stochastic_rounding, n,
                 [=](float g, float (&s)[2]) {
                     s[0] = kept1 * s[0] + weight1 * g;
                     s[1] = kept2 * s[1] + weight2 * (g * g);
                     return (of_g * g + of_mean * s[0]) / (sqrtf(s[1]) * correction + least);
                 });
}

extern "C" __global__ __launch_bounds__(THREADS) void lion(float* values, const float* gradients, float* first_moment,
                                                           const float* settings, const double* control,
                                                           COPY* low_precision, int64 n, double beta1, double beta2,
                                                           bool stochastic_rounding) {
    if (step_is_skipped(control)) return;
    const float kept1 = static_cast<float>(beta1), weight1 = static_cast<float>(1.0 - beta1);
    const float kept2 = static_cast<float>(beta2), weight2 = static_cast<float>(1.0 - beta2);
    float* const states[] = {first_moment};
    update_arena(values, gradients, states, settings, control, low_precision, stochastic_rounding, n,
                 [=](float g, float (&m)[1]) {
                     const float ahead = kept1 * m[0] + weight1 * g;
                     m[0] = kept2 * m[0] + weight2 * g;
                     return ahead > 0.0f ? 1.0f : ahead < 0.0f ? -1.0f : ahead;  // sign; NaN stays
                 });
}
