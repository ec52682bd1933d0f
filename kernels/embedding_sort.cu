// Sorts the positions of an embedding by their index: a stable radix sort, 8 bits of the key a pass, from the lowest.
//
// A pass is two launches over tiles of the input: `count_digits` counts each tile's digits, and `scatter_by_digit`
// moves each element to its place: behind those of smaller digits, of its digit in earlier tiles, and of its digit
// before it in its tile. Stable, so positions of one index stay in their order. No atomics: every count has one writer.
// Source: Satish, Harris, Garland, Designing Efficient Sorting Algorithms for Manycore GPUs (2009).
#include "indexing.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = 8;
constexpr int DIGITS = 256;             // one a thread where counts are summed
constexpr int ROUNDS = 16;              // of 32 elements a warp
constexpr int SPAN = THREADS * ROUNDS;  // elements that a block takes at once

// The key of position n: its index; `rows`, which sorts last, where that is `padding` or lies outside the table.
struct Keys {
    const void* indices;  // the first pass reads these,
    const uint32* sorted;  // the others what the pass before has written
    int64 rows, padding;
    int index_bytes, index_signed;

    __device__ __forceinline__ uint32 operator[](int64 n) const {
        if (sorted != nullptr) return sorted[n];
        const int64 index = integer_at(indices, n, index_bytes, index_signed);
        return static_cast<uint32>(index < 0 || index >= rows || index == padding ? rows : index);
    }
};

// Counts the warp's elements by digit, 32 at a time, and gives each the number of those with its digit before it.
// counts: the warp's DIGITS counts, which start at zero.
__device__ __forceinline__ uint32 count_in_warp(uint32 digit, bool valid, uint32* counts) {
    const int lane = threadIdx.x % WARP;
    uint32 same = __ballot_sync(ALL_LANES, valid);  // lanes that have this digit: one vote for each of its bits
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
        const bool set = digit >> bit & 1;
        const uint32 votes = __ballot_sync(ALL_LANES, set);
        same &= set ? votes : ~votes;
    }
    const uint32 before = counts[digit];
    __syncwarp();
    if (valid && __ffs(same) - 1 == lane) counts[digit] = before + __popc(same);
    __syncwarp();
    return before + __popc(same & ((1u << lane) - 1));
}

// counts: (tiles, DIGITS). A tile is a multiple of SPAN elements, or the rest.
extern "C" __global__ __launch_bounds__(THREADS) void count_digits(const void* indices, const uint32* keys,
                                                                   uint32* counts, int64 positions, int64 rows,
                                                                   int64 padding, int index_bytes, int index_signed,
                                                                   int shift, int64 tile) {
    __shared__ uint32 by_warp[WARPS * DIGITS];
    const int warp = threadIdx.x / WARP;
    const Keys key = {indices, keys, rows, padding, index_bytes, index_signed};
    for (int w = 0; w < WARPS; ++w) by_warp[w * DIGITS + threadIdx.x] = 0;
    __syncthreads();
    const int64 begin = blockIdx.x * tile, end = smaller(begin + tile, positions);
    for (int64 first = begin; first < end; first += THREADS) {
        const int64 n = first + threadIdx.x;
        const uint32 digit = n < end ? key[n] >> shift & (DIGITS - 1) : 0;
        count_in_warp(digit, n < end, by_warp + warp * DIGITS);
    }
    __syncthreads();
    uint32 total = 0;
    for (int w = 0; w < WARPS; ++w) total += by_warp[w * DIGITS + threadIdx.x];
    counts[blockIdx.x * DIGITS + threadIdx.x] = total;
}

// x summed over all threads before this one. scratch: WARPS numbers of shared memory.
__device__ __forceinline__ uint32 sum_before(uint32 x, uint32* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32 inclusive = x;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const uint32 other = __shfl_up_sync(ALL_LANES, inclusive, distance);
        if (lane >= distance) inclusive += other;
    }
    if (lane == WARP - 1) scratch[warp] = inclusive;
    __syncthreads();
    uint32 before = inclusive - x;
    for (int w = 0; w < warp; ++w) before += scratch[w];
    return before;
}

// order: the positions by what was sorted so far; a null pointer stands for 0, 1, 2, ...
extern "C" __global__ __launch_bounds__(THREADS, 2) void scatter_by_digit(
    const void* indices, const uint32* keys, const uint32* order, const uint32* counts, uint32* sorted_keys,
    uint32* sorted_order, int64 positions, int64 rows, int64 padding, int index_bytes, int index_signed, int shift,
    int64 tile, int64 tiles) {
    __shared__ uint32 by_warp[WARPS * DIGITS];
    __shared__ uint32 scratch[WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Keys key = {indices, keys, rows, padding, index_bytes, index_signed};

    // Thread d: where the tile's first element of digit d goes.
    uint32 earlier = 0, total = 0;
#pragma unroll 8
    for (int64 t = 0; t < tiles; ++t) {
        const uint32 count = counts[t * DIGITS + threadIdx.x];
        if (t < blockIdx.x) earlier += count;
        total += count;
    }
    uint32 next = earlier + sum_before(total, scratch);

    const int64 begin = blockIdx.x * tile, end = smaller(begin + tile, positions);
    for (int64 first = begin; first < end; first += SPAN) {
        for (int w = 0; w < WARPS; ++w) by_warp[w * DIGITS + threadIdx.x] = 0;
        __syncthreads();
        // Each warp takes a contiguous part, so the order of warps is that of the elements.
        const int64 mine = first + warp * (WARP * ROUNDS) + lane;
        uint32 names[ROUNDS], ranks[ROUNDS];
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const int64 n = mine + round * WARP;
            names[round] = n < end ? key[n] : 0;
        }
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round)
            ranks[round] = count_in_warp(names[round] >> shift & (DIGITS - 1), mine + round * WARP < end,
                                         by_warp + warp * DIGITS);
        __syncthreads();
        for (int w = 0; w < WARPS; ++w) {
            const uint32 count = by_warp[w * DIGITS + threadIdx.x];
            by_warp[w * DIGITS + threadIdx.x] = next;
            next += count;
        }
        __syncthreads();
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const int64 n = mine + round * WARP;
            if (n >= end) continue;
            const uint32 place = by_warp[warp * DIGITS + (names[round] >> shift & (DIGITS - 1))] + ranks[round];
            sorted_keys[place] = names[round];
            sorted_order[place] = order == nullptr ? static_cast<uint32>(n) : order[n];
        }
        __syncthreads();
    }
}
