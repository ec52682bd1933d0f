// The intrinsics of sm_90 one by one: products of each type and order, boxes and pixel columns in and out.
#include "fp8.cuh"
#include "shared.cuh"
#include "tensor_map.cuh"
#include "vector.cuh"
#include "wgmma.cuh"

constexpr int THREADS = 128;

// d = a b (+ c), 64 rows, 2 REGISTERS columns, a depth of 128 bytes: four instructions.
template <typename A, typename B, Major MAJOR_A, Major MAJOR_B, int REGISTERS>
__device__ __forceinline__ void multiply(const TensorMap& a, const TensorMap& b, const float* c, float* y,
                                         int accumulate, unsigned char* tiles, Barrier& full) {
    constexpr int COLUMNS = 2 * REGISTERS, PANEL = 8192, TILE_A = 8192;
    const int t = threadIdx.x;
    if (t == 0) {
        barrier_arrive_expect(full, TILE_A + 128 * COLUMNS);
        load_box(tiles, a, full, {0, 0});
        if (MAJOR_B == Major::K)
            load_box(tiles + TILE_A, b, full, {0, 0});
        else
            for (int i = 0; i < COLUMNS; i += 64) load_box(tiles + TILE_A + i / 64 * PANEL, b, full, {i, 0});
    }
    float d[REGISTERS];
#pragma unroll
    for (int i = 0; i < REGISTERS; ++i) {
        const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
        d[i] = c[row * COLUMNS + column];
    }
    barrier_wait(full, 0);
    const uint64 of_a = MAJOR_A == Major::K ? descriptor_k(tiles) : descriptor_mn(tiles, PANEL);
    const uint64 of_b = MAJOR_B == Major::K ? descriptor_k(tiles + TILE_A) : descriptor_mn(tiles + TILE_A, PANEL);
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
        warpgroup_multiply<A, B, MAJOR_A, MAJOR_B>(d, advanced(of_a, step * (MAJOR_A == Major::K ? 32 : 2048)),
                                                   advanced(of_b, step * (MAJOR_B == Major::K ? 32 : 2048)),
                                                   accumulate || step > 0);
    warpgroup_commit();
    warpgroup_wait<0>(d);
#pragma unroll
    for (int i = 0; i < REGISTERS; ++i) {
        const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
        y[row * COLUMNS + column] = d[i];
    }
}

template <typename A, typename B, Major MAJOR_A, Major MAJOR_B>
__device__ __forceinline__ void multiply_columns(int columns, const TensorMap& a, const TensorMap& b, const float* c,
                                                 float* y, int accumulate, unsigned char* tiles, Barrier& full) {
    if (columns == 64) multiply<A, B, MAJOR_A, MAJOR_B, 32>(a, b, c, y, accumulate, tiles, full);
    if (columns == 128) multiply<A, B, MAJOR_A, MAJOR_B, 64>(a, b, c, y, accumulate, tiles, full);
    if (columns == 256) multiply<A, B, MAJOR_A, MAJOR_B, 128>(a, b, c, y, accumulate, tiles, full);
}

template <typename Type>
__device__ __forceinline__ void multiply_majors(int majors, int columns, const TensorMap& a, const TensorMap& b,
                                                const float* c, float* y, int accumulate, unsigned char* tiles,
                                                Barrier& full) {
    constexpr Major K = Major::K, MN = Major::MN;
    if (majors == 0) multiply_columns<Type, Type, K, K>(columns, a, b, c, y, accumulate, tiles, full);
    if (majors == 1) multiply_columns<Type, Type, K, MN>(columns, a, b, c, y, accumulate, tiles, full);
    if (majors == 2) multiply_columns<Type, Type, MN, K>(columns, a, b, c, y, accumulate, tiles, full);
    if (majors == 3) multiply_columns<Type, Type, MN, MN>(columns, a, b, c, y, accumulate, tiles, full);
}

// types: of the factors, in the order below. majors: 2 where a, 1 where b lies in Major::MN.
extern "C" __global__ __launch_bounds__(THREADS, 1) void product(const __grid_constant__ TensorMap a,
                                                                 const __grid_constant__ TensorMap b, const float* c,
                                                                 float* y, int types, int majors, int columns,
                                                                 int accumulate) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Barrier full;
    constexpr Major K = Major::K;
    if (threadIdx.x == 0) {
        prefetch_tensor_map(a);
        barrier_init(full, 1);
        barrier_init_fence();
    }
    __syncthreads();
    if (types == 0) multiply_majors<float16>(majors, columns, a, b, c, y, accumulate, tiles, full);
    if (types == 1) multiply_majors<bfloat16>(majors, columns, a, b, c, y, accumulate, tiles, full);
    if (types == 2) multiply_columns<tf32, tf32, K, K>(columns, a, b, c, y, accumulate, tiles, full);
    if (types == 3) multiply_columns<e4m3, e4m3, K, K>(columns, a, b, c, y, accumulate, tiles, full);
    if (types == 4) multiply_columns<e4m3, e5m2, K, K>(columns, a, b, c, y, accumulate, tiles, full);
    if (types == 5) multiply_columns<e5m2, e4m3, K, K>(columns, a, b, c, y, accumulate, tiles, full);
    if (types == 6) multiply_columns<e5m2, e5m2, K, K>(columns, a, b, c, y, accumulate, tiles, full);
}

// y: the bytes of shared memory after a box was loaded. at: its coordinates, as many as `rank`.
extern "C" __global__ __launch_bounds__(THREADS) void loaded_box(const __grid_constant__ TensorMap map, const int* at,
                                                                 uint8* y, int rank, int bytes) {
    DYNAMIC_SHARED_TILES(uint8, tile);
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
        if (rank == 2) load_box(tile, map, full, {at[0], at[1]});
        if (rank == 3) load_box(tile, map, full, {at[0], at[1], at[2]});
        if (rank == 4) load_box(tile, map, full, {at[0], at[1], at[2], at[3]});
        if (rank == 5) load_box(tile, map, full, {at[0], at[1], at[2], at[3], at[4]});
        barrier_arrive_expect(full, bytes);
    }
    __syncthreads();
    barrier_wait(full, 0);
    for (int i = threadIdx.x; i < bytes; i += THREADS) y[i] = tile[i];
}

extern "C" __global__ __launch_bounds__(THREADS) void loaded_pixels(const __grid_constant__ TensorMap map,
                                                                    const int* at, uint8* y, int tap_w, int tap_h,
                                                                    int bytes) {
    DYNAMIC_SHARED_TILES(uint8, tile);
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barrier_init_fence();
        barrier_arrive_expect(full, bytes);
        load_pixels(tile, map, full, {at[0], at[1], at[2], at[3]}, static_cast<uint16>(tap_w),
                    static_cast<uint16>(tap_h));
    }
    __syncthreads();
    barrier_wait(full, 0);
    for (int i = threadIdx.x; i < bytes; i += THREADS) y[i] = tile[i];
}

// x: what the bytes of shared memory are when the box is stored.
extern "C" __global__ __launch_bounds__(THREADS) void stored_box(const __grid_constant__ TensorMap map, const int* at,
                                                                 const uint8* x, int rank, int bytes) {
    DYNAMIC_SHARED_TILES(uint8, tile);
    for (int i = threadIdx.x; i < bytes; i += THREADS) tile[i] = x[i];
    fence_async_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (rank == 2) store_box(map, tile, {at[0], at[1]});
        if (rank == 3) store_box(map, tile, {at[0], at[1], at[2]});
        if (rank == 4) store_box(map, tile, {at[0], at[1], at[2], at[3]});
        if (rank == 5) store_box(map, tile, {at[0], at[1], at[2], at[3], at[4]});
        commit_stores();
        wait_stores_read<0>();
    }
}

extern "C" __global__ __launch_bounds__(256) void float_to_fp8(const float* x, uint8* y, int64 n) {
    grid_stride(n, [&](int64 i) {
        y[i] = to_e4m3(x[i]);
        y[n + i] = to_e5m2(x[i]);
    });
}
