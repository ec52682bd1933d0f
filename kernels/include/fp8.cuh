// 8-bit floats, stored as bytes: e4m3 (4 bits of exponent, 3 of mantissa, at most 448) and e5m2 (at most 57344).
#pragma once
#include "types.cuh"

// To the nearest, ties to even. What is too large, infinity included, becomes the largest of its sign; NaN stays NaN
// (0x7f).
__device__ __forceinline__ uint8 to_e4m3(float x) {
#ifdef BP_EMULATOR
    return emulator::e4m3_of_float(x);
#else
    uint16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));  // the second is the lower byte
    return static_cast<uint8>(pair);
#endif
}

__device__ __forceinline__ uint8 to_e5m2(float x) {
#ifdef BP_EMULATOR
    return emulator::e5m2_of_float(x);
#else
    uint16 pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    return static_cast<uint8>(pair);
#endif
}
