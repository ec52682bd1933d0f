// setmaxnreg is ignored, and said so by ptxas alone, where the launch bounds do not name the blocks of a multiprocessor.

constexpr int THREADS = 128;

extern "C" __global__ __launch_bounds__(THREADS) void warning(float* y) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    y[threadIdx.x] = 0.0f;
}
