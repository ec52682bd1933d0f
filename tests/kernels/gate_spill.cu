// Keeps more values than there are registers: 1024 threads leave 64 to each.

constexpr int THREADS = 1024;

extern "C" __global__ __launch_bounds__(THREADS) void spill(const float* x, float* y) {
    float values[128];
#pragma unroll
    for (int k = 0; k < 128; ++k) values[k] = x[k * THREADS + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 128; ++k) y[k * THREADS + threadIdx.x] = values[127 - k] * values[k];
}
