// Every intrinsic of kernels/include that exists from sm_80 on, once in each of its forms: ptxas reads the PTX of those
// that are used alone.
#include "async.cuh"
#include "mma.cuh"
#include "philox.cuh"
#include "reduce.cuh"
#include "shared.cuh"
#include "vector.cuh"

constexpr int THREADS = 64;

template <int MATRICES>
__device__ __forceinline__ uint32 both_ways(const void* row) {
    uint32 straight[MATRICES], transposed[MATRICES], sum = 0;
    load_matrix(straight, row);
    load_matrix_transposed(transposed, row);
#pragma unroll
    for (int k = 0; k < MATRICES; ++k) sum += straight[k] ^ transposed[k];
    return sum;
}

extern "C" __global__ __launch_bounds__(THREADS) void intrinsics(const float* x, const double* control, float* y) {
    __shared__ float scratch[WARP];
    DYNAMIC_SHARED(float, tile);
    copy_async<16>(tile + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copy_async<16>(tile + 256 + 4 * threadIdx.x, x + 4 * threadIdx.x, threadIdx.x % 16);
    commit_copies();
    copy_async<4>(tile + 512 + threadIdx.x, x + threadIdx.x);
    copy_async<8>(tile + 576 + 2 * threadIdx.x, x + 2 * threadIdx.x, 4);
    commit_copies();
    wait_copies<1>();
    wait_copies<0>();
    named_barrier_arrive(1, 2 * THREADS);
    named_barrier_sync(1, 2 * THREADS);
    const float* row = tile + 4 * threadIdx.x;
    uint32 a[4], b[2] = {both_ways<1>(row), both_ways<2>(row)};
    load_matrix(a, row);
    float d[4] = {};
    multiply_accumulate<float16>(d, a, b);
    multiply_accumulate<bfloat16>(d, a, b);
    multiply_accumulate_tf32(d, a, b);
    const uint4 random = philox4x32(make_uint4(threadIdx.x, a[0], both_ways<4>(row), to_tf32(d[3])), random_key(control));
    const float most = block_reduce(d[0] + d[1], scratch, Max());
    y[threadIdx.x] = block_reduce(d[2], scratch, Sum()) * most + static_cast<float>(random.x ^ random.w);
}
