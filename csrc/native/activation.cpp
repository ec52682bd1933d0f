// Activations in float32, forward and backward, and the residual sum: the formulas of bp/ops/activation.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "exp.hpp"
#include "native.hpp"

namespace {

using bp::Array;
using std::int64_t;

// What the formulas share ------------------------------------------------------------------------------------------

// Beyond it every curve here equals its asymptote. An x that is multiplied by a vanishing factor is held inside, so
// that no infinity meets a zero; NaN passes.
constexpr float FLAT = 1000.0f;

BP_INLINE float from_below(float x) { return x < -FLAT ? -FLAT : x; }
BP_INLINE float held(float x) { return x > FLAT ? FLAT : from_below(x); }

// 1 / (1 + e^-x) and 1 / (1 + e^x), from e^-|x|, which never overflows: both keep their relative precision.
struct Sigmoids {
    float up, down;
};
BP_INLINE Sigmoids sigmoids(float x) {
    const float e = bp::exp_float(-std::fabs(x));
    const float large = 1.0f / (1.0f + e), small = e * large;
    return {x >= 0.0f ? large : small, x >= 0.0f ? small : large};
}

// The standard normal distribution at x: the probability below x, and the density.
// e^(x^2 / 2) P(X > |x|) / t is a polynomial in t = 1 / (1 + 0.27 |x|) to a relative error of 3e-8, fitted by
// reweighted least squares; the form is that of Hastings, Approximations for Digital Computers (1955).
struct Normal {
    float below, density;
};
BP_INLINE Normal normal(float x) {
    const float a = std::fabs(x), decay = bp::exp_float(-0.5f * a * a), t = 1.0f / (1.0f + 0.27f * a);
    float p = 2.89956126e-2f;
    p = p * t - 1.26659176e-1f;
    p = p * t + 1.70157146e-1f;
    p = p * t - 6.96518138e-2f;
    p = p * t + 1.08143329e-1f;
    p = p * t + 7.1908008e-2f;
    p = p * t + 1.0184864e-1f;
    p = p * t + 1.07537262e-1f;
    p = p * t + 1.07721004e-1f;
    const float tail = decay * t * p;
    return {x < 0.0f ? tail : 1.0f - tail, 3.98942280e-1f * decay};
}

// With m = tanh(log(1 + e^x)): m, 1 - m and sigmoid(x), each a ratio of polynomials in e^-|x|.
struct Mish {
    float m, rest, sigmoid;
};
BP_INLINE Mish mish_parts(float x) {
    const float e = bp::exp_float(-std::fabs(x));
    const float q = x >= 0.0f ? 1.0f : e, r = x >= 0.0f ? e : 1.0f;
    const float n = q * q + 2.0f * e, d = n + 2.0f * r * r;
    return {n / d, 2.0f * r * r / d, q / (1.0f + e)};
}

// e^x - 1 for x <= 0: near zero, where the difference cancels, from the polynomial of exp.hpp.
BP_INLINE float expm1(float x) {
    float q = 1.38145394e-3f;
    q = q * x + 8.36874545e-3f;
    q = q * x + 4.1668389e-2f;
    q = q * x + 1.66665211e-1f;
    q = q * x + 4.9999994e-1f;
    return x > -0.34f ? x + x * x * q : bp::exp_float(x) - 1.0f;
}

// GELU's tanh form, 0.5 x (1 + tanh u), is x sigmoid(2 u) with 2 u = LINEAR x + CUBIC x^3.
constexpr float LINEAR = 1.59576912f, CUBIC = 7.13548163e-2f;

// The formulas: of one element; a and b are the settings of the activation -----------------------------------------

BP_INLINE float relu(float x, float, float) { return x < 0.0f ? 0.0f : x; }
BP_INLINE float relu_backward(float dy, float y, float, float) { return y <= 0.0f ? 0.0f : dy; }

BP_INLINE float leaky_relu(float x, float a, float) { return x > 0.0f ? x : (a == 0.0f && x < 0.0f ? 0.0f : a * x); }
BP_INLINE float leaky_relu_backward(float dy, float y, float a, float) { return y <= 0.0f ? a * dy : dy; }

BP_INLINE float elu(float x, float a, float) { return x > 0.0f ? x : a * expm1(x); }
BP_INLINE float elu_backward(float dy, float y, float a, float) { return y > 0.0f ? dy : dy * (y + a); }

BP_INLINE float gelu(float x, float, float) { return from_below(x) * normal(x).below; }
BP_INLINE float gelu_backward(float dy, float x, float, float) {
    const Normal n = normal(x);
    return dy * (n.below + held(x) * n.density);
}

BP_INLINE float gelu_tanh(float x, float, float) {
    const float h = held(x);
    return from_below(x) * sigmoids(h * (LINEAR + CUBIC * h * h)).up;
}
BP_INLINE float gelu_tanh_backward(float dy, float x, float, float) {
    const float h = held(x);
    const Sigmoids s = sigmoids(h * (LINEAR + CUBIC * h * h));
    return dy * s.up * (1.0f + h * s.down * (LINEAR + 3.0f * CUBIC * h * h));
}

BP_INLINE float silu(float x, float, float) { return from_below(x) * sigmoids(x).up; }
BP_INLINE float silu_backward(float dy, float x, float, float) {
    const Sigmoids s = sigmoids(x);
    return dy * s.up * (1.0f + held(x) * s.down);
}

BP_INLINE float sigmoid(float x, float, float) { return sigmoids(x).up; }
BP_INLINE float sigmoid_backward(float dy, float y, float, float) { return dy * y * (1.0f - y); }

// An odd polynomial near zero, where (1 - e) / (1 + e) cancels.
BP_INLINE float tanh(float x, float, float) {
    const float z = x * x;
    float q = -5.71703656e-3f;
    q = q * z + 2.0650579e-2f;
    q = q * z - 5.37434953e-2f;
    q = q * z + 1.33314912e-1f;
    q = q * z - 3.33332839e-1f;
    const float near = x + x * (z * q);
    const float e = bp::exp_float(-2.0f * std::fabs(x));
    return std::fabs(x) < 0.625f ? near : std::copysign((1.0f - e) / (1.0f + e), x);
}
BP_INLINE float tanh_backward(float dy, float y, float, float) { return dy * (1.0f - y * y); }

// a: beta; b: the threshold of beta x above which y = x.
BP_INLINE float softplus(float x, float a, float b) {
    const float z = a * x;
    const float y = (bp::log1p_float(bp::exp_float(-std::fabs(z))) + (z < 0.0f ? 0.0f : z)) / a;
    return z > b ? x : y;
}
BP_INLINE float softplus_backward(float dy, float x, float a, float b) {
    return a * x > b ? dy : dy * sigmoids(a * x).up;
}

BP_INLINE float mish(float x, float, float) { return from_below(x) * mish_parts(x).m; }
BP_INLINE float mish_backward(float dy, float x, float, float) {
    const Mish p = mish_parts(x);
    return dy * (p.m + held(x) * p.rest * (2.0f - p.rest) * p.sigmoid);
}

BP_INLINE float hardswish(float x, float, float) {
    const float h = x < -3.0f ? -3.0f : x;
    return x > 3.0f ? x : h * (h + 3.0f) * (1.0f / 6.0f);
}
BP_INLINE float hardswish_backward(float dy, float x, float, float) {
    return x < -3.0f ? 0.0f : (x > 3.0f ? dy : dy * (x / 3.0f + 0.5f));
}

BP_INLINE float add(float a, float b, float, float) { return a + b; }

BP_INLINE float identity(float x, float, float) { return x; }

// The loops --------------------------------------------------------------------------------------------------------

using Unary = void (*)(const float*, float*, int64_t, float, float);
using Binary = void (*)(const float*, const float*, float*, int64_t, float, float);
using Biased = void (*)(const float*, const float*, float*, int64_t, int64_t);

#define BP_UNARY(name)                                                                                          \
    BP_CLONES void name##_loop(const float* __restrict x, float* __restrict y, int64_t count, float a, float b) { \
        for (int64_t i = 0; i < count; i++) y[i] = name(x[i], a, b);                                            \
    }
#define BP_BINARY(name)                                                                                         \
    BP_CLONES void name##_loop(const float* __restrict dy, const float* __restrict kept, float* __restrict dx,  \
                               int64_t count, float a, float b) {                                               \
        for (int64_t i = 0; i < count; i++) dx[i] = name(dy[i], kept[i], a, b);                                 \
    }
// Rows with one bias for each column.
#define BP_BIASED(name)                                                                                         \
    BP_CLONES void biased_##name##_loop(const float* __restrict x, const float* __restrict bias,                \
                                        float* __restrict y, int64_t rows, int64_t columns) {                   \
        for (int64_t r = 0; r < rows; r++, x += columns, y += columns)                                          \
            for (int64_t j = 0; j < columns; j++) y[j] = name(x[j] + bias[j], 0, 0);                            \
    }
#define BP_ACTIVATION(name) BP_UNARY(name) BP_BINARY(name##_backward)

BP_ACTIVATION(relu)
BP_ACTIVATION(leaky_relu)
BP_ACTIVATION(elu)
BP_ACTIVATION(gelu)
BP_ACTIVATION(gelu_tanh)
BP_ACTIVATION(silu)
BP_ACTIVATION(sigmoid)
BP_ACTIVATION(tanh)
BP_ACTIVATION(softplus)
BP_ACTIVATION(mish)
BP_ACTIVATION(hardswish)
BP_BINARY(add)
BP_BIASED(identity)
BP_BIASED(relu)
BP_BIASED(gelu_tanh)
BP_BIASED(silu)

void check(const char* name, const Array<float>& one, const Array<float>& other) {
    if (one.size() != other.size()) throw std::invalid_argument(std::string(name) + ": arrays of different sizes");
}

void forward(const char* name, Unary loop, const Array<float>& x, Array<float>& y, float a = 0, float b = 0) {
    check(name, x, y);
    const float* in = x.data();
    float* out = y.mutable_data();
    pybind11::gil_scoped_release release;
    bp::in_pieces(x.size(), [=](int64_t first, int64_t count) { loop(in + first, out + first, count, a, b); });
}

void backward(const char* name, Binary loop, const Array<float>& dy, const Array<float>& kept, Array<float>& dx,
              float a = 0, float b = 0) {
    check(name, dy, kept);
    check(name, dy, dx);
    const float *upstream = dy.data(), *in = kept.data();
    float* out = dx.mutable_data();
    pybind11::gil_scoped_release release;
    bp::in_pieces(dy.size(),
                  [=](int64_t first, int64_t count) { loop(upstream + first, in + first, out + first, count, a, b); });
}

void biased(Biased loop, const Array<float>& x, const Array<float>& bias, Array<float>& y) {
    check("bias_activation", x, y);
    const int64_t columns = bias.size(), rows = columns ? x.size() / columns : 0;
    if (rows * columns != x.size()) throw std::invalid_argument("bias_activation: the bias does not fit");
    const float *in = x.data(), *shift = bias.data();
    float* out = y.mutable_data();
    pybind11::gil_scoped_release release;
    const int64_t piece = std::max<int64_t>(1, bp::PIECE / std::max<int64_t>(columns, 1));
#pragma omp parallel for schedule(static) if (x.size() >= bp::PARALLEL)
    for (int64_t first = 0; first < rows; first += piece)
        loop(in + first * columns, shift, out + first * columns, std::min(piece, rows - first), columns);
}

// The Python functions: the arguments of the operation, then the array that takes the result -----------------------

#define ARRAY(name) pybind11::arg(name).noconvert()

void plain(pybind11::module_& module, const char* name, Unary loop) {
    module.def(
        name, [=](const Array<float>& x, Array<float> y) { forward(name, loop, x, y); }, ARRAY("x"), ARRAY("y"));
}

void plain(pybind11::module_& module, const char* name, Binary loop) {
    module.def(
        name,
        [=](const Array<float>& dy, const Array<float>& kept, Array<float> dx) { backward(name, loop, dy, kept, dx); },
        ARRAY("dy"), ARRAY("kept"), ARRAY("dx"));
}

void with_setting(pybind11::module_& module, const char* name, Unary loop) {
    module.def(
        name, [=](const Array<float>& x, float a, Array<float> y) { forward(name, loop, x, y, a); }, ARRAY("x"),
        pybind11::arg("setting"), ARRAY("y"));
}

void with_setting(pybind11::module_& module, const char* name, Binary loop) {
    module.def(
        name,
        [=](const Array<float>& dy, const Array<float>& kept, float a, Array<float> dx) {
            backward(name, loop, dy, kept, dx, a);
        },
        ARRAY("dy"), ARRAY("kept"), pybind11::arg("setting"), ARRAY("dx"));
}

void gelus(pybind11::module_& module) {
    module.def(
        "gelu",
        [](const Array<float>& x, const std::string& approximate, Array<float> y) {
            forward("gelu", approximate == "tanh" ? gelu_tanh_loop : gelu_loop, x, y);
        },
        ARRAY("x"), pybind11::arg("approximate"), ARRAY("y"));
    module.def(
        "gelu_backward",
        [](const Array<float>& dy, const Array<float>& x, const std::string& approximate, Array<float> dx) {
            backward("gelu_backward", approximate == "tanh" ? gelu_tanh_backward_loop : gelu_backward_loop, dy, x, dx);
        },
        ARRAY("dy"), ARRAY("x"), pybind11::arg("approximate"), ARRAY("dx"));
}

// Where the exponential is below a unit in the last place, the line and the curve are one in float32.
float line(float threshold) { return std::min(threshold, 100.0f); }

void softpluses(pybind11::module_& module) {
    module.def(
        "softplus",
        [](const Array<float>& x, float beta, float threshold, Array<float> y) {
            forward("softplus", softplus_loop, x, y, beta, line(threshold));
        },
        ARRAY("x"), pybind11::arg("beta"), pybind11::arg("threshold"), ARRAY("y"));
    module.def(
        "softplus_backward",
        [](const Array<float>& dy, const Array<float>& x, float beta, float threshold, Array<float> dx) {
            backward("softplus_backward", softplus_backward_loop, dy, x, dx, beta, line(threshold));
        },
        ARRAY("dy"), ARRAY("x"), pybind11::arg("beta"), pybind11::arg("threshold"), ARRAY("dx"));
}

void biased_activations(pybind11::module_& module) {
    module.def(
        "bias_activation",
        [](const Array<float>& x, const Array<float>& bias, const std::string& activation, Array<float> y) {
            const Biased loop = activation == "relu"        ? biased_relu_loop
                                : activation == "silu"      ? biased_silu_loop
                                : activation == "gelu_tanh" ? biased_gelu_tanh_loop
                                                            : biased_identity_loop;
            biased(loop, x, bias, y);
        },
        ARRAY("x"), ARRAY("bias"), pybind11::arg("activation"), ARRAY("y"));
}

}  // namespace

BP_NATIVE(activation) {
#define BP_DEFINE(define, name)           \
    define(module, #name, name##_loop);   \
    define(module, #name "_backward", name##_backward_loop);
    BP_DEFINE(plain, relu)
    BP_DEFINE(plain, silu)
    BP_DEFINE(plain, sigmoid)
    BP_DEFINE(plain, tanh)
    BP_DEFINE(plain, mish)
    BP_DEFINE(plain, hardswish)
    BP_DEFINE(with_setting, leaky_relu)
    BP_DEFINE(with_setting, elu)
    plain(module, "add", add_loop);
    gelus(module);
    softpluses(module);
    biased_activations(module);
}
