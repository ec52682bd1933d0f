// The second pass of a matrix product whose depth was cut in parts: adds the parts, always in the same order.
#include "epilogue.cuh"
#include "indexing.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

// C = epilogue(sum over p of parts[p]), for the n elements of matrices of rows x columns, which lie in C `stride` from
// row to row and `batch` from matrix to matrix; sums[i] likewise, from the `biases` elements behind them.
//
// A block has WARP elements. Its warps take every WARPS-th part, so that a tile cut in hundreds of parts is not summed
// by one thread that waits for each; warp 0 then adds what they found.
extern "C" __global__ __launch_bounds__(THREADS) void add_parts(const float* parts, EPILOGUE_PARAMETERS, float* sums,
                                                                int64 n, int64 rows, int64 columns, int64 stride,
                                                                int64 batch, int64 biases, int count) {
    __shared__ float found[WARPS][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 index = static_cast<int64>(blockIdx.x) * WARP + lane, step = n + biases;
    float sum[1] = {0.0f};
    if (index < step) {
#pragma unroll 4
        for (int part = warp; part < count; part += WARPS) sum[0] += parts[part * step + index];
    }
    found[warp][lane] = sum[0];
    __syncthreads();
    if (warp != 0 || index >= step) return;
#pragma unroll
    for (int other = 1; other < WARPS; ++other) sum[0] += found[other][lane];
    if (index < n) {
        const Quotient line = divide(index, columns), matrix = divide(line.quotient, rows);
        const int64 place = matrix.quotient * batch + matrix.remainder * stride + line.remainder;
        Epilogue<T>{EPILOGUE_ARGUMENTS}.store(place, index, line.remainder, sum);
    } else {
        float* const at = sums + (index - n);
        *at = beta != 0.0f ? beta * *at + sum[0] : sum[0];
    }
}
