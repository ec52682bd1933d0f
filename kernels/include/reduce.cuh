// Reductions within a warp and within a block: in a fixed order, so that a result does not depend on timing.
//
// All threads of the warp, or of the block, call together. Blocks have a multiple of 32 threads, at most 1024.
#pragma once
#include "types.cuh"

constexpr int WARP = 32;
constexpr uint32 ALL_LANES = 0xffffffffu;

struct Sum {
    static constexpr float neutral = 0.0f;
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// NaN wins: fmaxf alone would drop it.
struct Max {
    static constexpr float neutral = -INFINITE;
    __device__ __forceinline__ float operator()(float a, float b) const { return a != a || a > b ? a : b; }
};

// The result is in every lane.
template <typename Operation>
__device__ __forceinline__ float warp_reduce(float x, Operation combine) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = combine(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// The result is in every thread. scratch: WARP floats of shared memory; it may be used again right after the call.
template <typename Operation>
__device__ __forceinline__ float block_reduce(float x, float* scratch, Operation combine) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_reduce(x, combine);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : Operation::neutral;
    x = warp_reduce(x, combine);
    __syncthreads();
    return x;
}
