// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, 2011): random bits as a
// function of a key and a counter, so that they depend neither on the order of threads nor on how many there are.
#pragma once
#include "control.cuh"
#include "types.cuh"

// The key of a run: its seed.
__device__ __forceinline__ uint2 random_key(const double* control) {
    return make_uint2(static_cast<uint32>(control[SEED_LOW]), static_cast<uint32>(control[SEED_HIGH]));
}

// Four words of 32 random bits. Each round multiplies two words by constants, to 64 bits, and mixes the halves with the
// other two words and the key, which then advances by the golden ratio and by sqrt(3) - 1.
__device__ __forceinline__ uint4 philox4x32(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32 high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        const uint32 high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}
