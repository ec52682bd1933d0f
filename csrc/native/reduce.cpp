// Sums, means and maxima of float32 arrays: along rows, or down columns.
//
// Terms are added in double, after they have been added by eights as a tree: that is half the work, and three roundings
// in float32 that differ from tree to tree. Where a sum is not finite a tree may have overflowed, and it is done again
// without them. An array is cut into blocks that depend on its shape alone and blocks are put together in order, so no
// result depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "lanes.hpp"
#include "native.hpp"

namespace {

using bp::Array;
using std::int64_t;

constexpr int LANES = 16, TREE = 8;
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t BLOCK = 1 << 15;      // elements of a row in a block
constexpr int64_t BLOCK_ROWS = 512;     // of a matrix that is summed down its columns,
constexpr int64_t BLOCK_COLUMNS = 1024; // whose running sums stay in the first-level cache
constexpr int64_t PARALLEL = 1 << 18;   // below so many elements waking other threads costs more than it saves

// A row --------------------------------------------------------------------------------------------------------------

// Adds x[first..count-1] to the lanes, each term by itself.
BP_INLINE void add_each(const float* x, int64_t first, int64_t count, double* lanes) {
    int64_t i = first;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += x[i + lane];
    for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += x[i];
}

BP_CLONES double sum_by_trees(const float* x, int64_t count) {
    double lanes[LANES] = {};
    int64_t i = 0;
    for (; i + TREE * LANES <= count; i += TREE * LANES) {
        const float* p = x + i;
        for (int k = 0; k < LANES; ++k) {
            const float low = (p[k] + p[k + LANES]) + (p[k + 2 * LANES] + p[k + 3 * LANES]);
            const float high = (p[k + 4 * LANES] + p[k + 5 * LANES]) + (p[k + 6 * LANES] + p[k + 7 * LANES]);
            lanes[k] += low + high;
        }
    }
    add_each(x, i, count, lanes);
    return bp::fold_lanes<LANES>(lanes);
}

BP_CLONES double sum_each(const float* x, int64_t count) {
    double lanes[LANES] = {};
    add_each(x, 0, count, lanes);
    return bp::fold_lanes<LANES>(lanes);
}

double row_sum(const float* x, int64_t count) {
    const double sum = sum_by_trees(x, count);
    return std::isfinite(sum) ? sum : sum_each(x, count);
}

// The larger of two, NaN where one is NaN.
BP_INLINE float larger(float a, float b) { return (a != a) | (a >= b) ? a : b; }

template <int COUNT>
BP_INLINE float fold_larger(float* lanes) {
    if constexpr (COUNT == 1) return lanes[0];
    else {
        for (int lane = 0; lane < COUNT / 2; ++lane) lanes[lane] = larger(lanes[lane], lanes[lane + COUNT / 2]);
        return fold_larger<COUNT / 2>(lanes);
    }
}

// Maxima go through lanes like sums; NaN, which no comparison finds, is kept beside them.
BP_CLONES float row_max(const float* x, int64_t count) {
    constexpr int WIDE = 4 * LANES;
    if (count < WIDE) {
        float result = x[0];
        for (int64_t i = 1; i < count; ++i) result = larger(result, x[i]);
        return result;
    }
    float lanes[WIDE];
    std::int32_t nan[WIDE] = {};
    std::copy(x, x + WIDE, lanes);
    for (int64_t next = 0; next < count; next += WIDE) {
        const float* p = x + std::min(next, count - WIDE);  // the last ones overlap those before
#pragma omp simd
        for (int lane = 0; lane < WIDE; ++lane) {
            const float term = p[lane];
            lanes[lane] = term > lanes[lane] ? term : lanes[lane];
            nan[lane] |= term != term;
        }
    }
    for (int lane = 0; lane < WIDE; ++lane) lanes[lane] = nan[lane] ? NOT_A_NUMBER : lanes[lane];
    return fold_larger<WIDE>(lanes);
}

// Columns ------------------------------------------------------------------------------------------------------------

// sums[j] += the sum of x[r * stride + j] over the rows.
BP_CLONES void add_rows_by_trees(const float* x, int64_t rows, int64_t stride, int64_t columns,
                                 double* __restrict sums) {
    int64_t r = 0;
    for (; r + TREE <= rows; r += TREE) {
        const float* p = x + r * stride;
        for (int64_t j = 0; j < columns; ++j) {
            const float low = (p[j] + p[j + stride]) + (p[j + 2 * stride] + p[j + 3 * stride]);
            const float high = (p[j + 4 * stride] + p[j + 5 * stride]) + (p[j + 6 * stride] + p[j + 7 * stride]);
            sums[j] += low + high;
        }
    }
    for (; r < rows; ++r)
        for (int64_t j = 0; j < columns; ++j) sums[j] += x[r * stride + j];
}

BP_CLONES void add_each_row(const float* x, int64_t rows, int64_t stride, int64_t columns, double* __restrict sums) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < columns; ++j) sums[j] += x[r * stride + j];
}

void add_rows(const float* x, int64_t rows, int64_t stride, int64_t columns, double* sums) {
    add_rows_by_trees(x, rows, stride, columns, sums);
    if (std::all_of(sums, sums + columns, [](double sum) { return std::isfinite(sum); })) return;
    std::fill(sums, sums + columns, 0.0);
    add_each_row(x, rows, stride, columns, sums);
}

// largest[j] = the larger of it and of column j.
BP_CLONES void raise_by_rows(const float* x, int64_t rows, int64_t stride, int64_t columns,
                             float* __restrict largest) {
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
        const float *p = x + r * stride, *q = p + stride;
        for (int64_t j = 0; j < columns; ++j) largest[j] = larger(largest[j], larger(p[j], q[j]));
    }
    for (; r < rows; ++r)
        for (int64_t j = 0; j < columns; ++j) largest[j] = larger(largest[j], x[r * stride + j]);
}

// Blocks -------------------------------------------------------------------------------------------------------------

int64_t parts(int64_t size, int64_t of) { return (size + of - 1) / of; }

// store(row, what reduce(x, count) gives for its blocks, put together by fold) for each row.
template <class Number, class Reduce, class Fold, class Store>
void along_rows(const float* x, int64_t rows, int64_t columns, Reduce reduce, Fold fold, Store store) {
    const int64_t blocks = std::max<int64_t>(1, parts(columns, BLOCK));
    std::vector<Number> partial(static_cast<std::size_t>(rows * blocks));
#pragma omp parallel for schedule(static) if (rows * columns >= PARALLEL)
    for (int64_t task = 0; task < rows * blocks; ++task) {
        const int64_t row = task / blocks, first = task % blocks * BLOCK;
        partial[static_cast<std::size_t>(task)] = reduce(x + row * columns + first, std::min(BLOCK, columns - first));
    }
    for (int64_t row = 0; row < rows; ++row) {
        const Number* part = partial.data() + row * blocks;
        Number result = part[0];
        for (int64_t block = 1; block < blocks; ++block) result = fold(result, part[block]);
        store(row, result);
    }
}

// store(column, result) for each column, where reduce(x, rows, stride, columns, results) adds to results that begin at
// `start`. Of a narrow matrix several rows count as one, so that the loops over columns are long.
template <class Number, class Reduce, class Fold, class Store>
void down_columns(const float* x, int64_t rows, int64_t columns, Number start, Reduce reduce, Fold fold, Store store) {
    if (columns == 0) return;
    const int64_t folded = std::clamp<int64_t>(rows, 1, std::max<int64_t>(1, 256 / columns));
    const int64_t whole = rows / folded, width = folded * columns;
    const int64_t blocks = std::max<int64_t>(1, parts(whole, BLOCK_ROWS)), strips = parts(width, BLOCK_COLUMNS);
    std::vector<Number> partial(static_cast<std::size_t>(blocks * width), start);
#pragma omp parallel for schedule(static) if (rows * columns >= PARALLEL)
    for (int64_t task = 0; task < blocks * strips; ++task) {
        const int64_t row = task / strips * BLOCK_ROWS, column = task % strips * BLOCK_COLUMNS;
        reduce(x + row * width + column, std::min(BLOCK_ROWS, whole - row), width,
               std::min(BLOCK_COLUMNS, width - column), partial.data() + task / strips * width + column);
    }
    std::vector<Number> rest(static_cast<std::size_t>(columns), start);
    reduce(x + whole * width, rows - whole * folded, columns, columns, rest.data());
    for (int64_t j = 0; j < columns; ++j) {
        Number result = rest[static_cast<std::size_t>(j)];
        for (int64_t part = j; part < blocks * width; part += columns)
            result = fold(result, partial[static_cast<std::size_t>(part)]);
        store(j, result);
    }
}

// The Python functions -----------------------------------------------------------------------------------------------

// The other size of x, as a matrix with one element of y for each row (or column).
int64_t other_size(const char* name, int64_t size, int64_t results) {
    if (results > 0 ? size % results != 0 : size != 0)
        throw std::invalid_argument(std::string(name) + ": " + std::to_string(size) + " elements for " +
                                    std::to_string(results) + " results");
    return results > 0 ? size / results : 0;
}

// y = the sums / divisor, or y += those.
void sum(const Array<float>& x, Array<float> y, bool down, double divisor, bool accumulate) {
    const int64_t results = y.size(), terms = other_size("sum", x.size(), results);
    const float* in = x.data();
    float* out = y.mutable_data();
    pybind11::gil_scoped_release release;
    const auto add = [](double a, double b) { return a + b; };
    const auto store = [=](int64_t i, double sum) {
        out[i] = static_cast<float>(accumulate ? out[i] + sum / divisor : sum / divisor);
    };
    if (down)
        down_columns(in, terms, results, 0.0, add_rows, add, store);
    else
        along_rows<double>(in, results, terms, row_sum, add, store);
}

void max(const Array<float>& x, Array<float> y, bool down) {
    const int64_t results = y.size(), terms = other_size("max", x.size(), results);
    const float* in = x.data();
    float* out = y.mutable_data();
    pybind11::gil_scoped_release release;
    const auto fold = [](float a, float b) { return larger(a, b); };
    const auto store = [=](int64_t i, float largest) { out[i] = largest; };
    if (down)
        down_columns(in, terms, results, -std::numeric_limits<float>::infinity(), raise_by_rows, fold, store);
    else
        along_rows<float>(in, results, terms, row_max, fold, store);
}

}  // namespace

BP_NATIVE(reduce) {
    using pybind11::arg;
    module.def("sum", &sum, arg("x").noconvert(), arg("y").noconvert(), arg("down"), arg("divisor"),
               arg("accumulate"));
    module.def("max", &max, arg("x").noconvert(), arg("y").noconvert(), arg("down"));
}
