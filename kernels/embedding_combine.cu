// Adds up the sums of an embedding's rows whose positions were cut by the tiles of `gradient_by_tile`.
//
// The sum of such a row is partials[t][1] of the tile t in which it begins, and partials[u][0] of each tile u = t + 1,
// ... in which it goes on. A warp does that for one tile and 32 groups of channels; most rows end in the next tile. A
// frequent one runs through hundreds: then all warps of the block take a part of it.
#include "elements.cuh"
#include "indexing.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = 8;
constexpr int LONG = 32;  // tiles, beyond which the block works together

// The number of tiles in which the row goes on that begins in tile t and does not end there.
__device__ __forceinline__ int64 continuations(const uint32* keys, int64 positions, int64 rows, int64 tile, int64 t) {
    const int64 tiles = divide_up(positions, tile);
    if (t >= tiles - 1) return 0;
    const uint32 key = keys[(t + 1) * tile - 1];
    const bool began_before = t > 0 && keys[t * tile - 1] == key;
    if (key >= rows || began_before || keys[(t + 1) * tile] != key) return 0;
    int64 low = t + 1, high = tiles - 1;  // the last tile that begins with this key is at low..high
    while (low < high) {
        const int64 middle = (low + high + 1) / 2;
        if (keys[middle * tile] == key)
            low = middle;
        else
            high = middle - 1;
    }
    return low - t;
}

// partials[first][0] + ... + partials[end - 1][0]
template <int WIDTH>
__device__ __forceinline__ void add_partials(Floats<WIDTH>& sum, const float* partials, int64 channels, int64 first,
                                             int64 end) {
#pragma unroll 4
    for (int64 t = first; t < end; ++t) add_to(sum, load_floats<WIDTH>(partials + t * 2 * channels));
}

template <int WIDTH>
__device__ __forceinline__ void combine(const uint32* keys, const float* partials, float* dweight, int64* lengths,
                                        float* scratch, int64 positions, int64 rows, int64 channels, int64 tile,
                                        int accumulate) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 groups = channels / WIDTH, tiles = divide_up(positions, tile), batches = divide_up(tiles, WARPS);
    for (int64 task = blockIdx.x; task < batches * divide_up(groups, WARP); task += gridDim.x) {
        const Quotient part = divide(task, batches);
        const int64 first = part.remainder * WARPS, group = part.quotient * WARP + lane;
        const bool inside = group < groups;
        const float* const column = partials + group * WIDTH;
        auto write = [&](int64 t, Floats<WIDTH> sum) {
            float* const row = dweight + keys[(t + 1) * tile - 1] * channels + group * WIDTH;
            if (accumulate) add_to(sum, load_floats<WIDTH>(row));
            store_floats<WIDTH>(row, sum);
        };

        const int64 mine = first + warp, length = continuations(keys, positions, rows, tile, mine);
        if (lane == 0) lengths[warp] = length;
        if (inside && length > 0 && length <= LONG) {
            Floats<WIDTH> sum = load_floats<WIDTH>(column + (mine * 2 + 1) * channels);
            add_partials<WIDTH>(sum, column, channels, mine + 1, mine + 1 + length);
            write(mine, sum);
        }
        __syncthreads();
        for (int w = 0; w < WARPS; ++w) {
            if (lengths[w] <= LONG) continue;
            const int64 t = first + w, share = divide_up(lengths[w], WARPS), end = t + 1 + lengths[w];
            const int64 begin = smaller(t + 1 + warp * share, end);
            Floats<WIDTH> sum = all_of<WIDTH>(0.0f);
            if (inside) add_partials<WIDTH>(sum, column, channels, begin, smaller(begin + share, end));
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) scratch[k * THREADS + threadIdx.x] = sum.at[k];
            __syncthreads();
            if (warp == 0 && inside) {
                sum = load_floats<WIDTH>(column + (t * 2 + 1) * channels);
                for (int other = 0; other < WARPS; ++other)
#pragma unroll
                    for (int k = 0; k < WIDTH; ++k) sum.at[k] += scratch[k * THREADS + other * WARP + lane];
                write(t, sum);
            }
            __syncthreads();
        }
        __syncthreads();
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void combine_tiles(const uint32* keys, const float* partials,
                                                                    float* dweight, int64 positions, int64 rows,
                                                                    int64 channels, int64 tile, int accumulate) {
    constexpr int V = Vector<float>::size;
    __shared__ int64 lengths[WARPS];
    __shared__ float scratch[THREADS * V];
    if (channels % V == 0 && aligned16(partials) && aligned16(dweight))
        combine<V>(keys, partials, dweight, lengths, scratch, positions, rows, channels, tile, accumulate);
    else
        combine<1>(keys, partials, dweight, lengths, scratch, positions, rows, channels, tile, accumulate);
}
