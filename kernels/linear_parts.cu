// The second pass of a matrix product whose depth was cut in parts: adds the parts, always in the same order.
//
// Both kernels compute C = epilogue(sum over p of parts[p]), for the n elements of matrices of rows x columns, which
// lie in C `stride` from row to row and `batch` from matrix to matrix; sums[i] likewise, from the `biases` elements
// behind them. They take count + 1 times 4 bytes an element through memory, so what counts is how many are on their
// way: on an H200 about 40 KB a multiprocessor.
#include "epilogue.cuh"
#include "indexing.cuh"
#include "reduce.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;

struct Parts {
    int64 n, rows, columns, stride, batch;

    // Stores WIDTH elements from `index` on, which lie in one row.
    template <int WIDTH>
    __device__ __forceinline__ void store(const Epilogue<T>& epilogue, int64 index, const float (&sum)[WIDTH]) const {
        const Quotient line = divide(index, columns), matrix = divide(line.quotient, rows);
        const int64 place = matrix.quotient * batch + matrix.remainder * stride + line.remainder;
        epilogue.store(place, index, line.remainder, sum);
    }
};

// sum = the sum of `count` parts, `step` elements apart, one after the other; at: the element of the first one.
template <int WIDTH>
__device__ __forceinline__ void add_up(const float* at, int64 step, int count, float (&sum)[WIDTH]) {
    constexpr int AT_ONCE = WIDTH == 1 ? 8 : 32 / WIDTH;  // parts: 128 bytes of vectors are on their way to a thread
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) sum[k] = 0.0f;
#pragma unroll 1
    for (int first = 0; first < count; first += AT_ONCE) {
        Floats<WIDTH> found[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u)
            if (first + u < count) found[u] = load_elements<WIDTH>(at + (first + u) * step);
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u)
#pragma unroll
            for (int k = 0; k < WIDTH; ++k)
                if (first + u < count) sum[k] += found[u].at[k];
    }
}

// For few parts: a thread has 16 bytes of results beside each other where all arrays allow it, and each of their parts.
// Two blocks of it have 64 KB on their way; with registers for three it would spill.
extern "C" __global__ __launch_bounds__(THREADS, 2) void add_parts(const float* parts, EPILOGUE_PARAMETERS, float* sums,
                                                                   int64 n, int64 rows, int64 columns, int64 stride,
                                                                   int64 batch, int64 biases, int count) {
    constexpr int V = Vector<T>::size;
    const Epilogue<T> epilogue{EPILOGUE_ARGUMENTS};
    const Parts of{n, rows, columns, stride, batch};
    const int64 step = n + biases;
    const bool vectors = aligned16(parts) && step % 4 == 0 && batch % V == 0 && epilogue.vectors(columns, stride);
    grid_stride(vectors ? n / V : n, [&](int64 i) {
        if (vectors) {
            float sum[V];
            add_up(parts + i * V, step, count, sum);
            of.store(epilogue, i * V, sum);
        } else {
            float sum[1];
            add_up(parts + i, step, count, sum);
            of.store(epilogue, i, sum);
        }
    });
    grid_stride(biases, [&](int64 i) {
        float sum[1];
        add_up(parts + n + i, step, count, sum);
        sums[i] = beta != 0.0f ? beta * sums[i] + sum[0] : sum[0];
    });
}

// For many parts of few elements: a block has WARP elements. Its warps take every WARPS-th part, so that a tile cut in
// hundreds of parts is not summed by one thread that waits for each; warp 0 then adds what they found.
extern "C" __global__ __launch_bounds__(THREADS) void add_many_parts(const float* parts, EPILOGUE_PARAMETERS,
                                                                     float* sums, int64 n, int64 rows, int64 columns,
                                                                     int64 stride, int64 batch, int64 biases,
                                                                     int count) {
    __shared__ float found[WARPS][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64 index = static_cast<int64>(blockIdx.x) * WARP + lane, step = n + biases;
    float sum[1] = {0.0f};
    if (index < step) {
#pragma unroll 4
        for (int part = warp; part < count; part += WARPS) sum[0] += parts[part * step + index];
    }
    found[warp][lane] = sum[0];
    __syncthreads();
    if (warp != 0 || index >= step) return;
#pragma unroll
    for (int other = 1; other < WARPS; ++other) sum[0] += found[other][lane];
    if (index < n) {
        Parts{n, rows, columns, stride, batch}.store({EPILOGUE_ARGUMENTS}, index, sum);
    } else {
        float* const at = sums + (index - n);
        *at = beta != 0.0f ? beta * *at + sum[0] : sum[0];
    }
}
