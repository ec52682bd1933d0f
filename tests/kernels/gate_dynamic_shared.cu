// Dynamic shared memory: how much of it there is stands in the declaration alone.

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void dynamic_shared(const float* x, float* y, int n) {
    extern __shared__ float tile[];
    for (int i = threadIdx.x; i < n; i += THREADS) tile[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += THREADS) y[i] = tile[n - 1 - i];
}
