// Includes a header that is not there.
#include "nowhere.cuh"

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void header(float* y) {
    y[threadIdx.x] = 0.0f;
}
