// Indices and sizes: division that is fast where the numbers are small, and integers of any width read from memory.
#pragma once
#include "types.cuh"

struct Quotient {
    int64 quotient, remainder;
};

// n / d for n >= 0 and d > 0. A division of 64 bits takes about 100 instructions, one of 32 bits about 20; nearly all
// sizes fit there.
__device__ __forceinline__ Quotient divide(int64 n, int64 d) {
    if (((n | d) >> 32) == 0) {
        const uint32 quotient = static_cast<uint32>(n) / static_cast<uint32>(d);
        return {quotient, static_cast<uint32>(n) - quotient * static_cast<uint32>(d)};
    }
    const int64 quotient = n / d;
    return {quotient, n - quotient * d};
}

__device__ __forceinline__ int64 divide_up(int64 n, int64 d) { return divide(n + d - 1, d).quotient; }

__device__ __forceinline__ int64 smaller(int64 a, int64 b) { return a < b ? a : b; }

// Element i of an array of integers of 1, 2, 4 or 8 bytes. An unsigned one of 2^63 or more comes out negative.
__device__ __forceinline__ int64 integer_at(const void* integers, int64 i, int bytes, int is_signed) {
    if (bytes == 8) return static_cast<const int64*>(integers)[i];
    if (bytes == 4)
        return is_signed ? static_cast<const int*>(integers)[i]
                         : static_cast<int64>(static_cast<const uint32*>(integers)[i]);
    if (bytes == 2) {
        const uint16 value = static_cast<const uint16*>(integers)[i];
        return is_signed ? static_cast<int64>(static_cast<short>(value)) : static_cast<int64>(value);
    }
    const uint8 value = static_cast<const uint8*>(integers)[i];
    return is_signed ? static_cast<int64>(static_cast<int8>(value)) : static_cast<int64>(value);
}
