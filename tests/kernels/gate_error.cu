// Does not compile: line 6 names what is not there.

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void error(float* y) {
    y[threadIdx.x] = nowhere;
}
