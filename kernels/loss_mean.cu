// The mean of the terms of a loss: their sum in double, over what the control block says that they count for.
//
// One block: up to 32,768 terms it reads them itself, more come as the sums of parts of a fixed length.
#include "control.cuh"
#include "row_group.cuh"

constexpr int THREADS = 1024;

template <typename Type>
__device__ __forceinline__ void mean_of(const Type* terms, const double* control, float* mean, int64 n,
                                        double* scratch) {
    double total = 0.0;
#pragma unroll 4
    for (int64 i = threadIdx.x; i < n; i += THREADS) total += terms[i];
    total = group_reduce(total, THREADS, scratch, Total<double>());
    const double denominator = control[LOSS_DENOMINATOR];
    if (threadIdx.x == 0) *mean = static_cast<float>(total * (denominator == 0.0 ? 0.0 : 1.0 / denominator));
}

extern "C" __global__ __launch_bounds__(THREADS) void mean_of_terms(const float* losses, const double* control,
                                                                    float* mean, int64 n) {
    __shared__ double scratch[WARP];
    mean_of(losses, control, mean, n, scratch);
}

extern "C" __global__ __launch_bounds__(THREADS) void mean_of_parts(const double* sums, const double* control,
                                                                    float* mean, int64 n) {
    __shared__ double scratch[WARP];
    mean_of(sums, control, mean, n, scratch);
}
