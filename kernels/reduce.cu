// Reductions: sums, the largest element and where it is, along rows, down columns and over all elements.
//
// Long ones go in two levels: blocks reduce parts whose length follows from the shape alone, a second launch their
// results. So the order of every sum is fixed, and two runs give the same bits. Sums are in double: a billion terms
// keep the digits of a float. Each element is read once, 16 bytes at a time where a row allows it.
#include "columns.cuh"
#include "control.cuh"
#include "row_group.cuh"

constexpr int THREADS = 256;
constexpr int BLOCKS = 4;  // at once, at least: the compiler would spill registers for more

// total += value * control[LOSS_DENOMINATOR].
extern "C" __global__ __launch_bounds__(32) void accumulate(double* total, const T* value, const double* control) {
    if (threadIdx.x == 0) *total += static_cast<double>(to_float(*value)) * control[LOSS_DENOMINATOR];
}

// Rows ---------------------------------------------------------------------------------------------------------------
// of `columns` elements, of which the last may have fewer: n in all. `lanes` threads work on one: up to a warp, or the
// whole block.

__device__ __forceinline__ RowVectors<T> row_of(const T* x, const RowGroup& group, int64 n, int64 columns) {
    const int64 begin = group.row * columns, left = n - begin;
    return RowVectors<T>(x + begin, left < columns ? (left < 0 ? 0 : left) : columns);
}

// Either y = scale * the sum, or, for a second level, parts = the sum in double; the other is null.
extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void sum_rows(const T* x, double* parts, float* y, int64 n,
                                                                       int64 columns, double scale, int lanes) {
    __shared__ double scratch[WARP];
    const RowGroup group(lanes);
    double sum = 0.0;
    for_row(row_of(x, group, n, columns), group, [&](int64, float value) { sum += value; });
    sum = group_reduce(sum, lanes, scratch, Total<double>());
    if (group.lane != 0 || group.row * columns >= n) return;
    if (parts)
        parts[group.row] = sum;
    else
        y[group.row] = static_cast<float>(sum * scale);
}

extern "C" __global__ __launch_bounds__(THREADS) void max_rows(const T* x, T* y, int64 n, int64 columns, int lanes) {
    __shared__ float scratch[WARP];
    const Largest largest;
    const RowGroup group(lanes);
    float most = largest.neutral();
    for_row(row_of(x, group, n, columns), group, [&](int64, float value) { most = largest(most, value); });
    most = group_reduce(most, lanes, scratch, largest);
    if (group.lane == 0 && group.row * columns < n) y[group.row] = convert<T>(most);
}

// An element and its column.
struct Candidate {
    float value;
    int64 column;
};

template <>
__device__ __forceinline__ Candidate shuffle_xor(Candidate x, int offset) {
    return {__shfl_xor_sync(ALL_LANES, x.value, offset), __shfl_xor_sync(ALL_LANES, x.column, offset)};
}

// The larger one, NaN above all; of equals the one further left. So the order of comparisons does not matter.
struct Better {
    __device__ __forceinline__ Candidate neutral() const { return {-INFINITE, static_cast<int64>(~0ull >> 1)}; }

    __device__ __forceinline__ Candidate operator()(Candidate a, Candidate b) const {
        const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
        const bool equal = a.value == b.value || (a_is_nan && b_is_nan);
        if (equal) return a.column < b.column ? a : b;
        return a_is_nan || a.value > b.value ? a : b;
    }
};

extern "C" __global__ __launch_bounds__(THREADS) void argmax(const T* x, int64* index, int64 n, int64 columns,
                                                             int lanes) {
    __shared__ Candidate scratch[WARP];
    const Better better;
    const RowGroup group(lanes);
    Candidate best = better.neutral();
    for_row(row_of(x, group, n, columns), group,
            [&](int64 column, float value) { best = better(best, Candidate{value, column}); });
    best = group_reduce(best, lanes, scratch, better);
    if (group.lane == 0 && group.row * columns < n) index[group.row] = best.column;
}

// Columns ------------------------------------------------------------------------------------------------------------
// of a matrix (rows, columns). A thread takes the columns that follow each other in one vector of 16 bytes; blockIdx.y
// takes the rows from blockIdx.y * chunk on.

// values[k] = combine(values[k], x[row, first + k]).
template <typename Operation, typename Value>
__device__ __forceinline__ void combine_row(const T* x, int64 row, int64 first, int64 columns, Operation combine,
                                            Value (&values)[Vector<T>::size]) {
    constexpr int V = Vector<T>::size;
    const T* from = x + row * columns + first;
    if (first + V <= columns && aligned16(from)) {
        const Vector<T> v = load16(from);
#pragma unroll
        for (int k = 0; k < V; ++k) values[k] = combine(values[k], static_cast<Value>(to_float(v.at[k])));
    } else {
#pragma unroll
        for (int k = 0; k < V; ++k)
            if (first + k < columns) values[k] = combine(values[k], static_cast<Value>(to_float(from[k])));
    }
}

// The first column of this thread.
__device__ __forceinline__ int64 first_column(int width) {
    return (static_cast<int64>(blockIdx.x) * width + threadIdx.x % width) * Vector<T>::size;
}

// As sum_rows: parts[blockIdx.y, column] = the sum, or y[column] = scale * the sum, added to it where add is set.
extern "C" __global__ __launch_bounds__(THREADS) void sum_columns(const T* x, double* parts, float* y, int64 rows,
                                                                  int64 columns, int64 chunk, double scale, int add,
                                                                  int width) {
    constexpr int V = Vector<T>::size;
    __shared__ double scratch[V * THREADS];
    const Total<double> total;
    const int64 first = first_column(width), begin = blockIdx.y * chunk;
    reduce_columns<V, THREADS>(
        begin, begin + chunk < rows ? begin + chunk : rows, width, total,
        [&](int64 row, double(&sums)[V]) { combine_row(x, row, first, columns, total, sums); }, scratch,
        [&](int k, double sum) {
            if (first + k >= columns) return;
            if (parts)
                parts[blockIdx.y * columns + first + k] = sum;
            else
                y[first + k] = static_cast<float>(sum * scale + (add ? y[first + k] : 0.0f));
        });
}

// y[blockIdx.y, column]: the second level is the same kernel over the result of the first.
extern "C" __global__ __launch_bounds__(THREADS) void max_columns(const T* x, T* y, int64 rows, int64 columns,
                                                                  int64 chunk, int width) {
    constexpr int V = Vector<T>::size;
    __shared__ float scratch[V * THREADS];
    const Largest largest;
    const int64 first = first_column(width), begin = blockIdx.y * chunk;
    reduce_columns<V, THREADS>(
        begin, begin + chunk < rows ? begin + chunk : rows, width, largest,
        [&](int64 row, float(&values)[V]) { combine_row(x, row, first, columns, largest, values); }, scratch,
        [&](int k, float most) {
            if (first + k < columns) y[blockIdx.y * columns + first + k] = convert<T>(most);
        });
}
