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

}  // namespace emulator

#ifdef BP_EMULATOR  // in kernels, where the two types are defined
inline float to_float(float16 x) { return emulator::float_of_half(x.bits); }
inline float to_float(bfloat16 x) { return emulator::float_of_bfloat(x.bits); }
inline float16 to_float16(float x) { return {emulator::half_of_float(x)}; }
inline bfloat16 to_bfloat16(float x) { return {emulator::bfloat_of_float(x)}; }
#endif
