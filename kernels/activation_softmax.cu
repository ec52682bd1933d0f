// Softmax and log-softmax along rows, forward and backward; the formulas are derived in bp/ops/activation.py.
//
// A row of up to 1,024 columns is held in the registers of a warp or of a part of one, up to 8,192 in those of a block:
// it is read once. Longer rows are read twice, the second time mostly from the second-level cache. `logarithm` (0 or 1)
// chooses between the two functions, which differ in an instruction an element.
#include "elements.cuh"
#include "math.cuh"
#include "reduce.cuh"
#include "registers.cuh"

constexpr int SHORT_THREADS = 128;
constexpr int MEDIUM_THREADS = 256;
constexpr int LONG_THREADS = 512;
constexpr int HELD = 32;       // elements of a row that a thread holds in registers
constexpr int IN_FLIGHT = 16;  // elements that a thread has on their way at once where it does not hold the row

// Drops NaN, which comes back by way of the sum of exponentials.
struct Largest {
    static constexpr float neutral = -INFINITE;
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The threads that share a row: `size` lanes of a warp, a power of two, or a whole block. All call reduce together.
struct Lanes {
    int size, rank;

    template <typename Operation>
    __device__ __forceinline__ float reduce(float x, Operation combine) const {
        for (int offset = size / 2; offset > 0; offset /= 2) x = combine(x, __shfl_xor_sync(ALL_LANES, x, offset));
        return x;
    }
};

struct Block {
    int size, rank;
    float* scratch;

    template <typename Operation>
    __device__ __forceinline__ float reduce(float x, Operation combine) const {
        return block_reduce(x, scratch, combine);
    }
};

// Calls body(p, offset) for the pieces p = 0, 1, ... of a thread, which begin at offset = p * step, below `left`; at
// most PIECES. Unrolled, so that what p indexes stays in registers; the offsets do not stay there from call to call.
template <int PIECES, typename Body>
__device__ __forceinline__ void for_pieces(int64 left, int step, Body body) {
    const int end = forgotten(left < PIECES * step ? static_cast<int>(left) : PIECES * step);
    step = forgotten(step);
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
        if (p * step >= end) break;
        body(p, p * step);
    }
}

// The result of an element, from z = x - largest or e^z, and from the sum of all e^z, which is at least 1.
struct Normalizer {
    float inverse, logarithm_of_sum;
    int logarithm;

    __device__ __forceinline__ Normalizer(float sum, int logarithm)
        : inverse(reciprocal(sum)), logarithm_of_sum(logf(sum)), logarithm(logarithm) {}
    __device__ __forceinline__ float operator()(float z, float exponential_of_z) const {
        return logarithm ? z - logarithm_of_sum : exponential_of_z * inverse;
    }
};

// x and y are the row, of no columns for threads without one.
template <int V, typename Threads>
__device__ __forceinline__ void held_forward(const T* x, T* y, int columns, int logarithm, Threads threads) {
    constexpr int PIECES = HELD / V;
    const int first = threads.rank * V, step = threads.size * V, left = columns - first;
    Floats<V> v[PIECES];
    float largest = Largest::neutral, sum = 0.0f;
    for_pieces<PIECES>(left, step, [&](int p, int offset) { v[p] = load_floats<V>(x + first + offset); });
    for_pieces<PIECES>(left, step, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < V; ++k) largest = fmaxf(largest, v[p].at[k]);
    });
    largest = threads.reduce(largest, Largest{});
    for_pieces<PIECES>(left, step, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
            const float z = v[p].at[k] - largest, e = exponential<T>(z);
            sum += e;
            v[p].at[k] = logarithm ? z : e;
        }
    });
    const Normalizer normalize(threads.reduce(sum, Sum{}), logarithm);
    for_pieces<PIECES>(left, step, [&](int p, int offset) {
#pragma unroll
        for (int k = 0; k < V; ++k) v[p].at[k] = normalize(v[p].at[k], v[p].at[k]);
        store_floats<V>(y + first + offset, v[p]);
    });
}

// What backward sums over a row, and what it makes of the sum.
__device__ __forceinline__ float backward_term(float dy, float y, int logarithm) { return logarithm ? dy : dy * y; }

__device__ __forceinline__ float backward_result(float dy, float y, float sum, int logarithm) {
    return logarithm ? dy - exponential<T>(y) * sum : y * (dy - sum);
}

template <int V, typename Threads>
__device__ __forceinline__ void held_backward(const T* dy, const T* y, T* dx, int columns, int logarithm,
                                              Threads threads) {
    constexpr int PIECES = HELD / V;
    const int first = threads.rank * V, step = threads.size * V, left = columns - first;
    Floats<V> g[PIECES], v[PIECES];
    float sum = 0.0f;
    for_pieces<PIECES>(left, step, [&](int p, int offset) {
        g[p] = load_floats<V>(dy + first + offset);
        v[p] = load_floats<V>(y + first + offset);
    });
    for_pieces<PIECES>(left, step, [&](int p, int) {
#pragma unroll
        for (int k = 0; k < V; ++k) sum += backward_term(g[p].at[k], v[p].at[k], logarithm);
    });
    sum = threads.reduce(sum, Sum{});
    for_pieces<PIECES>(left, step, [&](int p, int offset) {
#pragma unroll
        for (int k = 0; k < V; ++k) g[p].at[k] = backward_result(g[p].at[k], v[p].at[k], sum, logarithm);
        store_floats<V>(dx + first + offset, g[p]);
    });
}

// The online softmax: the sum of e^(x - largest) is kept for the largest so far, and scaled down when a larger one
// comes. Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018).
template <int V>
__device__ __forceinline__ void long_forward(const T* x, T* y, int64 columns, int logarithm, Block threads) {
    constexpr int PIECES = IN_FLIGHT / V;
    const int first = threads.rank * V, step = threads.size * V;
    Floats<V> v[PIECES];
    float own = Largest::neutral, sum = 0.0f;
    for (int64 c = first; c < columns; c += PIECES * step) {
        const float before = own;
        for_pieces<PIECES>(columns - c, step, [&](int p, int offset) { v[p] = load_floats<V>(x + c + offset); });
        for_pieces<PIECES>(columns - c, step, [&](int p, int) {
#pragma unroll
            for (int k = 0; k < V; ++k) own = fmaxf(own, v[p].at[k]);
        });
        if (own > before) sum *= exponential<T>(before - own);
        // While all were -infinity, any number may be subtracted for the largest: each contributes 0.
        const float base = own == Largest::neutral ? 0.0f : own;
        for_pieces<PIECES>(columns - c, step, [&](int p, int) {
#pragma unroll
            for (int k = 0; k < V; ++k) sum += exponential<T>(v[p].at[k] - base);
        });
    }
    const float largest = threads.reduce(own, Largest{});
    const Normalizer normalize(threads.reduce(sum * exponential<T>(own - largest), Sum{}), logarithm);
    for (int64 c = first; c < columns; c += PIECES * step) {
        for_pieces<PIECES>(columns - c, step, [&](int p, int offset) { v[p] = load_floats<V>(x + c + offset); });
        for_pieces<PIECES>(columns - c, step, [&](int p, int offset) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                const float z = v[p].at[k] - largest;
                v[p].at[k] = normalize(z, exponential<T>(z));
            }
            store_floats<V>(y + c + offset, v[p]);
        });
    }
}

template <int V>
__device__ __forceinline__ void long_backward(const T* dy, const T* y, T* dx, int64 columns, int logarithm,
                                              Block threads) {
    constexpr int PIECES = IN_FLIGHT / V;
    const int first = threads.rank * V, step = threads.size * V;
    Floats<V> g[PIECES], v[PIECES];
    float sum = 0.0f;
    for (int64 c = first; c < columns; c += PIECES * step) {
        for_pieces<PIECES>(columns - c, step, [&](int p, int offset) {
            g[p] = load_floats<V>(dy + c + offset);
            v[p] = load_floats<V>(y + c + offset);
        });
        for_pieces<PIECES>(columns - c, step, [&](int p, int) {
#pragma unroll
            for (int k = 0; k < V; ++k) sum += backward_term(g[p].at[k], v[p].at[k], logarithm);
        });
    }
    sum = threads.reduce(sum, Sum{});
    for (int64 c = first; c < columns; c += PIECES * step) {
        for_pieces<PIECES>(columns - c, step, [&](int p, int offset) {
            g[p] = load_floats<V>(dy + c + offset);
            v[p] = load_floats<V>(y + c + offset);
        });
        for_pieces<PIECES>(columns - c, step, [&](int p, int offset) {
#pragma unroll
            for (int k = 0; k < V; ++k) g[p].at[k] = backward_result(g[p].at[k], v[p].at[k], sum, logarithm);
            store_floats<V>(dx + c + offset, g[p]);
        });
    }
}

// Vectors may be taken where all rows of an array begin at a multiple of 16 bytes.
constexpr int VECTOR = Vector<T>::size;
__device__ __forceinline__ bool in_vectors(const T* array, int64 columns) {
    return columns % VECTOR == 0 && aligned16(array);
}

// Calls body(at, columns, threads) for the rows of this thread, which begin at element `at`; with 0 columns beyond the
// last row, so that all lanes of a warp make as many calls. Two loops, one for each width of access, take fewer
// registers than one loop with two bodies.
template <typename Body>
__device__ __forceinline__ void short_rows(int64 rows, int64 columns, int lanes, Body body) {
    const Lanes threads{lanes, static_cast<int>(threadIdx.x) % lanes};
    const int together = SHORT_THREADS / lanes;
    for (int64 base = static_cast<int64>(blockIdx.x) * together; base < rows;
         base += static_cast<int64>(gridDim.x) * together) {
        const int64 row = base + threadIdx.x / lanes;
        body(row * columns, row < rows ? static_cast<int>(columns) : 0, threads);
    }
}

template <typename Body>
__device__ __forceinline__ void block_rows(int64 rows, int64 columns, Body body) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) body(row * columns);
}

// lanes: of a warp, that share a row; the others of the warp take the following rows.
extern "C" __global__ __launch_bounds__(SHORT_THREADS, 8) void softmax_short_forward(const T* x, T* y, int64 rows,
                                                                                     int64 columns, int lanes,
                                                                                     int logarithm) {
    if (in_vectors(x, columns) && in_vectors(y, columns))
        short_rows(rows, columns, lanes, [&](int64 at, int own, Lanes threads) {
            held_forward<VECTOR>(x + at, y + at, own, logarithm, threads);
        });
    else
        short_rows(rows, columns, lanes, [&](int64 at, int own, Lanes threads) {
            held_forward<1>(x + at, y + at, own, logarithm, threads);
        });
}

extern "C" __global__ __launch_bounds__(SHORT_THREADS, 5) void softmax_short_backward(const T* dy, const T* y, T* dx,
                                                                                      int64 rows, int64 columns,
                                                                                      int lanes, int logarithm) {
    if (in_vectors(dy, columns) && in_vectors(y, columns) && in_vectors(dx, columns))
        short_rows(rows, columns, lanes, [&](int64 at, int own, Lanes threads) {
            held_backward<VECTOR>(dy + at, y + at, dx + at, own, logarithm, threads);
        });
    else
        short_rows(rows, columns, lanes, [&](int64 at, int own, Lanes threads) {
            held_backward<1>(dy + at, y + at, dx + at, own, logarithm, threads);
        });
}

extern "C" __global__ __launch_bounds__(MEDIUM_THREADS, 4) void softmax_medium_forward(const T* x, T* y, int64 rows,
                                                                                       int64 columns, int logarithm) {
    __shared__ float scratch[WARP];
    const Block threads{MEDIUM_THREADS, static_cast<int>(threadIdx.x), scratch};
    const int own = static_cast<int>(columns);
    if (in_vectors(x, columns) && in_vectors(y, columns))
        block_rows(rows, columns, [&](int64 at) { held_forward<VECTOR>(x + at, y + at, own, logarithm, threads); });
    else
        block_rows(rows, columns, [&](int64 at) { held_forward<1>(x + at, y + at, own, logarithm, threads); });
}

extern "C" __global__ __launch_bounds__(MEDIUM_THREADS, 2) void softmax_medium_backward(const T* dy, const T* y, T* dx,
                                                                                        int64 rows, int64 columns,
                                                                                        int logarithm) {
    __shared__ float scratch[WARP];
    const Block threads{MEDIUM_THREADS, static_cast<int>(threadIdx.x), scratch};
    const int own = static_cast<int>(columns);
    if (in_vectors(dy, columns) && in_vectors(y, columns) && in_vectors(dx, columns))
        block_rows(rows, columns, [&](int64 at) {
            held_backward<VECTOR>(dy + at, y + at, dx + at, own, logarithm, threads);
        });
    else
        block_rows(rows, columns, [&](int64 at) {
            held_backward<1>(dy + at, y + at, dx + at, own, logarithm, threads);
        });
}

extern "C" __global__ __launch_bounds__(LONG_THREADS, 2) void softmax_long_forward(const T* x, T* y, int64 rows,
                                                                                   int64 columns, int logarithm) {
    __shared__ float scratch[WARP];
    const Block threads{LONG_THREADS, static_cast<int>(threadIdx.x), scratch};
    if (in_vectors(x, columns) && in_vectors(y, columns))
        block_rows(rows, columns, [&](int64 at) {
            long_forward<VECTOR>(x + at, y + at, columns, logarithm, threads);
        });
    else
        block_rows(rows, columns, [&](int64 at) { long_forward<1>(x + at, y + at, columns, logarithm, threads); });
}

extern "C" __global__ __launch_bounds__(LONG_THREADS, 2) void softmax_long_backward(const T* dy, const T* y, T* dx,
                                                                                    int64 rows, int64 columns,
                                                                                    int logarithm) {
    __shared__ float scratch[WARP];
    const Block threads{LONG_THREADS, static_cast<int>(threadIdx.x), scratch};
    if (in_vectors(dy, columns) && in_vectors(y, columns) && in_vectors(dx, columns))
        block_rows(rows, columns, [&](int64 at) {
            long_backward<VECTOR>(dy + at, y + at, dx + at, columns, logarithm, threads);
        });
    else
        block_rows(rows, columns, [&](int64 at) {
            long_backward<1>(dy + at, y + at, dx + at, columns, logarithm, threads);
        });
}
