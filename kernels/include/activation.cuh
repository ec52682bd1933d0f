// The activations that are more than a comparison, y = f(x), and their slopes f'(x); derived in bp/ops/activation.py.
//
// T is the type of what is stored: it says how precise the functions have to be (math.cuh). An x that is multiplied by
// a vanishing factor is held at FLAT, beyond which each curve equals its asymptote, so that no infinity meets a zero.
#pragma once
#include "math.cuh"

constexpr float FLAT = 1000.0f;

// fmaxf and fminf drop NaN; they are for formulas in which another factor keeps it.
__device__ __forceinline__ float from_below(float x) { return fmaxf(x, -FLAT); }
__device__ __forceinline__ float held(float x) { return fminf(fmaxf(x, -FLAT), FLAT); }

// Of NaN these give NaN, as comparisons with it are false.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }
__device__ __forceinline__ float relu_gradient(float dy, float y) { return y <= 0.0f ? 0.0f : dy; }

template <typename Type>
__device__ __forceinline__ float silu(float x) {
    return from_below(x) * logistic<Type>(x);
}

// sigma + x sigma (1 - sigma). A large x would multiply the rounding of 1 - sigma, so that is not left to a difference:
// with e = e^-|x|, sigma (1 - sigma) = e / (1 + e)^2.
template <typename Type>
__device__ __forceinline__ float silu_slope(float x) {
    const float e = exponential<Type>(-fabsf(x)), s = reciprocal(1.0f + e), t = e * s;
    return (x < 0.0f ? t : s) + t * s * held(x);
}

// GELU by the normal distribution. x Phi(x) = max(x, 0) - a P(X > a) with a = |x|, on either side of zero.
template <typename Type>
__device__ __forceinline__ float gelu(float x) {
    const float a = fminf(fabsf(x), FLAT);
    const float decay = exp2_approximate(x * x * (-0.5f * LOG2_E));
    return fmaxf(x, 0.0f) - a * normal_tail_over_decay<Type>(a) * decay;
}

// Phi(x) + x phi(x): with w = P(X > a) - a phi(a) it is w for x < 0 and 1 - w above.
template <typename Type>
__device__ __forceinline__ float gelu_slope(float x) {
    const float a = fminf(fabsf(x), FLAT);
    const float decay = exp2_approximate(x * x * (-0.5f * LOG2_E));
    const float w = (normal_tail_over_decay<Type>(a) - 0.398942280f * a) * decay;
    return x < 0.0f ? w : 1.0f - w;
}

// GELU's tanh form is x sigma(2u) with 2u = GELU_LINEAR x + GELU_CUBIC x^3.
constexpr float GELU_LINEAR = 1.59576912f, GELU_CUBIC = 0.0713548163f;

// e^(-2u); the constants take in the log2(e) of the power of two.
__device__ __forceinline__ float gelu_tanh_exponential(float x) {
    return exp2_approximate(x * (-GELU_LINEAR * LOG2_E - GELU_CUBIC * LOG2_E * (x * x)));
}

template <typename Type>
__device__ __forceinline__ float gelu_tanh(float x) {
    return from_below(x) * reciprocal(1.0f + gelu_tanh_exponential(x));
}

// sigma + x sigma (1 - sigma) (2u)', as silu_slope with e = e^-|2u|: the cubic (2u)' is large where 1 - sigma is small.
template <typename Type>
__device__ __forceinline__ float gelu_tanh_slope(float x) {
    const float h = held(x), e = gelu_tanh_exponential(fabsf(x)), s = reciprocal(1.0f + e), t = e * s;
    return (x < 0.0f ? t : s) + t * s * (h * (GELU_LINEAR + 3.0f * GELU_CUBIC * (h * h)));
}

// log(1 + e^z) in terms of e^-|z|.
template <typename Type>
__device__ __forceinline__ float softplus(float z) {
    return fmaxf(z, 0.0f) + log_one_plus<Type>(exponential<Type>(-fabsf(z)));
}

// Mish with w = e^x: m = tanh(log(1 + w)) = n / (n + 2), where n = w^2 + 2w. From x = 20 on m is 1 to 2^-57, and w^2 is
// still far from overflow. Selections instead of fmaxf and fminf, because no other factor would keep NaN.
struct MishTerms {
    float w, n, d;  // d = 1 / (n + 2), so m = n d and 1 - m = 2d
};

template <typename Type>
__device__ __forceinline__ MishTerms mish_terms(float x) {
    const float w = exponential<Type>(x > 20.0f ? 20.0f : x), n = w * (w + 2.0f);
    return {w, n, reciprocal(n + 2.0f)};
}

template <typename Type>
__device__ __forceinline__ float mish(float x) {
    const MishTerms t = mish_terms<Type>(x);
    return from_below(x) * (t.n * t.d);
}

// m + x (1 - m^2) sigma(x), where 1 - m^2 = 2d (2 - 2d) and sigma = w / (1 + w).
template <typename Type>
__device__ __forceinline__ float mish_slope(float x) {
    const MishTerms t = mish_terms<Type>(x);
    const float sigma = t.w * reciprocal(1.0f + t.w);
    return t.n * t.d + held(x) * (4.0f * t.d * (1.0f - t.d) * sigma);
}
