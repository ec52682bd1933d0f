// Sums over rows, second level: the partial sums that the blocks of a backward wrote, added up in a fixed order.
#include "reduce.cuh"

// dgamma and dbeta, either may be null: the sums of `count` rows of partials, (count, 2, columns).
//
// 32 columns a block; each warp takes every 32nd row of partials, then one warp adds up what the 32 found.
extern "C" __global__ __launch_bounds__(1024) void sum_partials(
    const float* partials, float* dgamma, float* dbeta, int64 count, int64 columns, int accumulate) {
    __shared__ float shared[WARP][WARP + 1];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 column = static_cast<int64>(blockIdx.x) * WARP + lane;
    float sum = 0.0f;
    if (column < 2 * columns) {
#pragma unroll 4
        for (int64 i = warp; i < count; i += WARP) sum += partials[i * 2 * columns + column];
    }
    shared[warp][lane] = sum;
    __syncthreads();
    // Transposed: each warp has one column, its lanes what the warps found.
    sum = warp_reduce(shared[lane][warp], Sum());
    const int64 own = static_cast<int64>(blockIdx.x) * WARP + warp;
    if (lane != 0 || own >= 2 * columns) return;
    float* const destination = own < columns ? dgamma : dbeta;
    if (!destination) return;
    const int64 at = own < columns ? own : own - columns;
    destination[at] = accumulate ? destination[at] + sum : sum;
}
