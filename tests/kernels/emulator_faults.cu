// Kernels with one fault each, and beside each its corrected twin. Blocks have 64 threads: two warps.
#include "async.cuh"
#include "shared.cuh"
#include "vector.cuh"

constexpr int THREADS = 64;

extern "C" __global__ __launch_bounds__(THREADS) void missing_barrier(const float* x, float* y) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x / 2];
}

extern "C" __global__ __launch_bounds__(THREADS) void missing_barrier_fixed(const float* x, float* y) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x / 2];
}

// Every thread reads the row's value, which the next row overwrites before all have.
extern "C" __global__ __launch_bounds__(THREADS) void write_after_read(const float* x, float* y) {
    __shared__ float value;
    for (int row = 0; row < 2; ++row) {
        if (threadIdx.x == 0) value = x[row];
        __syncthreads();
        y[row * THREADS + threadIdx.x] = value;
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void write_after_read_fixed(const float* x, float* y) {
    __shared__ float value;
    for (int row = 0; row < 2; ++row) {
        if (threadIdx.x == 0) value = x[row];
        __syncthreads();
        y[row * THREADS + threadIdx.x] = value;
        __syncthreads();
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void missing_syncwarp(const float* x, float* y) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x & ~1];
}

extern "C" __global__ __launch_bounds__(THREADS) void missing_syncwarp_fixed(const float* x, float* y) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x & ~1];
}

// A shuffle brings the lanes together, and orders no memory.
extern "C" __global__ __launch_bounds__(THREADS) void shuffle_as_barrier(const float* x, float* y) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = x[threadIdx.x];
    const float other = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
    y[threadIdx.x] = tile[threadIdx.x & ~1] + 0.0f * other;
}

extern "C" __global__ __launch_bounds__(THREADS) void shuffle_as_barrier_fixed(const float* x, float* y) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = x[threadIdx.x];
    const float other = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x & ~1] + 0.0f * other;
}

// The first warp fills the tile for the second one, and goes on without waiting.
extern "C" __global__ __launch_bounds__(THREADS) void missing_named_barrier(const float* x, float* y) {
    __shared__ float tile[32];
    if (threadIdx.x < 32) {
        named_barrier_arrive(1, THREADS);
        tile[threadIdx.x] = x[threadIdx.x];
    } else {
        named_barrier_sync(1, THREADS);
        y[threadIdx.x - 32] = tile[63 - threadIdx.x];
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void missing_named_barrier_fixed(const float* x, float* y) {
    __shared__ float tile[32];
    if (threadIdx.x < 32) {
        tile[threadIdx.x] = x[threadIdx.x];
        named_barrier_arrive(1, THREADS);
    } else {
        named_barrier_sync(1, THREADS);
        y[threadIdx.x - 32] = tile[63 - threadIdx.x];
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void uninitialised_shared(const float* x, float* y) {
    __shared__ float tile[THREADS];
    if (threadIdx.x < 63) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void uninitialised_shared_fixed(const float* x, float* y) {
    __shared__ float tile[THREADS];
    tile[threadIdx.x] = threadIdx.x < 63 ? x[threadIdx.x] : 0.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void missing_copy_wait(const float* x, float* y) {
    __shared__ float tile[THREADS];
    copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
    commit_copies();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
    wait_copies<0>();
}

extern "C" __global__ __launch_bounds__(THREADS) void missing_copy_wait_fixed(const float* x, float* y) {
    __shared__ float tile[THREADS];
    copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

// Waits until one group at most is on its way, which is the one that it needs.
extern "C" __global__ __launch_bounds__(THREADS) void wait_for_older_copies(const float* x, float* y) {
    __shared__ float tile[THREADS];
    copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void wait_for_older_copies_fixed(const float* x, float* y) {
    __shared__ float tile[THREADS];
    copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
    commit_copies();
    commit_copies();  // an empty group: the other is no longer among the youngest one
    wait_copies<1>();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

// A wait is for the copies of the own thread alone.
extern "C" __global__ __launch_bounds__(THREADS) void missing_copy_barrier(const float* x, float* y) {
    __shared__ float tile[THREADS];
    copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
    commit_copies();
    wait_copies<0>();
    y[threadIdx.x] = tile[threadIdx.x & ~1];
}

extern "C" __global__ __launch_bounds__(THREADS) void missing_copy_barrier_fixed(const float* x, float* y) {
    __shared__ float tile[THREADS];
    copy_async<4>(tile + threadIdx.x, x + threadIdx.x);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x & ~1];
}

extern "C" __global__ __launch_bounds__(THREADS) void out_of_bounds_read(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x * 2 + 2];
}

extern "C" __global__ __launch_bounds__(THREADS) void out_of_bounds_read_fixed(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x * 2];
}

extern "C" __global__ __launch_bounds__(THREADS) void out_of_bounds_write(const float* x, float* y) {
    y[threadIdx.x * 2 + 2] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void out_of_bounds_write_fixed(const float* x, float* y) {
    y[threadIdx.x * 2] = x[threadIdx.x];
}

// y has one element less than the block has threads.
extern "C" __global__ __launch_bounds__(THREADS) void write_past_the_tail(const float* x, float* y, int n) {
    if (threadIdx.x <= n) y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void write_past_the_tail_fixed(const float* x, float* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void misaligned_vector(const float* x, float* y) {
    if (threadIdx.x < 8) store16(y + threadIdx.x * 4, load16(x + threadIdx.x * 4 + 1));
}

extern "C" __global__ __launch_bounds__(THREADS) void misaligned_vector_fixed(const float* x, float* y) {
    if (threadIdx.x < 8) store16(y + threadIdx.x * 4, load16(x + threadIdx.x * 4));
}

extern "C" __global__ __launch_bounds__(THREADS) void divergent_shuffle(const float* x, float* y) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16)
        v += __shfl_xor_sync(0xffffffffu, v, 1);
    else
        v -= __shfl_xor_sync(0xffffffffu, v, 1);
    y[threadIdx.x] = v;
}

extern "C" __global__ __launch_bounds__(THREADS) void divergent_shuffle_fixed(const float* x, float* y) {
    const float v = x[threadIdx.x], other = __shfl_xor_sync(0xffffffffu, v, 1);
    y[threadIdx.x] = threadIdx.x % 32 < 16 ? v + other : v - other;
}

extern "C" __global__ __launch_bounds__(THREADS) void shuffle_after_exit(const float* x, float* y) {
    if (threadIdx.x % 32 >= 16) return;
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}

extern "C" __global__ __launch_bounds__(THREADS) void shuffle_after_exit_fixed(const float* x, float* y) {
    if (threadIdx.x % 32 >= 16) return;
    y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, x[threadIdx.x], 1);
}

extern "C" __global__ __launch_bounds__(THREADS) void shuffle_outside_mask(const float* x, float* y) {
    if (threadIdx.x % 32 >= 16) return;
    y[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], 16);
}

extern "C" __global__ __launch_bounds__(THREADS) void shuffle_outside_mask_fixed(const float* x, float* y) {
    if (threadIdx.x % 32 >= 16) return;
    y[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], 15);
}

extern "C" __global__ __launch_bounds__(THREADS) void deadlock(const float* x, float* y) {
    if (threadIdx.x < 32) {
        named_barrier_sync(1, 64);
        __syncthreads();
    } else {
        __syncthreads();
        named_barrier_sync(1, 64);
    }
    y[threadIdx.x] = x[threadIdx.x];
}

// Threads that have exited are not waited for.
extern "C" __global__ __launch_bounds__(THREADS) void deadlock_fixed(const float* x, float* y) {
    if (threadIdx.x >= 32) {
        named_barrier_sync(1, 32);
        y[threadIdx.x] = x[threadIdx.x];
        return;
    }
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void divergent_barrier(const float* x, float* y) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads_or(0);
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void divergent_barrier_fixed(const float* x, float* y) {
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void two_blocks_one_address(const float* x, float* y) {
    y[threadIdx.x + blockIdx.x * (THREADS - 1)] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void two_blocks_one_address_fixed(const float* x, float* y) {
    y[threadIdx.x + blockIdx.x * THREADS] = x[threadIdx.x];
}

// In place: the value read is the neighbouring block's, which overwrites it.
extern "C" __global__ __launch_bounds__(THREADS) void read_of_another_block(float* y) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    const float next = y[(i + 1) % (2 * THREADS)];
    __syncthreads();
    y[i] = next;
}

extern "C" __global__ __launch_bounds__(THREADS) void read_of_another_block_fixed(float* y) {
    const int first = blockIdx.x * THREADS;
    const float next = y[first + (threadIdx.x + 1) % THREADS];
    __syncthreads();
    y[first + threadIdx.x] = next;
}

// Both blocks read the element, then the second one overwrites it: the first might have come later.
extern "C" __global__ __launch_bounds__(THREADS) void write_of_what_both_read(float* y) {
    const float first = y[0];
    __syncthreads();
    if (blockIdx.x == 1) y[threadIdx.x] = first + 1.0f;
}

extern "C" __global__ __launch_bounds__(THREADS) void write_of_what_both_read_fixed(float* y) {
    const float first = y[0];
    __syncthreads();
    if (blockIdx.x == 1) y[THREADS + threadIdx.x] = first + 1.0f;
}

extern "C" __global__ __launch_bounds__(THREADS) void race_on_global(float* y) {
    y[threadIdx.x] = 1.0f;
    y[(threadIdx.x + 1) % THREADS] += 1.0f;
}

extern "C" __global__ __launch_bounds__(THREADS) void race_on_global_fixed(float* y) {
    y[threadIdx.x] = 1.0f;
    __syncthreads();
    y[(threadIdx.x + 1) % THREADS] += 1.0f;
}

extern "C" __global__ __launch_bounds__(THREADS) void plain_beside_atomic(int* count) {
    __shared__ int total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, 1);
    if (threadIdx.x == 0) *count = total;
}

extern "C" __global__ __launch_bounds__(THREADS) void plain_beside_atomic_fixed(int* count) {
    __shared__ int total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, 1);
    __syncthreads();
    if (threadIdx.x == 0) *count = total;
}

// Launched with 60 floats of dynamic shared memory.
extern "C" __global__ __launch_bounds__(THREADS) void past_dynamic_shared(const float* x, float* y) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void past_dynamic_shared_fixed(const float* x, float* y) {
    DYNAMIC_SHARED(float, tile);
    if (threadIdx.x < 60) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x % 60];
}

__device__ __noinline__ float descend(const float* x, int depth) {
    float frame[64];
    for (int i = 0; i < 64; ++i) frame[i] = x[i] + depth;
    return depth == 0 ? frame[0] : descend(frame, depth - 1) + frame[depth % 64];
}

extern "C" __global__ __launch_bounds__(THREADS) void stack_overflow(const float* x, float* y) {
    y[threadIdx.x] = descend(x, 10000);
}

extern "C" __global__ __launch_bounds__(THREADS) void stack_overflow_fixed(const float* x, float* y) {
    y[threadIdx.x] = descend(x, 2);
}

extern "C" __global__ __launch_bounds__(THREADS) void failed_assertion(const float* x, float* y) {
    assert(threadIdx.x != 5);
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void failed_assertion_fixed(const float* x, float* y) {
    assert(threadIdx.x != THREADS);
    y[threadIdx.x] = x[threadIdx.x];
}

// The destination of cp.async is shared memory.
extern "C" __global__ __launch_bounds__(THREADS) void copy_to_global(const float* x, float* y) {
    copy_async<4>(y + threadIdx.x, x + threadIdx.x);
    wait_copies<0>();
}

extern "C" __global__ __launch_bounds__(THREADS) void copy_to_global_fixed(const float* x, float* y) {
    __shared__ __align__(16) float tile[THREADS];
    if (threadIdx.x < 16) copy_async<16>(tile + threadIdx.x * 4, x + threadIdx.x * 4);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

// A write past one shared array hits the next one, which no guard page lies between.
extern "C" __global__ __launch_bounds__(THREADS) void past_a_shared_array(const float* x, float* y) {
    __shared__ float first[THREADS];
    __shared__ float second[THREADS];
    first[threadIdx.x] = second[threadIdx.x] = 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) first[static_cast<int>(x[THREADS - 1])] = 1.0f;  // x counts from 1
    __syncthreads();
    y[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void past_a_shared_array_fixed(const float* x, float* y) {
    __shared__ float first[THREADS];
    __shared__ float second[THREADS];
    first[threadIdx.x] = second[threadIdx.x] = 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) first[static_cast<int>(x[THREADS - 2])] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void past_a_local_array(const float* x, float* y) {
    float mine[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    mine[static_cast<int>(x[threadIdx.x]) % 5] = 7.0f;
    y[threadIdx.x] = mine[0] + mine[1] + mine[2] + mine[3];
}

extern "C" __global__ __launch_bounds__(THREADS) void past_a_local_array_fixed(const float* x, float* y) {
    float mine[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    mine[static_cast<int>(x[threadIdx.x]) % 4] = 7.0f;
    y[threadIdx.x] = mine[0] + mine[1] + mine[2] + mine[3];
}

// Launched with 61 floats of dynamic shared memory, which the engine rounds up to a multiple of 16 bytes.
extern "C" __global__ __launch_bounds__(THREADS) void rounding_of_dynamic_shared(const float* x, float* y) {
    DYNAMIC_SHARED(float, tile);
    if (threadIdx.x < 62) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x % 61];
}

extern "C" __global__ __launch_bounds__(THREADS) void rounding_of_dynamic_shared_fixed(const float* x, float* y) {
    DYNAMIC_SHARED(float, tile);
    if (threadIdx.x < 61) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x % 61];
}

extern "C" __global__ __launch_bounds__(THREADS) void before_dynamic_shared(const float* x, float* y) {
    DYNAMIC_SHARED(float, tile);
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == 0) y[0] = tile[-1];
}

extern "C" __global__ __launch_bounds__(THREADS) void before_dynamic_shared_fixed(const float* x, float* y) {
    DYNAMIC_SHARED(float, tile);
    if (threadIdx.x == 0) tile[0] = x[0];
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == 0) y[0] = tile[0];
}

// Eight bytes at a time, as two registers: a compiler for a CPU would make two loads of them that work anywhere.
extern "C" __global__ __launch_bounds__(THREADS) void misaligned_pair(const float* x, float* y) {
    const float2 pair = *reinterpret_cast<const float2*>(x + 1);
    y[threadIdx.x] = pair.x + pair.y;
}

extern "C" __global__ __launch_bounds__(THREADS) void misaligned_pair_fixed(const float* x, float* y) {
    const float2 pair = *reinterpret_cast<const float2*>(x + 2);
    y[threadIdx.x] = pair.x + pair.y;
}

// An atomic within the block tells nothing of what another block has done.
extern "C" __global__ __launch_bounds__(THREADS) void shared_atomic_between_blocks(const float* x, float* y) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1);
    __syncthreads();
    y[blockIdx.x * THREADS + threadIdx.x] = x[threadIdx.x] + static_cast<float>(count);
    if (blockIdx.x == 1) y[THREADS + threadIdx.x] += y[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void shared_atomic_between_blocks_fixed(const float* x, float* y) {
    __shared__ int count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1);
    __syncthreads();
    y[blockIdx.x * THREADS + threadIdx.x] = x[threadIdx.x] + static_cast<float>(count);
}

// A structure with padding, which is copied with it and was never written.
struct Padded {
    float value;
    int64 index;
};

extern "C" __global__ __launch_bounds__(THREADS) void unwritten_structure(const float* x, float* y) {
    __shared__ Padded tile[THREADS];
    if (threadIdx.x < 63) tile[threadIdx.x].value = x[threadIdx.x], tile[threadIdx.x].index = threadIdx.x;
    __syncthreads();
    const Padded mine = threadIdx.x < 64 ? tile[threadIdx.x] : Padded{0.0f, 0};
    y[threadIdx.x] = mine.value + static_cast<float>(mine.index);
}

extern "C" __global__ __launch_bounds__(THREADS) void unwritten_structure_fixed(const float* x, float* y) {
    __shared__ Padded tile[THREADS];
    tile[threadIdx.x].value = x[threadIdx.x], tile[threadIdx.x].index = threadIdx.x;
    __syncthreads();
    const Padded mine = threadIdx.x < 64 ? tile[threadIdx.x] : Padded{0.0f, 0};
    y[threadIdx.x] = mine.value + static_cast<float>(mine.index);
}

// Waits for a number that nobody writes.
extern "C" __global__ __launch_bounds__(THREADS) void endless_loop(const float* x, float* y) {
    const volatile float* const flag = x;
    while (flag[0] != 0.0f) {}
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(THREADS) void endless_loop_fixed(const float* x, float* y) {
    const volatile float* const flag = x;
    while (flag[0] != 1.0f) {}
    y[threadIdx.x] = x[threadIdx.x];
}

// The first element of y is `at` elements away from y.
extern "C" __global__ __launch_bounds__(THREADS) void write_far_away(float* y, int64 at) {
    if (threadIdx.x == 0) y[at] = 1.0f;
}
