// Reductions down the columns of a matrix: a block takes a tile of columns over a chunk of rows.
#pragma once
#include "types.cuh"

// Combines the elements of V columns from `first` on over the rows begin..end-1 of this block, and calls
// body(k, value) for each column first + k, in one thread. `width` threads of the block, a power of two, stand side by
// side along the columns, the others below each other along the rows. load(row, values) adds up V elements of a row to
// values. scratch: V * THREADS values of shared memory.
template <int V, int THREADS, typename Value, typename Operation, typename Load, typename Body>
__device__ __forceinline__ void reduce_columns(int64 begin, int64 end, int width, Operation combine, Load load,
                                               Value* scratch, Body body) {
    const int depth = THREADS / width, below = threadIdx.x / width;
    Value values[V];
#pragma unroll
    for (int k = 0; k < V; ++k) values[k] = combine.neutral();
#pragma unroll 4
    for (int64 row = begin + below; row < end; row += depth) load(row, values);
#pragma unroll
    for (int k = 0; k < V; ++k) scratch[k * THREADS + threadIdx.x] = values[k];
    for (int half = depth / 2; half > 0; half /= 2) {
        __syncthreads();
        if (below < half) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                values[k] = combine(values[k], scratch[k * THREADS + threadIdx.x + half * width]);
                scratch[k * THREADS + threadIdx.x] = values[k];
            }
        }
    }
    if (below == 0) {
#pragma unroll
        for (int k = 0; k < V; ++k) body(k, values[k]);
    }
}
