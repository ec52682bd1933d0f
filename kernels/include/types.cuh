// Element types: fixed-width integers, 16-bit floats as plain storage, and their conversion from and to float.
//
// The kernels need no header of a CUDA toolkit. Arithmetic is always in float; float16 and bfloat16 are storage.
// A file is compiled once for each element type, with -DT=float, -DT=float16 or -DT=bfloat16.
#pragma once

typedef signed char int8;
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

struct float16 {
    uint16 bits;  // IEEE 754 binary16
};

struct bfloat16 {
    uint16 bits;  // the upper half of a float
};

// INFINITE, the constant: NVRTC has no __builtin_huge_valf, and older host compilers have no __builtin_bit_cast.
#ifdef BP_EMULATOR
#include "conversions.hpp"
constexpr float INFINITE = __builtin_huge_valf();
#else
constexpr float INFINITE = __builtin_bit_cast(float, 0x7f800000u);

__device__ __forceinline__ float to_float(float16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// To the nearest, ties to even; overflow gives infinity, NaN stays NaN.
__device__ __forceinline__ float16 to_float16(float x) {
    float16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

__device__ __forceinline__ float to_float(bfloat16 x) {
    return __uint_as_float(static_cast<uint32>(x.bits) << 16);
}

__device__ __forceinline__ bfloat16 to_bfloat16(float x) {
    bfloat16 y;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    uint32 bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : static_cast<uint16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
    return y;
}

#endif  // BP_EMULATOR

__device__ __forceinline__ float to_float(float x) { return x; }

// convert<T>(x): a float as element type T.
template <typename Type>
__device__ __forceinline__ Type convert(float x);

template <>
__device__ __forceinline__ float convert<float>(float x) {
    return x;
}

template <>
__device__ __forceinline__ float16 convert<float16>(float x) {
    return to_float16(x);
}

template <>
__device__ __forceinline__ bfloat16 convert<bfloat16>(float x) {
    return to_bfloat16(x);
}

// Whether an element type has 16 bits: then a kernel may take a hardware approximation, since an error below half a
// unit in the last place of such a type is invisible in the result.
template <typename Type>
struct is_16_bit {
    static constexpr bool value = sizeof(Type) == 2;
};
