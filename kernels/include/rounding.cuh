// Stochastic rounding to 16-bit floats: up or down at random, so that the expectation is the number itself.
#pragma once
#include "philox.cuh"

constexpr uint32 ROUNDING_SITE = 0xffffffffu;  // bp/ops/optimizer.py

// The random bits of elements 4 * quad to 4 * quad + 3 in the present step: the upper half of one word each.
__device__ __forceinline__ uint4 rounding_bits(int64 quad, const double* control) {
    const uint64 index = static_cast<uint64>(quad);
    const uint4 counter = make_uint4(static_cast<uint32>(index), static_cast<uint32>(index >> 32),
                                     static_cast<uint32>(control[APPLIED_STEP]), ROUNDING_SITE);
    return philox4x32(counter, random_key(control));
}

// x as one of its two neighbours of the 16-bit type Type, given 16 random bits: the one further from zero where the
// bits and the distance from the other one, in 1/65536 of the gap between the two, add up to a whole gap.
template <typename Type>
__device__ __forceinline__ Type round_at_random(float x, uint32 bits);

// The 16 bits that bfloat16 leaves out are that distance, so the sum carries into the upper half.
template <>
__device__ __forceinline__ bfloat16 round_at_random<bfloat16>(float x, uint32 bits) {
    const uint32 word = __float_as_uint(x);
    if ((word & 0x7fffffffu) > 0x7f7f0000u) return to_bfloat16(x);  // beyond the largest, infinity, NaN
    bfloat16 y;
    y.bits = static_cast<uint16>((word + bits) >> 16);
    return y;
}

// In units of the gap between neighbours, which is 2^-10 of the power of two below |x| and at least 2^-24, |x| is
// a whole number and a fraction, both exact.
template <>
__device__ __forceinline__ float16 round_at_random<float16>(float x, uint32 bits) {
    const float size = fabsf(x);
    if (!(size < 65504.0f)) return to_float16(x);  // beyond the largest, infinity, NaN
    const uint32 exponent = max(__float_as_uint(size) >> 23, 113u) - 10u;  // of the gap, biased by 127
    const float gap = __uint_as_float(exponent << 23), gaps = size * __uint_as_float((254u - exponent) << 23);
    const float whole = floorf(gaps);
    const float up = (gaps - whole) * 65536.0f >= 65536.0f - static_cast<float>(bits) ? 1.0f : 0.0f;
    return to_float16(copysignf((whole + up) * gap, x));
}
