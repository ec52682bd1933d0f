// The second pass of a matrix product whose depth was cut in parts: adds the parts, always in the same order.
#include "epilogue.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

// y[i] = f(sum over p of parts[p][i]), for the n elements of a product; dbias[i] likewise, from the `biases` elements
// behind them. columns: elements of a row, which share no bias. The rest is of the epilogue.
//
// A block has WARP elements. Its warps take every WARPS-th part, so that a tile cut in hundreds of parts is not summed
// by one thread that waits for each; warp 0 then adds what they found.
extern "C" __global__ __launch_bounds__(THREADS) void add_parts(const float* parts, const T* bias, T* before, T* y,
                                                                float* wide, float* dbias, int64 n, int64 columns,
                                                                int64 biases, int count, bool accumulate,
                                                                int activation) {
    __shared__ float found[WARPS][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 index = static_cast<int64>(blockIdx.x) * WARP + lane, stride = n + biases;
    float sum = 0.0f;
    if (index < stride) {
#pragma unroll 4
        for (int part = warp; part < count; part += WARPS) sum += parts[part * stride + index];
    }
    found[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || index >= stride) return;
#pragma unroll
    for (int other = 1; other < WARPS; ++other) sum += found[other][lane];
    if (index < n)
        Epilogue<T>{bias, before, y, wide, accumulate, activation}.store(index, index % columns, sum);
    else
        dbias[index - n] = accumulate ? dbias[index - n] + sum : sum;
}
