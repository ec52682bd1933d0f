// The mask of dropout: eight elements whose logical indices share all but the last three bits draw 128 random bits
// together, wherever they are needed; bp/ops/dropout.py states which bits.
#pragma once
#include "philox.cuh"

constexpr int CHUNK = 8;

// What every thread knows: the stream of random numbers, and what becomes of an element.
struct Mask {
    uint2 key;
    uint32 forward_counter, call_site;
    uint32 dropped;  // an element is kept where its 16 bits are at least this
    float scale;

    __device__ __forceinline__ uint4 bits(int64 chunk) const {
        const uint32 low = static_cast<uint32>(chunk), high = static_cast<uint32>(chunk >> 32);
        return philox4x32(make_uint4(low, high, forward_counter, call_site), key);
    }

    // Element j of a chunk: the low half of word j / 2 where j is even, the high half where it is odd.
    __device__ __forceinline__ float apply(const uint4& bits, int j, float x) const {
        const uint32 word = j < 4 ? (j < 2 ? bits.x : bits.y) : (j < 6 ? bits.z : bits.w);
        const uint32 own = j % 2 == 0 ? word & 0xffffu : word >> 16;
        return own >= dropped ? x * scale : 0.0f;
    }
};
