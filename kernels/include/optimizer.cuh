// What the steps of the optimizers share: settings by tile, the regularised gradient, one pass over the arena.
#pragma once
#include "rounding.cuh"
#include "vector.cuh"

// Of bp/ops/optimizer.py: elements that share one row of settings, and the columns of that row.
constexpr int ARENA_TILE = 128;
constexpr int QUAD = 4;  // elements that a thread takes at a time: 16 bytes of float
enum Setting { LR_FACTOR, DECOUPLED_DECAY, L2, L1, SETTINGS };

// The whole grid sees the same.
__device__ __forceinline__ bool step_is_skipped(const double* control) { return control[SKIP_STEP] != 0.0; }

// NAdam's momentum at step t.
__device__ __forceinline__ double momentum_at(double t, double beta1, double momentum_decay) {
    return beta1 * (1.0 - 0.5 * pow(0.96, t * momentum_decay));
}

// The numbers of one row of settings, with the learning rate and the gradient scale of the step.
struct Settings {
    float scale, lr, l2, l1;
    float kept;  // of a value, by decoupled decay

    __device__ __forceinline__ Settings(const float* row, float base_lr, float gradient_scale) {
        const Vector<float> setting = load16(row);
        scale = gradient_scale;
        lr = base_lr * setting.at[LR_FACTOR];
        l2 = setting.at[L2];
        l1 = setting.at[L1];
        kept = 1.0f - lr * setting.at[DECOUPLED_DECAY];
    }

    // g = scale * gradient + l2 * value + l1 * sign(value). A coefficient of zero leaves an infinite value out.
    __device__ __forceinline__ float regularized(float gradient, float value) const {
        float g = scale * gradient;
        if (l2 != 0.0f) g += l2 * value;
        if (l1 != 0.0f) g += value > 0.0f ? l1 : value < 0.0f ? -l1 : value;
        return g;
    }
};

// Rounds four values to the copy, and stores them as the 8 bytes they are.
template <typename Copy>
__device__ __forceinline__ void store_copy(Copy* copy, int64 quad, const Vector<float>& values, bool stochastic,
                                           const double* control) {
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (stochastic) bits = rounding_bits(quad, control);
    const uint32 words[QUAD] = {bits.x, bits.y, bits.z, bits.w};
    uint64 packed = 0;
#pragma unroll
    for (int e = 0; e < QUAD; ++e) {
        const float x = values.at[e];
        const Copy y = stochastic ? round_at_random<Copy>(x, words[e] >> 16) : convert<Copy>(x);
        packed |= static_cast<uint64>(y.bits) << (16 * e);
    }
    *reinterpret_cast<uint64*>(copy + QUAD * quad) = packed;
}

// value = kept * value - lr * direction, with direction = rule(g, states of the element), which may change the states.
//
// One pass over memory, 16 bytes an array and step: values, gradients and states in, values, states and copy out; a
// warp has one tile at a time, so its lanes read the same row of settings. A state or copy that is absent is null.
template <int STATES, typename Copy, typename Rule>
__device__ __forceinline__ void update_arena(float* values, const float* gradients, float* const (&states)[STATES],
                                             const float* settings, const double* control, Copy* copy, bool stochastic,
                                             int64 n, Rule rule) {
    const float base_lr = static_cast<float>(control[LEARNING_RATE]);
    const float gradient_scale = static_cast<float>(control[GRADIENT_SCALE]);
    grid_stride(n / QUAD, [&](int64 quad) {
        const int64 first = QUAD * quad;
        Vector<float> value = load16(values + first);
        const Vector<float> gradient = load16(gradients + first);
        Vector<float> state[STATES] = {};
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            if (states[k] != nullptr) state[k] = load16(states[k] + first);
        const Settings row(settings + SETTINGS * (first / ARENA_TILE), base_lr, gradient_scale);
#pragma unroll
        for (int e = 0; e < QUAD; ++e) {
            float mine[STATES];
#pragma unroll
            for (int k = 0; k < STATES; ++k) mine[k] = state[k].at[e];
            const float direction = rule(row.regularized(gradient.at[e], value.at[e]), mine);
            value.at[e] = row.kept * value.at[e] - row.lr * direction;
#pragma unroll
            for (int k = 0; k < STATES; ++k) state[k].at[e] = mine[k];
        }
        store16(values + first, value);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
            if (states[k] != nullptr) store16(states[k] + first, state[k]);
        if (copy != nullptr) store_copy(copy, quad, value, stochastic, control);
    });
}
