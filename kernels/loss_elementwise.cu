// Losses of single elements, and the chain rule for their terms; the formulas are derived in bp/ops/loss.py.
//
// Streaming kernels: predictions and targets are read once, losses (float) and gradients written once, 16 bytes at a
// time. Terms are computed to the precision of a float in every type, for they are stored in one. `gradient` says
// whether gradients are wanted, which are null where not; the count of bytes takes it from there.
#include "gradient.cuh"
#include "indexing.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
constexpr int BLOCKS = 4;  // at once, at least: the compiler would spill registers for more

// loss = f(x, t, i, slope) for each element i, where f also sets dloss/dx. gradients may be null.
template <typename Function>
__device__ __forceinline__ void each_element(const T* x, const T* t, const double* control, float* losses,
                                             T* gradients, int64 n, Function f) {
    constexpr int V = Vector<T>::size, FLOATS = Vector<float>::size;
    const float factor = gradient_factor(control);
    const bool aligned = aligned16(x) && aligned16(t) && aligned16(losses) && aligned16(gradients);
    const int64 vectors = aligned ? n / V : 0;
    grid_stride(vectors, [&](int64 i) {
        Vector<T> prediction = load16(x + i * V);
        const Vector<T> target = load16(t + i * V);
        Vector<float> loss[V / FLOATS];
#pragma unroll
        for (int k = 0; k < V; ++k) {
            float slope;
            loss[k / FLOATS].at[k % FLOATS] = f(to_float(prediction.at[k]), to_float(target.at[k]), i * V + k, slope);
            prediction.at[k] = convert<T>(slope * factor);
        }
#pragma unroll
        for (int k = 0; k < V / FLOATS; ++k) store16(losses + i * V + k * FLOATS, loss[k]);
        if (gradients) store16(gradients + i * V, prediction);
    });
    const int64 done = vectors * V;
    grid_stride(n - done, [&](int64 i) {
        i += done;
        float slope;
        losses[i] = f(to_float(x[i]), to_float(t[i]), i, slope);
        if (gradients) gradients[i] = convert<T>(slope * factor);
    });
}

// -1, 0, 1 or NaN.
__device__ __forceinline__ float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }

extern "C" __global__ __launch_bounds__(THREADS) void squared_error(const T* x, const T* t, const double* control,
                                                                    float* losses, T* gradients, int64 n,
                                                                    int gradient) {
    each_element(x, t, control, losses, gradients, n, [](float x, float t, int64, float& slope) {
        slope = 2.0f * (x - t);
        return (x - t) * (x - t);
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void absolute_error(const T* x, const T* t, const double* control,
                                                                     float* losses, T* gradients, int64 n,
                                                                     int gradient) {
    each_element(x, t, control, losses, gradients, n, [](float x, float t, int64, float& slope) {
        slope = sign(x - t);
        return fabsf(x - t);
    });
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void huber(const T* x, const T* t, const double* control,
                                                            float* losses, T* gradients, int64 n, float delta,
                                                            int gradient) {
    each_element(x, t, control, losses, gradients, n, [=](float x, float t, int64, float& slope) {
        const float difference = x - t, distance = fabsf(difference);
        const float clipped = distance > delta ? delta : distance;  // NaN stays
        slope = distance > delta ? copysignf(delta, difference) : difference;
        return clipped * (distance - 0.5f * clipped);
    });
}

// pos_weight: one for each of the `classes` columns, or null for 1.
extern "C" __global__ __launch_bounds__(THREADS) void binary_cross_entropy(
    const T* x, const T* t, const float* pos_weight, const double* control, float* losses, T* gradients, int64 n,
    int64 classes, int gradient) {
    each_element(x, t, control, losses, gradients, n, [=](float x, float t, int64 i, float& slope) {
        const float positive = pos_weight ? t * pos_weight[classes == 1 ? 0 : divide(i, classes).remainder] : t;
        const float negative = 1.0f - t;
        // The weights of softplus(|x|), which grows with |x|, and of softplus(-|x|), which vanishes.
        const float growing = x > 0.0f ? negative : positive, vanishing = x > 0.0f ? positive : negative;
        const float small = expf(-fabsf(x));
        const float size = (growing - vanishing * small) / (1.0f + small);
        slope = x > 0.0f ? size : -size;
        return log1pf(small) * (positive + negative) + weighted(growing, fabsf(x));
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void kl_divergence(const T* x, const T* t, const double* control,
                                                                    float* losses, T* gradients, int64 n,
                                                                    int log_target, int gradient) {
    each_element(x, t, control, losses, gradients, n, [=](float x, float t, int64, float& slope) {
        const float p = log_target ? expf(t) : t;
        slope = -p;
        return weighted(p, (log_target ? t : logf(t)) - x);
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void hinge(const T* x, const T* t, const double* control,
                                                            float* losses, T* gradients, int64 n, int squared,
                                                            int gradient) {
    each_element(x, t, control, losses, gradients, n, [=](float x, float t, int64, float& slope) {
        const float distance = 1.0f - t * x, margin = distance < 0.0f ? 0.0f : distance;  // NaN stays
        slope = -t * (squared ? 2.0f * margin : sign(margin));
        return squared ? margin * margin : margin;
    });
}

// gradients[i] *= dlosses[i / inner], in place: `inner` elements follow each other that belong to one term.
extern "C" __global__ __launch_bounds__(THREADS) void scale_terms(T* gradients, const float* dlosses, int64 n,
                                                                  int64 inner) {
    constexpr int V = Vector<T>::size;
    const int64 vectors = aligned16(gradients) ? n / V : 0;
    grid_stride(vectors, [&](int64 i) {
        Vector<T> v = load16(gradients + i * V);
        int64 term = divide(i * V, inner).quotient;
        int64 left = (term + 1) * inner - i * V;  // of this term, elements still to come
#pragma unroll
        for (int k = 0; k < V; ++k) {
            v.at[k] = convert<T>(to_float(v.at[k]) * dlosses[term]);
            if (--left == 0) {
                left = inner;
                ++term;
            }
        }
        store16(gradients + i * V, v);
    });
    const int64 done = vectors * V;
    grid_stride(n - done, [&](int64 i) {
        gradients[done + i] = convert<T>(to_float(gradients[done + i]) * dlosses[divide(done + i, inner).quotient]);
    });
}
