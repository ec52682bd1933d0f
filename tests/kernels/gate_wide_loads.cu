// Reads 16 bytes at a time, and writes 4.
#include "vector.cuh"

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void wide_loads(const float* x, float* y) {
    const Vector<float> v = load16(x + 4 * threadIdx.x);
    y[threadIdx.x] = (v.at[0] + v.at[1]) + (v.at[2] + v.at[3]);
}
