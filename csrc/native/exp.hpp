// e^x and log(1 + e) in float32 without branches or calls, so that the compiler turns loops over them into vector code.
#pragma once

#include <cstdint>
#include <cstring>

#include "native.hpp"

namespace bp {

// 2^n for -126 <= n <= 127, by writing the exponent field.
BP_INLINE float power_of_two(std::int32_t n) {
    const std::uint32_t bits = static_cast<std::uint32_t>(n + 127) << 23;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// e^x to 1 unit in the last place (measured over 117 million floats, with and without fused multiply-add: 0.99):
// 0 below -104, subnormal results rounded, infinity above 88.73, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln(2) / 2, so e^x = 2^n e^r. ln 2 is taken in two parts, the first with so few bits
// that n times it is exact. e^r = 1 + r + r^2 q(r), where q is the polynomial of degree 4 with the least relative
// error in e^r (3e-9), found by reweighted least squares. 2^n is multiplied in two halves, so that neither
// overflows where the product does not. Source of the reduction: Cody and Waite, Software Manual for the
// Elementary Functions (1980).
BP_INLINE float exp_float(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits, without an instruction for it.
    constexpr float round = 12582912.0f;
    const float shifted = x * 1.44269504f + round;
    const float n = shifted - round;
    std::int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const std::int32_t exponent = bits - 0x4B400000;  // less the bits of 1.5 * 2^23
    const std::int32_t half = exponent >> 1;

    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float q = 1.38145394e-3f;
    q = q * r + 8.36874545e-3f;
    q = q * r + 4.1668389e-2f;
    q = q * r + 1.66665211e-1f;
    q = q * r + 4.9999994e-1f;
    const float y = 1.0f + (r + r * r * q);
    return y * power_of_two(half) * power_of_two(exponent - half);
}

// log(1 + e) for e in [0, 1], as 2 atanh(e / (2 + e)): an odd polynomial to a relative error of 4e-9.
BP_INLINE float log1p_float(float e) {
    const float s = e / (2.0f + e), z = s * s;
    float q = 2.8178326e-1f;
    q = q * z + 2.7960605e-1f;
    q = q * z + 4.0024910e-1f;
    q = q * z + 6.6666315e-1f;
    q = q * z + 2.0f;
    return s * q;
}

}  // namespace bp
