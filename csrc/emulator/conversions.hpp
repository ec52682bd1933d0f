// The conversions of 16-bit floats, as the GPU's cvt instructions do them: to the nearest, ties to even.
//
// Included by kernels/include/types.cuh, after the two types.
#pragma once

namespace emulator {

inline unsigned bits_of(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(unsigned bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

inline float float_of_half(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | rest << 13);  // infinity, NaN
    // The exponent of a float is biased by 127 - 15 = 112 more. A product is right for subnormal halves as well.
    return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

inline unsigned short half_of_float(float x) {
    const unsigned bits = bits_of(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return 0x7fff;                    // the GPU's NaN
    if (rest >= 0x477ff000u) return sign | 0x7c00u;           // 65520 and above round to infinity
    if (rest < 0x38800000u)                                   // below 2^-14: a multiple of 2^-24, the last place of 0.5
        return sign | (bits_of(float_of(rest) + 0.5f) - bits_of(0.5f));
    return sign | (((rest + 0xfffu + (rest >> 13 & 1u)) >> 13) - (112u << 10));
}

inline float float_of_bfloat(unsigned short bits) { return float_of(static_cast<unsigned>(bits) << 16); }

inline unsigned short bfloat_of_float(float x) {
    const unsigned bits = bits_of(x);
    return x != x ? 0x7fff : static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// 8-bit floats: `mantissa` bits, exponents from 2^least on (where the mantissa has no hidden bit), at most `largest`.
inline unsigned char small_of_float(float x, int mantissa, int least, float largest) {
    const unsigned char sign = static_cast<unsigned char>(bits_of(x) >> 24 & 0x80u);
    if (x != x) return 0x7f;
    float size = float_of(bits_of(x) & 0x7fffffffu);
    if (size > largest) size = largest;
    const int exponent = static_cast<int>(bits_of(size) >> 23) - 127;
    // Adding a power of two whose last place is that of the result rounds to it, ties to even; infinity cannot occur.
    const int place = (exponent > least ? exponent : least) - mantissa;
    const float magic = float_of(static_cast<unsigned>(place + 23 + 127) << 23);
    const float rounded = (size + magic) - magic;
    if (rounded == 0.0f) return sign;
    const unsigned bits = bits_of(rounded);
    const int power = static_cast<int>(bits >> 23) - 127;
    if (power < least)  // no hidden bit
        return static_cast<unsigned char>(
            sign | static_cast<unsigned>(rounded * float_of(static_cast<unsigned>(mantissa - least + 127) << 23)));
    return static_cast<unsigned char>(sign | static_cast<unsigned>(power - least + 1) << mantissa |
                                      (bits >> (23 - mantissa) & ((1u << mantissa) - 1)));
}

inline unsigned char e4m3_of_float(float x) { return small_of_float(x, 3, -6, 448.0f); }
inline unsigned char e5m2_of_float(float x) { return small_of_float(x, 2, -14, 57344.0f); }

// e5m2 is the upper half of a binary16. e4m3 has no infinity, and NaN where all bits but the sign are set.
inline float float_of_e5m2(unsigned char x) { return float_of_half(static_cast<unsigned short>(x << 8)); }
inline float float_of_e4m3(unsigned char x) {
    const unsigned sign = (x & 0x80u) << 24, rest = x & 0x7fu;
    if (rest == 0x7fu) return float_of(sign | 0x7fc00000u);
    return float_of(sign | bits_of(float_of(rest << 20) * 0x1p120f));  // the exponent is biased by 127 - 7 less
}

}  // namespace emulator

#ifdef BP_EMULATOR  // in kernels, where the two types are defined
inline float to_float(float16 x) { return emulator::float_of_half(x.bits); }
inline float to_float(bfloat16 x) { return emulator::float_of_bfloat(x.bits); }
inline float16 to_float16(float x) { return {emulator::half_of_float(x)}; }
inline bfloat16 to_bfloat16(float x) { return {emulator::bfloat_of_float(x)}; }
#endif
