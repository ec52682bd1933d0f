// Conversion between float types, FROM to TO: to the nearest, ties to even.
#include "vector.cuh"

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void cast(const FROM* x, TO* y, int64 n) {
    // A step is 16 bytes of the narrower type, and once or twice as many of the wider.
    constexpr int STEP = Vector<FROM>::size > Vector<TO>::size ? Vector<FROM>::size : Vector<TO>::size;
    const int64 steps = aligned16(x) && aligned16(y) ? n / STEP : 0;
    grid_stride(steps, [&](int64 i) {
        Vector<FROM> in[STEP / Vector<FROM>::size];
        Vector<TO> out[STEP / Vector<TO>::size];
#pragma unroll
        for (int k = 0; k < STEP / Vector<FROM>::size; ++k) in[k] = load16(x + i * STEP + k * Vector<FROM>::size);
#pragma unroll
        for (int k = 0; k < STEP; ++k) {
            const float value = to_float(in[k / Vector<FROM>::size].at[k % Vector<FROM>::size]);
            out[k / Vector<TO>::size].at[k % Vector<TO>::size] = convert<TO>(value);
        }
#pragma unroll
        for (int k = 0; k < STEP / Vector<TO>::size; ++k) store16(y + i * STEP + k * Vector<TO>::size, out[k]);
    });
    const int64 done = steps * STEP;
    grid_stride(n - done, [&](int64 i) { y[done + i] = convert<TO>(to_float(x[done + i])); });
}
