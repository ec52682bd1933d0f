// A small product with a producer, two consuming warpgroups and three stages, as it should be and with one mistake
// each; and short kernels with one mistake in the use of barriers, copies and products, most of them beside a correct
// twin.
#include "shared.cuh"
#include "tensor_map.cuh"
#include "vector.cuh"
#include "wgmma.cuh"

constexpr int THREADS = 384;
constexpr int STAGES = 3, DEPTH = 64, COLUMNS = 64, CONSUMERS = 2;
constexpr int A_BYTES = CONSUMERS * 64 * DEPTH * 2, B_BYTES = COLUMNS * DEPTH * 2, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int OUT_BYTES = 64 * COLUMNS * 4;  // of one consumer

enum class Mistake {
    NONE,
    NONE_WITH_A_GROUP_IN_FLIGHT,
    SWIZZLE_OF_DESCRIPTOR,
    NO_WAIT_FOR_LOADS,
    STAGE_RELEASED_EARLY,
    TOO_FEW_BYTES,
    TOO_MANY_BYTES,
    NO_PROXY_FENCE,
    PROXY_FENCE_AFTER_BARRIER,
    NO_WAIT_BEFORE_REUSE,
    PARITY_OF_CONSUMER,
    PARITY_OF_PRODUCER,
    COUNT_TOO_SMALL,
    COUNT_TOO_LARGE,
    STAGE_NEVER_RELEASED,
    NO_WAIT_FOR_STAGE,
    NO_FENCE_OF_REGISTERS,
    NO_WAIT_FOR_PRODUCTS,
    WAIT_FOR_ALL_BUT_ONE_GROUP,
    NO_FINAL_WAIT,
    EACH_THREAD_LOADS,
};

// y (m, COLUMNS) = a (m, depth) times b (COLUMNS, depth) transposed, in tiles of 128 rows, block after block.
template <Mistake MISTAKE>
__device__ __forceinline__ void multiply(const TensorMap& a, const TensorMap& b, const TensorMap& y, int tiles,
                                         int steps, Barrier (&full)[STAGES], Barrier (&empty)[STAGES]) {
    DYNAMIC_SHARED_TILES(unsigned char, memory);
    const int warpgroup = threadIdx.x / 128, t = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        const int count = MISTAKE == Mistake::COUNT_TOO_SMALL   ? CONSUMERS - 1
                          : MISTAKE == Mistake::COUNT_TOO_LARGE ? CONSUMERS + 1
                                                                : CONSUMERS;
        for (int s = 0; s < STAGES; ++s) {
            barrier_init(full[s], 1);
            barrier_init(empty[s], count);
        }
        barrier_init_fence();
    }
    __syncthreads();

    if (warpgroup == CONSUMERS) {
        give_registers_back<24>();
        if (t == 0 || (MISTAKE == Mistake::EACH_THREAD_LOADS && t == 1)) {
            int round = 0;
            for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
                for (int step = 0; step < steps; ++step, ++round) {
                    const int s = round % STAGES;
                    const int parity = round / STAGES & 1;
                    unsigned char* stage = memory + s * STAGE_BYTES;
                    if (MISTAKE != Mistake::NO_WAIT_FOR_STAGE)
                        barrier_wait(empty[s], MISTAKE == Mistake::PARITY_OF_PRODUCER ? parity : parity ^ 1);
                    if (t == 0)
                        barrier_arrive_expect(full[s], STAGE_BYTES + (MISTAKE == Mistake::TOO_FEW_BYTES    ? -128
                                                                      : MISTAKE == Mistake::TOO_MANY_BYTES ? 128
                                                                                                           : 0));
                    load_box(stage, a, full[s], {step * DEPTH, tile * 128});
                    load_box(stage + A_BYTES, b, full[s], {step * DEPTH, 0});
                }
        }
        return;
    }

    take_registers<240>();
    float* out = reinterpret_cast<float*>(memory + STAGES * STAGE_BYTES + warpgroup * OUT_BYTES);
    int round = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float d[COLUMNS / 2];
        for (int step = 0; step < steps; ++step, ++round) {
            const int s = round % STAGES;
            const int parity = round / STAGES & 1;
            const unsigned char* stage = memory + s * STAGE_BYTES;
            if (MISTAKE != Mistake::NO_WAIT_FOR_LOADS)
                barrier_wait(full[s], MISTAKE == Mistake::PARITY_OF_CONSUMER ? parity ^ 1 : parity);
            uint64 of_a = descriptor_k(stage + warpgroup * 8192), of_b = descriptor_k(stage + A_BYTES);
            if (MISTAKE == Mistake::SWIZZLE_OF_DESCRIPTOR) of_a ^= 3ull << 62;  // 64 bytes
            if (MISTAKE != Mistake::NO_FENCE_OF_REGISTERS) warpgroup_fence();
            for (int k = 0; k < DEPTH; k += 16)
                warpgroup_multiply<bfloat16>(d, advanced(of_a, 2 * k), advanced(of_b, 2 * k), step + k > 0);
            warpgroup_commit();
            if (MISTAKE == Mistake::STAGE_RELEASED_EARLY && t == 0) barrier_arrive(empty[s]);
            if (MISTAKE == Mistake::NONE_WITH_A_GROUP_IN_FLIGHT) {
                warpgroup_wait<1>();
                if (step > 0 && t == 0) barrier_arrive(empty[(round - 1) % STAGES]);
                continue;
            }
            if (MISTAKE == Mistake::WAIT_FOR_ALL_BUT_ONE_GROUP)
                warpgroup_wait<1>();
            else if (MISTAKE != Mistake::NO_WAIT_FOR_PRODUCTS)
                warpgroup_wait<0>(d);
            if (MISTAKE != Mistake::STAGE_RELEASED_EARLY && MISTAKE != Mistake::STAGE_NEVER_RELEASED && t == 0)
                barrier_arrive(empty[s]);
        }
        if (MISTAKE == Mistake::WAIT_FOR_ALL_BUT_ONE_GROUP || MISTAKE == Mistake::NONE_WITH_A_GROUP_IN_FLIGHT)
            warpgroup_wait<0>(d);
        if (MISTAKE == Mistake::NONE_WITH_A_GROUP_IN_FLIGHT && t == 0) barrier_arrive(empty[(round - 1) % STAGES]);
        if (MISTAKE != Mistake::NO_WAIT_BEFORE_REUSE && t == 0) wait_stores_read<0>();
        named_barrier_sync(1 + warpgroup, 128);
        for (int i = 0; i < COLUMNS / 2; ++i) {
            const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
            out[row * COLUMNS + column] = d[i];
        }
        if (MISTAKE != Mistake::NO_PROXY_FENCE && MISTAKE != Mistake::PROXY_FENCE_AFTER_BARRIER) fence_async_proxy();
        named_barrier_sync(1 + warpgroup, 128);
        if (MISTAKE == Mistake::PROXY_FENCE_AFTER_BARRIER) fence_async_proxy();
        if (t == 0) {
            store_box(y, out, {0, tile * 128 + warpgroup * 64});
            commit_stores();
        }
    }
    if (MISTAKE != Mistake::NO_FINAL_WAIT && t == 0) wait_stores_read<0>();
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void correct(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NONE>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void correct_with_a_group_in_flight(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NONE_WITH_A_GROUP_IN_FLIGHT>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void swizzle_of_descriptor(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::SWIZZLE_OF_DESCRIPTOR>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void no_wait_for_loads(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NO_WAIT_FOR_LOADS>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void stage_released_early(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::STAGE_RELEASED_EARLY>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void too_few_bytes(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::TOO_FEW_BYTES>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void too_many_bytes(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::TOO_MANY_BYTES>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void no_proxy_fence(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NO_PROXY_FENCE>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void proxy_fence_after_barrier(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::PROXY_FENCE_AFTER_BARRIER>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void no_wait_before_reuse(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NO_WAIT_BEFORE_REUSE>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void parity_of_consumer(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::PARITY_OF_CONSUMER>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void parity_of_producer(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::PARITY_OF_PRODUCER>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void count_too_small(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::COUNT_TOO_SMALL>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void count_too_large(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::COUNT_TOO_LARGE>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void stage_never_released(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::STAGE_NEVER_RELEASED>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void no_wait_for_stage(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NO_WAIT_FOR_STAGE>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void no_fence_of_registers(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NO_FENCE_OF_REGISTERS>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void no_wait_for_products(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NO_WAIT_FOR_PRODUCTS>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void wait_for_all_but_one_group(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::WAIT_FOR_ALL_BUT_ONE_GROUP>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void no_final_wait(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::NO_FINAL_WAIT>(a, b, y, tiles, steps, full, empty);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void each_thread_loads(
    const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
    int tiles, int steps) {
    __shared__ Barrier full[STAGES], empty[STAGES];
    multiply<Mistake::EACH_THREAD_LOADS>(a, b, y, tiles, steps, full, empty);
}

// Short ones: each copies 64 floats of x to y, or would. ---------------------------------------------------------

constexpr int FEW = 128;

extern "C" __global__ __launch_bounds__(FEW) void barrier_without_init(const float* x, float* y) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) barrier_arrive(barrier);
    barrier_wait(barrier, 0);
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(FEW) void barrier_without_syncthreads(const float* x, float* y) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) barrier_init(barrier, FEW);
    barrier_arrive(barrier);
    barrier_wait(barrier, 0);
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(FEW) void barrier_initialised_twice(const float* x, float* y) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) barrier_init(barrier, 1);
    if (threadIdx.x == 0) barrier_init(barrier, 1);
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(FEW) void barrier_overwritten(const float* x, float* y) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barrier.state = 1;
        barrier_arrive(barrier);
    }
    y[threadIdx.x] = x[threadIdx.x];
}

// All wait, and one arrival of the four that are counted is missing.
extern "C" __global__ __launch_bounds__(FEW) void arrival_missing(const float* x, float* y) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) barrier_init(barrier, 4);
    __syncthreads();
    if (threadIdx.x < 3) barrier_arrive(barrier);
    barrier_wait(barrier, 0);
    y[threadIdx.x] = x[threadIdx.x];
}

// One arrival more than is counted, while bytes are missing.
extern "C" __global__ __launch_bounds__(FEW) void arrival_too_many(const float* x, float* y) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) barrier_init(barrier, 1);
    __syncthreads();
    if (threadIdx.x < 2) barrier_arrive_expect(barrier, 16);
    y[threadIdx.x] = x[threadIdx.x];
}

// The value goes from the first warp to the others by way of a barrier.
extern "C" __global__ __launch_bounds__(FEW) void handed_over_too_late(const float* x, float* y) {
    __shared__ Barrier barrier;
    __shared__ float value[32];
    if (threadIdx.x == 0) barrier_init(barrier, 32);
    __syncthreads();
    if (threadIdx.x < 32) {
        barrier_arrive(barrier);
        value[threadIdx.x] = x[threadIdx.x];
    } else {
        barrier_wait(barrier, 0);
        y[threadIdx.x] = value[threadIdx.x % 32];
    }
}

extern "C" __global__ __launch_bounds__(FEW) void handed_over_too_late_fixed(const float* x, float* y) {
    __shared__ Barrier barrier;
    __shared__ float value[32];
    if (threadIdx.x == 0) barrier_init(barrier, 32);
    __syncthreads();
    if (threadIdx.x < 32) {
        value[threadIdx.x] = x[threadIdx.x];
        barrier_arrive(barrier);
        y[threadIdx.x] = x[threadIdx.x];
    } else {
        barrier_wait(barrier, 0);
        y[threadIdx.x] = value[threadIdx.x % 32];
    }
}

// Between loads and their use: y gets the 8 rows of 16 floats that map has.
template <bool INIT_FENCE, bool WAIT, bool SYNC_INSTEAD, bool OVERWRITE, unsigned WAITER = 0>
__device__ __forceinline__ void copy_rows(const TensorMap& map, float* y, float (&tile)[FEW], Barrier& full) {
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        if (INIT_FENCE) barrier_init_fence();
        barrier_arrive_expect(full, sizeof tile);
        load_box(tile, map, full, {0, 0});
    }
    __syncthreads();
    if (OVERWRITE) tile[threadIdx.x] = 0.0f;
    if (WAIT && (!SYNC_INSTEAD || threadIdx.x == WAITER)) barrier_wait(full, 0);
    if (SYNC_INSTEAD) __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
    if (!WAIT) barrier_wait(full, 0);
}

extern "C" __global__ __launch_bounds__(FEW) void rows_copied(const __grid_constant__ TensorMap map, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    copy_rows<true, true, false, false>(map, y, tile, full);
}
// One thread waits, and the others learn from it.
extern "C" __global__ __launch_bounds__(FEW) void rows_copied_one_waits(const __grid_constant__ TensorMap map,
                                                                       float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    copy_rows<true, true, true, false>(map, y, tile, full);
}
// The one that comes last waits, when no other can go on.
extern "C" __global__ __launch_bounds__(FEW) void rows_copied_last_waits(const __grid_constant__ TensorMap map,
                                                                        float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    copy_rows<true, true, true, false, FEW - 2>(map, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void rows_without_init_fence(const __grid_constant__ TensorMap map,
                                                                         float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    copy_rows<false, true, false, false>(map, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void rows_without_wait(const __grid_constant__ TensorMap map, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    copy_rows<true, false, false, false>(map, y, tile, full);
}
// __syncthreads() waits for threads, not for copies.
extern "C" __global__ __launch_bounds__(FEW) void rows_with_syncthreads_alone(const __grid_constant__ TensorMap map,
                                                                             float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    copy_rows<true, false, true, false>(map, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void rows_overwritten(const __grid_constant__ TensorMap map, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    copy_rows<true, true, false, true>(map, y, tile, full);
}

extern "C" __global__ __launch_bounds__(FEW) void load_nobody_waits_for(const __grid_constant__ TensorMap map,
                                                                       float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
        barrier_arrive_expect(full, sizeof tile);
        load_box(tile, map, full, {0, 0});
    }
    y[threadIdx.x] = 0.0f;
}

extern "C" __global__ __launch_bounds__(FEW) void load_to_odd_place(const __grid_constant__ TensorMap map, float* y) {
    __shared__ __align__(128) float tile[FEW + 32];
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
        load_box(tile + 4, map, full, {0, 0});
    }
    y[threadIdx.x] = 0.0f;
}

extern "C" __global__ __launch_bounds__(FEW) void load_of_other_rank(const __grid_constant__ TensorMap map, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
        load_box(tile, map, full, {0, 0, 0});
    }
    y[threadIdx.x] = 0.0f;
}

// The rows that a store reads are written after a barrier of the block, and before it is waited for.
extern "C" __global__ __launch_bounds__(FEW) void store_overwritten(const __grid_constant__ TensorMap map, float* y) {
    __shared__ __align__(128) float tile[FEW];
    tile[threadIdx.x] = 1.0f;
    fence_async_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_box(map, tile, {0, 0});
        commit_stores();
    }
    __syncthreads();
    tile[threadIdx.x] = 2.0f;
    if (threadIdx.x == 0) wait_stores_read<0>();
    y[threadIdx.x] = 0.0f;
}

// The first thread makes what it stored visible to the copy engine only after it has told the second one.
extern "C" __global__ __launch_bounds__(FEW) void fence_after_arrival(const __grid_constant__ TensorMap map, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier stored;
    if (threadIdx.x == 0) barrier_init(stored, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 0; i < FEW; ++i) tile[i] = 1.0f;
        barrier_arrive(stored);
        fence_async_proxy();
    } else if (threadIdx.x == 1) {
        barrier_wait(stored, 0);
        store_box(map, tile, {0, 0});
        commit_stores();
        wait_stores_read<0>();
    }
    y[threadIdx.x] = 0.0f;
}

// Products of a tile that nothing loaded: of what threads have stored there.
template <bool PROXY_FENCE, bool WAIT, bool TOUCH, bool DIVERGE, bool STAY, bool BARRIER = true>
__device__ __forceinline__ void multiply_stored(float* y) {
    DYNAMIC_SHARED_TILES(float, factors);
    for (int i = threadIdx.x; i < 2 * 64 * 32; i += FEW) factors[i] = 0.0f;
    if (PROXY_FENCE) fence_async_proxy();
    if (BARRIER) __syncthreads();
    float d[32];
    for (int i = 0; i < 32; ++i) d[i] = 0.0f;
    const uint64 a = descriptor_k(factors), b = descriptor_k(factors + 64 * 32);
    if (DIVERGE && threadIdx.x >= 96) return;
    warpgroup_fence();
    warpgroup_multiply<tf32>(d, a, b, true);
    warpgroup_commit();
    if (TOUCH) d[3] += 1.0f;
    if (WAIT) warpgroup_wait<0>(d);
    if (STAY) __syncthreads();
    if (WAIT)
        for (int i = 0; i < 32; ++i) y[threadIdx.x * 32 + i] = d[i];
}

extern "C" __global__ __launch_bounds__(FEW) void product_of_stored(float* y) {
    multiply_stored<true, true, false, false, false>(y);
}
extern "C" __global__ __launch_bounds__(FEW) void product_without_proxy_fence(float* y) {
    multiply_stored<false, true, false, false, false>(y);
}
extern "C" __global__ __launch_bounds__(FEW) void product_without_syncthreads(float* y) {
    multiply_stored<true, true, false, false, false, false>(y);
}
extern "C" __global__ __launch_bounds__(FEW) void product_without_wait(float* y) {
    multiply_stored<true, false, false, false, true>(y);
}
extern "C" __global__ __launch_bounds__(FEW) void product_touched(float* y) {
    multiply_stored<true, true, true, false, false>(y);
}
extern "C" __global__ __launch_bounds__(FEW) void product_by_three_warps(float* y) {
    multiply_stored<true, true, false, true, false>(y);
}

// One thread stores the factors, and tells the others by a barrier that it does not wait for itself.
extern "C" __global__ __launch_bounds__(FEW) void product_of_one_thread(float* y) {
    DYNAMIC_SHARED_TILES(float, tile);
    __shared__ Barrier stored;
    if (threadIdx.x == 0) barrier_init(stored, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * 64 * 32; ++i) tile[i] = 0.0f;
        fence_async_proxy();
        barrier_arrive(stored);
    } else {
        barrier_wait(stored, 0);
    }
    float d[32];
    const uint64 a = descriptor_k(tile), b = descriptor_k(tile + 64 * 32);
    warpgroup_fence();
    warpgroup_multiply<tf32>(d, a, b, false);
    warpgroup_commit();
    warpgroup_wait<0>(d);
    for (int i = 0; i < 32; ++i) y[threadIdx.x * 32 + i] = d[i];
}

// A factor is written after a barrier of the block, between the product and its wait.
extern "C" __global__ __launch_bounds__(FEW) void factor_overwritten(float* y) {
    DYNAMIC_SHARED_TILES(float, tile);
    for (int i = threadIdx.x; i < 2 * 64 * 32; i += FEW) tile[i] = 0.0f;
    fence_async_proxy();
    __syncthreads();
    float d[32];
    const uint64 a = descriptor_k(tile), b = descriptor_k(tile + 64 * 32);
    warpgroup_fence();
    warpgroup_multiply<tf32>(d, a, b, false);
    warpgroup_commit();
    __syncthreads();
    tile[threadIdx.x] = 1.0f;
    warpgroup_wait<0>(d);
    for (int i = 0; i < 32; ++i) y[threadIdx.x * 32 + i] = d[i];
}

extern "C" __global__ __launch_bounds__(FEW) void descriptor_of_odd_tile(float* y) {
    DYNAMIC_SHARED_TILES(float, tile);
    float d[32];
    const uint64 a = descriptor_k(tile + 32);
    warpgroup_fence();
    warpgroup_multiply<tf32>(d, a, a, false);
    warpgroup_commit();
    warpgroup_wait<0>(d);
    y[threadIdx.x] = d[0];
}

extern "C" __global__ __launch_bounds__(FEW) void product_beyond_shared(float* y) {
    DYNAMIC_SHARED_TILES(float, tile);
    for (int i = threadIdx.x; i < 2 * 64 * 32; i += FEW) tile[i] = 0.0f;
    fence_async_proxy();
    __syncthreads();
    float d[64];
    const uint64 a = descriptor_k(tile), b = descriptor_k(tile + 64 * 32);
    warpgroup_fence();
    warpgroup_multiply<tf32>(d, a, b, false);
    warpgroup_commit();
    warpgroup_wait<0>(d);
    y[threadIdx.x] = d[0];
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void too_many_registers(float* y) {
    take_registers<240>();
    y[threadIdx.x] = 0.0f;
}

// Two of three warpgroups wait for registers that the third one gives back, or does not.
enum class Registers { GIVEN, NEVER_GIVEN, GIVEN_TOO_LATE, TAKEN_BELOW, GIVEN_ABOVE };

template <Registers REGISTERS>
__device__ __forceinline__ void copy_with_registers(const float* x, float* y, Barrier& taken) {
    if (threadIdx.x == 0) barrier_init(taken, 256);
    __syncthreads();
    if (threadIdx.x < 256) {
        take_registers<240>();
        barrier_arrive(taken);
    } else {
        if (REGISTERS == Registers::GIVEN_TOO_LATE) barrier_wait(taken, 0);
        if (REGISTERS == Registers::GIVEN_ABOVE) give_registers_back<240>();
        if (REGISTERS == Registers::TAKEN_BELOW) take_registers<24>();
        if (REGISTERS == Registers::GIVEN || REGISTERS == Registers::GIVEN_TOO_LATE) give_registers_back<24>();
    }
    y[threadIdx.x] = x[threadIdx.x % FEW];
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void registers_given(const float* x, float* y) {
    __shared__ Barrier taken;
    copy_with_registers<Registers::GIVEN>(x, y, taken);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void registers_never_given(const float* x, float* y) {
    __shared__ Barrier taken;
    copy_with_registers<Registers::NEVER_GIVEN>(x, y, taken);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void registers_given_too_late(const float* x, float* y) {
    __shared__ Barrier taken;
    copy_with_registers<Registers::GIVEN_TOO_LATE>(x, y, taken);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void registers_taken_below(const float* x, float* y) {
    __shared__ Barrier taken;
    copy_with_registers<Registers::TAKEN_BELOW>(x, y, taken);
}
extern "C" __global__ __launch_bounds__(THREADS, 1) void registers_given_above(const float* x, float* y) {
    __shared__ Barrier taken;
    copy_with_registers<Registers::GIVEN_ABOVE>(x, y, taken);
}

// The threads for whom `apart` holds execute one of the instructions of a product elsewhere than the others do, or one
// that the others do not.
enum class Apart { NOWHERE, FENCE, COMMIT, WAIT, ONE_MORE };

template <Apart APART>
__device__ __forceinline__ void multiply_apart(float* y, bool apart) {
    DYNAMIC_SHARED_TILES(float, factors);
    for (int i = threadIdx.x; i < 2 * 64 * 32; i += FEW) factors[i] = 0.0f;
    fence_async_proxy();
    __syncthreads();
    float d[32];
    const uint64 a = descriptor_k(factors), b = descriptor_k(factors + 64 * 32);
    if (apart) y[threadIdx.x * 32] = 1.0f;  // a branch beside them does no harm
    if (APART == Apart::FENCE && apart)
        warpgroup_fence();
    else
        warpgroup_fence();
    warpgroup_multiply<tf32>(d, a, b, false);
    if (APART == Apart::COMMIT && apart)
        warpgroup_commit();
    else
        warpgroup_commit();
    if (APART == Apart::WAIT && apart)
        warpgroup_wait<0>(d);
    else
        warpgroup_wait<0>(d);
    if (APART == Apart::ONE_MORE && apart) warpgroup_fence();
    for (int i = 0; i < 32; ++i) y[threadIdx.x * 32 + i] = d[i];
}

extern "C" __global__ __launch_bounds__(FEW) void product_beside_branches(float* y) {
    multiply_apart<Apart::NOWHERE>(y, threadIdx.x % 2);
}
extern "C" __global__ __launch_bounds__(FEW) void fence_by_odd_lanes(float* y) {
    multiply_apart<Apart::FENCE>(y, threadIdx.x % 2);
}
extern "C" __global__ __launch_bounds__(FEW) void commit_by_odd_lanes(float* y) {
    multiply_apart<Apart::COMMIT>(y, threadIdx.x % 2);
}
extern "C" __global__ __launch_bounds__(FEW) void wait_by_odd_lanes(float* y) {
    multiply_apart<Apart::WAIT>(y, threadIdx.x % 2);
}
extern "C" __global__ __launch_bounds__(FEW) void wait_by_the_first_warp(float* y) {
    multiply_apart<Apart::WAIT>(y, threadIdx.x < 32);
}
extern "C" __global__ __launch_bounds__(FEW) void one_more_fence_by_odd_lanes(float* y) {
    multiply_apart<Apart::ONE_MORE>(y, threadIdx.x % 2);
}
extern "C" __global__ __launch_bounds__(FEW) void one_more_fence_by_the_first_warp(float* y) {
    multiply_apart<Apart::ONE_MORE>(y, threadIdx.x < 32);
}

// Two arrivals announce this much together, in one phase.
template <uint32 BYTES>
__device__ __forceinline__ void expect_together(const float* x, float* y, Barrier& barrier) {
    if (threadIdx.x == 0) barrier_init(barrier, 3);
    __syncthreads();
    if (threadIdx.x < 2) barrier_arrive_expect(barrier, threadIdx.x ? BYTES / 2 : BYTES - BYTES / 2);
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(FEW) void most_bytes_expected(const float* x, float* y) {
    __shared__ Barrier barrier;
    expect_together<(1 << 20) - 1>(x, y, barrier);
}
extern "C" __global__ __launch_bounds__(FEW) void too_many_bytes_expected(const float* x, float* y) {
    __shared__ Barrier barrier;
    expect_together<1 << 20>(x, y, barrier);
}

// Between the copy engine and ordinary accesses of global memory. No kernel of the framework does this, so the two
// intrinsics that it takes stand here: what kernels/include has is for shared memory.
__device__ __forceinline__ void wait_stores() {
#ifdef BP_EMULATOR
    emulator::wait_stores(0, true);
#else
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}
__device__ __forceinline__ void fence_async_proxy_global() {
#ifdef BP_EMULATOR
    emulator::fence_async_proxy_global();
#else
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// x gets 7 from the copy engine; then y gets x.
template <bool WAIT, bool LOAD>
__device__ __forceinline__ void store_and_read_back(const TensorMap& map, const float* x, float* y, float (&tile)[FEW],
                                                    Barrier& full) {
    tile[threadIdx.x] = 7.0f;
    fence_async_proxy();
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        store_box(map, tile, {0, 0});
        commit_stores();
        if (WAIT)
            wait_stores();
        else
            wait_stores_read<0>();
        if (LOAD) {
            barrier_arrive_expect(full, sizeof tile);
            load_box(tile, map, full, {0, 0});
        }
    }
    __syncthreads();
    if (LOAD) barrier_wait(full, 0);
    y[threadIdx.x] = LOAD ? tile[threadIdx.x] : x[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(FEW) void stored_and_read_back(const __grid_constant__ TensorMap map,
                                                                      const float* x, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    store_and_read_back<false, false>(map, x, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void stored_and_loaded_back(const __grid_constant__ TensorMap map,
                                                                        const float* x, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    store_and_read_back<false, true>(map, x, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void stored_waited_for_and_read_back(const __grid_constant__ TensorMap map,
                                                                                 const float* x, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    store_and_read_back<true, false>(map, x, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void stored_waited_for_and_loaded_back(
    const __grid_constant__ TensorMap map, const float* x, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    store_and_read_back<true, true>(map, x, y, tile, full);
}

// x gets 7 by ordinary stores; then y gets it from the copy engine.
enum class ProxyFence { NONE, OF_SHARED, OF_GLOBAL };

template <ProxyFence FENCE>
__device__ __forceinline__ void write_and_load(const TensorMap& map, float* x, float* y, float (&tile)[FEW],
                                               Barrier& full) {
    x[threadIdx.x] = 7.0f;
    if (FENCE == ProxyFence::OF_SHARED) fence_async_proxy();
    if (FENCE == ProxyFence::OF_GLOBAL) fence_async_proxy_global();
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_arrive_expect(full, sizeof tile);
        load_box(tile, map, full, {0, 0});
    }
    barrier_wait(full, 0);
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(FEW) void written_and_loaded(const __grid_constant__ TensorMap map, float* x,
                                                                    float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    write_and_load<ProxyFence::NONE>(map, x, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void written_and_loaded_after_fence_of_shared(
    const __grid_constant__ TensorMap map, float* x, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    write_and_load<ProxyFence::OF_SHARED>(map, x, y, tile, full);
}
extern "C" __global__ __launch_bounds__(FEW) void written_and_loaded_after_fence(const __grid_constant__ TensorMap map,
                                                                                float* x, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    write_and_load<ProxyFence::OF_GLOBAL>(map, x, y, tile, full);
}

// The first of two blocks to come writes x, and the other one loads it to y: an atomic orders them.
template <bool FENCE>
__device__ __forceinline__ void hand_to_next_block(const TensorMap& map, float* x, float* y, float (&tile)[FEW],
                                                   Barrier& full, int& turn) {
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
        turn = atomicAdd(reinterpret_cast<int*>(y + FEW), 0);
    }
    __syncthreads();
    if (turn == 0) {
        x[threadIdx.x] = 7.0f;
        if (FENCE) fence_async_proxy_global();
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(reinterpret_cast<int*>(y + FEW), 1);
        }
        return;
    }
    if (threadIdx.x == 0) {
        __threadfence();
        barrier_arrive_expect(full, sizeof tile);
        load_box(tile, map, full, {0, 0});
    }
    barrier_wait(full, 0);
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ __launch_bounds__(FEW) void handed_to_next_block(const __grid_constant__ TensorMap map, float* x,
                                                                      float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    __shared__ int turn;
    hand_to_next_block<false>(map, x, y, tile, full, turn);
}
extern "C" __global__ __launch_bounds__(FEW) void handed_to_next_block_after_fence(
    const __grid_constant__ TensorMap map, float* x, float* y) {
    __shared__ __align__(128) float tile[FEW];
    __shared__ Barrier full;
    __shared__ int turn;
    hand_to_next_block<true>(map, x, y, tile, full, turn);
}
