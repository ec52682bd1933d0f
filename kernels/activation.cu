// Activations: y = f(x) and dx = dy f'(x), one element after the other; the formulas are derived in
// bp/ops/activation.py.
//
// Streaming kernels: they read each input once and write the output once, 16 bytes at a time. Arithmetic is in float.
// On an H200 a 16-bit forward leaves time for about 27 instructions an element, 3 of them special functions, and a
// backward for 41 and 5: at 4.3 TB/s a multiprocessor takes 4.6 elements a clock, and issues 128 lanes of instructions.
#include "activation.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void relu_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) { return relu(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void relu_backward(const T* dy, const T* y, T* dx, int64 n) {
    map2(dy, y, dx, n, [](float g, float v) { return relu_gradient(g, v); });
}

// A slope of zero makes zeros, of infinity too.
extern "C" __global__ __launch_bounds__(THREADS) void leaky_relu_forward(const T* x, T* y, int64 n,
                                                                         float negative_slope) {
    map1(x, y, n, [=](float v) {
        const float below = negative_slope == 0.0f && v < 0.0f ? 0.0f : negative_slope * v;
        return v > 0.0f ? v : below;
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void leaky_relu_backward(const T* dy, const T* y, T* dx, int64 n,
                                                                          float negative_slope) {
    map2(dy, y, dx, n, [=](float g, float v) { return v <= 0.0f ? negative_slope * g : g; });
}

extern "C" __global__ __launch_bounds__(THREADS) void elu_forward(const T* x, T* y, int64 n, float alpha) {
    map1(x, y, n, [=](float v) { return v > 0.0f ? v : alpha * exponential_minus_one<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void elu_backward(const T* dy, const T* y, T* dx, int64 n,
                                                                   float alpha) {
    map2(dy, y, dx, n, [=](float g, float v) { return v > 0.0f ? g : g * (v + alpha); });
}

extern "C" __global__ __launch_bounds__(THREADS) void gelu_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) { return gelu<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void gelu_backward(const T* dy, const T* x, T* dx, int64 n) {
    map2(dy, x, dx, n, [](float g, float v) { return g * gelu_slope<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void gelu_tanh_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) { return gelu_tanh<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void gelu_tanh_backward(const T* dy, const T* x, T* dx, int64 n) {
    map2(dy, x, dx, n, [](float g, float v) { return g * gelu_tanh_slope<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void silu_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) { return silu<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void silu_backward(const T* dy, const T* x, T* dx, int64 n) {
    map2(dy, x, dx, n, [](float g, float v) { return g * silu_slope<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void sigmoid_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) { return logistic<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void sigmoid_backward(const T* dy, const T* y, T* dx, int64 n) {
    map2(dy, y, dx, n, [](float g, float v) { return g * (v * (1.0f - v)); });
}

extern "C" __global__ __launch_bounds__(THREADS) void tanh_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) { return hyperbolic_tangent<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void tanh_backward(const T* dy, const T* y, T* dx, int64 n) {
    map2(dy, y, dx, n, [](float g, float v) { return g * (1.0f - v * v); });
}

// line: the threshold of beta x above which y = x; at most 100, where the curve is that line and its formula still has
// no infinity.
extern "C" __global__ __launch_bounds__(THREADS) void softplus_forward(const T* x, T* y, int64 n, float beta,
                                                                       float inverse_beta, float line) {
    map1(x, y, n, [=](float v) {
        const float z = beta * v;
        return z > line ? v : softplus<T>(z) * inverse_beta;
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void softplus_backward(const T* dy, const T* x, T* dx, int64 n,
                                                                        float beta, float line) {
    map2(dy, x, dx, n, [=](float g, float v) {
        const float z = beta * v;
        return z > line ? g : g * logistic<T>(z);
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void mish_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) { return mish<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void mish_backward(const T* dy, const T* x, T* dx, int64 n) {
    map2(dy, x, dx, n, [](float g, float v) { return g * mish_slope<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void hardswish_forward(const T* x, T* y, int64 n) {
    map1(x, y, n, [](float v) {
        const float h = v < -3.0f ? -3.0f : v;
        return v > 3.0f ? v : h * (h + 3.0f) * (1.0f / 6.0f);
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void hardswish_backward(const T* dy, const T* x, T* dx, int64 n) {
    map2(dy, x, dx, n, [](float g, float v) {
        const float middle = g * (v * (1.0f / 3.0f) + 0.5f);
        return v < -3.0f ? 0.0f : (v > 3.0f ? g : middle);
    });
}

extern "C" __global__ __launch_bounds__(THREADS) void add(const T* a, const T* b, T* y, int64 n) {
    map2(a, b, y, n, [](float u, float v) { return u + v; });
}
