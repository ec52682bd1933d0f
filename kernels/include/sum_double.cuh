// Sums in double within a warp and within a block, in a fixed order; otherwise as in reduce.cuh.
#pragma once
#include "reduce.cuh"

// The sum is in every lane.
__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

// The sum is in every thread. scratch: WARP doubles of shared memory; it may be used again right after the call.
__device__ __forceinline__ double block_sum(double x, double* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? scratch[lane] : 0.0);
    __syncthreads();
    return x;
}

// The sum of `count` partial sums in global memory, in every thread of the block.
__device__ __forceinline__ double block_total(const double* partial, int64 count, double* scratch) {
    double total = 0.0;
    for (int64 i = threadIdx.x; i < count; i += blockDim.x) total += partial[i];
    return block_sum(total, scratch);
}
