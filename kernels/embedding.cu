// Embedding: rows of a table by index, and the gradient of the table: for each row, the sum of dy where it was read.
//
// Positions of one row lie anywhere, and adding them with atomics would give sums in an order that depends on timing.
// So positions are brought together first: for small inputs each row searches the indices (`gradient_by_row`); else
// embedding_sort.cu sorts the positions by index, `gradient_by_tile` sums tiles of them, and embedding_combine.cu adds
// up what tiles share. Positions whose index is `padding`, or lies outside the table, count as read from no row.
#include "elements.cuh"
#include "indexing.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = 8;
constexpr int MATCHES = 1024;    // positions that gradient_by_row takes at most
constexpr int ROWS_A_BLOCK = 32;  // that a block of gradient_by_tile looks at to clear those that no index names

// `lanes` neighbouring threads copy one row. An index outside the table gives NaN: a check that raises an error would
// make the host wait for the device.
template <int WIDTH>
__device__ __forceinline__ void gather(const void* indices, const T* weight, T* y, int64 positions, int64 rows,
                                       int64 channels, int64 padding, int index_bytes, int index_signed, int lanes) {
    const int64 groups = channels / WIDTH, together = THREADS / lanes;
    const int lane = threadIdx.x % lanes;
    for (int64 n = blockIdx.x * together + threadIdx.x / lanes; n < positions; n += gridDim.x * together) {
        const int64 index = integer_at(indices, n, index_bytes, index_signed);
        const bool inside = index >= 0 && index < rows;
        if (inside && index != padding) {
#pragma unroll 4
            for (int64 g = lane; g < groups; g += lanes)
                store_elements<WIDTH>(y + n * channels + g * WIDTH,
                                      load_elements<WIDTH>(weight + index * channels + g * WIDTH));
        } else {
            const Floats<WIDTH> value = all_of<WIDTH>(inside ? 0.0f : __int_as_float(0x7fffffff));
            for (int64 g = lane; g < groups; g += lanes) store_floats<WIDTH>(y + n * channels + g * WIDTH, value);
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void embedding_forward(const void* indices, const T* weight, T* y,
                                                                        int64 positions, int64 rows, int64 channels,
                                                                        int64 padding, int index_bytes,
                                                                        int index_signed, int lanes) {
    constexpr int V = Vector<T>::size;
    if (channels % V == 0 && aligned16(weight) && aligned16(y))
        gather<V>(indices, weight, y, positions, rows, channels, padding, index_bytes, index_signed, lanes);
    else
        gather<1>(indices, weight, y, positions, rows, channels, padding, index_bytes, index_signed, lanes);
}

template <int WIDTH>
__device__ __forceinline__ void write_gradient(float* dweight, Floats<WIDTH> sum, int accumulate) {
    if (accumulate) add_to(sum, load_floats<WIDTH>(dweight));
    store_floats<WIDTH>(dweight, sum);
}

// Small inputs: a block takes a row and 32 groups of its channels. It lists the positions of the row in their order;
// the list is cut into one part a warp, whose lanes take a group of channels each. One launch, no work space.
template <int WIDTH>
__device__ __forceinline__ void sum_by_row(const T* dy, const void* indices, float* dweight, uint32* matches,
                                           uint32* found, float* scratch, int64 positions, int64 rows, int64 channels,
                                           int64 padding, int index_bytes, int index_signed, int accumulate) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 groups = channels / WIDTH, tiles = divide_up(groups, WARP);
    for (int64 task = blockIdx.x; task < rows * tiles; task += gridDim.x) {
        const Quotient part = divide(task, tiles);
        const int64 row = part.quotient, group = part.remainder * WARP + lane;

        uint32 count = 0;
        for (int64 first = 0; first < positions; first += THREADS) {
            const int64 n = first + threadIdx.x;
            const bool match = n < positions && row != padding &&
                               integer_at(indices, n, index_bytes, index_signed) == row;
            const uint32 votes = __ballot_sync(ALL_LANES, match);
            if (lane == 0) found[warp] = __popc(votes);
            __syncthreads();
            uint32 before = count + __popc(votes & ((1u << lane) - 1));
            for (int w = 0; w < WARPS; ++w) {
                if (w < warp) before += found[w];
                count += found[w];
            }
            if (match) matches[before] = static_cast<uint32>(n);
            __syncthreads();
        }

        const uint32 share = (count + WARPS - 1) / WARPS;
        const uint32 begin = min(warp * share, count), end = min(begin + share, count);
        Floats<WIDTH> sum = all_of<WIDTH>(0.0f);
        if (group < groups) {
#pragma unroll 4
            for (uint32 m = begin; m < end; ++m)
                add_to(sum, load_floats<WIDTH>(dy + matches[m] * channels + group * WIDTH));
        }
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) scratch[k * THREADS + threadIdx.x] = sum.at[k];
        __syncthreads();
        if (warp == 0 && group < groups && (count > 0 || !accumulate)) {
            for (int w = 1; w < WARPS; ++w)
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) sum.at[k] += scratch[k * THREADS + w * WARP + lane];
            write_gradient<WIDTH>(dweight + row * channels + group * WIDTH, sum, accumulate);
        }
        __syncthreads();
    }
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void gradient_by_row(
    const T* dy, const void* indices, float* dweight, int64 positions, int64 rows, int64 channels, int64 padding,
    int index_bytes, int index_signed, int accumulate) {
    constexpr int V = Vector<T>::size;
    __shared__ uint32 matches[MATCHES];
    __shared__ uint32 found[WARPS];
    __shared__ float scratch[THREADS * V];
    if (channels % V == 0 && aligned16(dy) && aligned16(dweight))
        sum_by_row<V>(dy, indices, dweight, matches, found, scratch, positions, rows, channels, padding, index_bytes,
                      index_signed, accumulate);
    else
        sum_by_row<1>(dy, indices, dweight, matches, found, scratch, positions, rows, channels, padding, index_bytes,
                      index_signed, accumulate);
}

// A thread sums one group of channels over one tile of the sorted positions. A row whose positions all lie in the tile
// is written to dweight; of one that began in an earlier tile the sum is left in partials[tile][0], and of one that
// begins here and goes on in partials[tile][1], for embedding_combine.cu. partials: (tiles, 2, channels).
template <int WIDTH>
__device__ __forceinline__ void sum_tile(const T* dy, const uint32* keys, const uint32* order, float* dweight,
                                         float* partials, int64 positions, int64 rows, int64 channels, int64 tile,
                                         int accumulate, int64 blocks_of_sums) {
    constexpr int AHEAD = 4;  // loads in flight: what each adds to is known only as it is added
    const int64 groups = channels / WIDTH, tiles = divide_up(positions, tile);
    const int64 step = blocks_of_sums * THREADS;
    for (int64 item = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x; item < tiles * groups; item += step) {
        const Quotient part = divide(item, groups);
        const int64 begin = part.quotient * tile, end = smaller(begin + tile, positions);
        const int64 column = part.remainder * WIDTH;
        float* const partial = partials + part.quotient * 2 * channels + column;
        uint32 key = keys[begin];
        bool continued = begin > 0 && keys[begin - 1] == key;
        Floats<WIDTH> sum = all_of<WIDTH>(0.0f);
        // Dropped positions have the key `rows`, the largest, so nothing follows them.
        for (int64 n = begin; n < end && keys[n] < rows; n += AHEAD) {
            Floats<WIDTH> terms[AHEAD];
            uint32 names[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                names[a] = n + a < end ? keys[n + a] : static_cast<uint32>(rows);
                if (names[a] < rows) terms[a] = load_floats<WIDTH>(dy + order[n + a] * channels + column);
            }
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                if (names[a] >= rows) continue;
                if (names[a] != key) {
                    if (continued)
                        store_floats<WIDTH>(partial, sum);
                    else
                        write_gradient<WIDTH>(dweight + key * channels + column, sum, accumulate);
                    key = names[a];
                    continued = false;
                    sum = all_of<WIDTH>(0.0f);
                }
                add_to(sum, terms[a]);
            }
        }
        if (key >= rows) continue;
        if (continued)
            store_floats<WIDTH>(partial, sum);
        else if (end < positions && keys[end] == key)
            store_floats<WIDTH>(partial + channels, sum);
        else
            write_gradient<WIDTH>(dweight + key * channels + column, sum, accumulate);
    }
}

// Clears the rows of a block's share that no key names. named: ROWS_A_BLOCK flags of shared memory.
template <int WIDTH>
__device__ __forceinline__ void clear_rows(const uint32* keys, float* dweight, uint8* named, int64 positions,
                                           int64 rows, int64 channels, int64 first_row) {
    const int64 here = smaller(ROWS_A_BLOCK, rows - first_row), groups = channels / WIDTH;
    if (threadIdx.x < here) {
        const int64 row = first_row + threadIdx.x;
        int64 low = 0, high = positions;  // the first key of at least `row` is at low..high
        while (low < high) {
            const int64 middle = (low + high) / 2;
            if (keys[middle] < row)
                low = middle + 1;
            else
                high = middle;
        }
        named[threadIdx.x] = low < positions && keys[low] == row;
    }
    __syncthreads();
    for (int64 item = threadIdx.x; item < here * groups; item += THREADS) {
        const Quotient part = divide(item, groups);
        if (!named[part.quotient])
            store_floats<WIDTH>(dweight + (first_row + part.quotient) * channels + part.remainder * WIDTH,
                                all_of<WIDTH>(0.0f));
    }
}

// Bytes: dy once, dweight once; the partial sums are one row in `tile` and stay in the second-level cache. The first
// blocks sum; the others clear rows meanwhile.
extern "C" __global__ __launch_bounds__(THREADS) void gradient_by_tile(
    const T* dy, const uint32* keys, const uint32* order, float* dweight, float* partials, int64 positions, int64 rows,
    int64 channels, int64 tile, int accumulate, int64 blocks_of_sums) {
    constexpr int V = Vector<T>::size;
    __shared__ uint8 named[ROWS_A_BLOCK];
    const bool wide = channels % V == 0 && aligned16(dy) && aligned16(dweight) && aligned16(partials);
    if (blockIdx.x < blocks_of_sums) {
        if (wide)
            sum_tile<V>(dy, keys, order, dweight, partials, positions, rows, channels, tile, accumulate,
                        blocks_of_sums);
        else
            sum_tile<1>(dy, keys, order, dweight, partials, positions, rows, channels, tile, accumulate,
                        blocks_of_sums);
    } else {
        const int64 first_row = (blockIdx.x - blocks_of_sums) * ROWS_A_BLOCK;
        if (wide)
            clear_rows<V>(keys, dweight, named, positions, rows, channels, first_row);
        else
            clear_rows<1>(keys, dweight, named, positions, rows, channels, first_row);
    }
}
