// Functions of one number at the precision that the element type can show.
//
// For T = float they are right to a few units in the last place of a float. For 16-bit T they take the GPU's
// approximations, one instruction each, whose errors (below) stay under a quarter of a unit in the last place of
// float16, which has 11 bits. Both keep their relative precision where the result is small, and are of any x the limit
// at infinity, with NaN for NaN. A GPU has 16 lanes a multiprocessor for these instructions and 128 for the others, so
// they are counted. The emulator computes them exactly: errors show on a GPU alone. Subnormal results may become zero.
#pragma once
#include "types.cuh"

// 2^x to a relative error of 2^-22.
__device__ __forceinline__ float exp2_approximate(float x) {
#ifdef BP_EMULATOR
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// log2(x) to an absolute error of 2^-22 for x between 1/2 and 2, and a relative one of 2^-22 outside.
__device__ __forceinline__ float log2_approximate(float x) {
#ifdef BP_EMULATOR
    return log2f(x);
#else
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 1 / x to a relative error of 2^-23, where neither is subnormal. A division that rounds correctly is ten instructions.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef BP_EMULATOR
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

// e^x. The rounding of the product x log2(e) is one of x 2^-24 in the result: below 2^-17 for all x that do not
// overflow.
template <typename Type>
__device__ __forceinline__ float exponential(float x) {
    if constexpr (is_16_bit<Type>::value) return exp2_approximate(x * LOG2_E);
    return expf(x);
}

// e^x - 1 for x <= 0. Near zero, where the difference cancels, the first two terms of its series: the third is below
// 2^-14 of the sum.
template <typename Type>
__device__ __forceinline__ float exponential_minus_one(float x) {
    if constexpr (is_16_bit<Type>::value) {
        return x > -0.015625f ? x + 0.5f * x * x : exponential<Type>(x) - 1.0f;
    }
    return expm1f(x);
}

// log(1 + x) for x in [0, 1]. For small x, of which little is left beside the 1, the first two terms of its series:
// the third is below 2^-15 of the sum.
template <typename Type>
__device__ __forceinline__ float log_one_plus(float x) {
    if constexpr (is_16_bit<Type>::value) {
        return x < 0.0078125f ? x - 0.5f * x * x : log2_approximate(1.0f + x) * LN_2;
    }
    return log1pf(x);
}

// tanh(x) = 1 - 2 / (1 + e^(2x)), and near zero, where that cancels, x: the next term of its series, x^3 / 3, is below
// 2^-13 of the sum. (The instruction tanh.approx is off by 2^-11, half a unit in the last place of float16.)
template <typename Type>
__device__ __forceinline__ float hyperbolic_tangent(float x) {
    if constexpr (is_16_bit<Type>::value) {
        const float far = 1.0f - 2.0f * reciprocal(1.0f + exp2_approximate(2.0f * LOG2_E * x));
        return fabsf(x) < 0.015625f ? x : far;
    }
    return tanhf(x);
}

// 1 / (1 + e^-x): where e^-x overflows the result is 0, as it should be.
template <typename Type>
__device__ __forceinline__ float logistic(float x) {
    return reciprocal(1.0f + exponential<Type>(-x));
}

// The tail of the standard normal distribution, P(X > a) = decay t polynomial(t), where decay = e^(-a^2 / 2) and
// t = 1 / (1 + k a): this returns t polynomial(t) for a >= 0, to a relative error of 3e-8 for float and 2^-13.3 for
// 16-bit types. Both polynomials were fitted by reweighted least squares; the form is that of Hastings, Approximations
// for Digital Computers (1955).
template <typename Type>
__device__ __forceinline__ float normal_tail_over_decay(float a) {
    if constexpr (is_16_bit<Type>::value) {
        const float t = reciprocal(1.0f + 0.4f * a);
        float p = -0.0847568602f;
        p = p * t + 0.144043280f;
        p = p * t + 0.120583261f;
        p = p * t + 0.160510124f;
        p = p * t + 0.159572810f;
        return t * p;
    }
    const float t = reciprocal(1.0f + 0.27f * a);
    float p = 0.0289956126f;
    p = p * t - 0.126659176f;
    p = p * t + 0.170157146f;
    p = p * t - 0.0696518138f;
    p = p * t + 0.108143329f;
    p = p * t + 0.0719080081f;
    p = p * t + 0.101848640f;
    p = p * t + 0.107537262f;
    p = p * t + 0.107721004f;
    return t * p;
}
