// Softmax and its logarithm over the rows of a matrix in float32, forward and backward: the formulas of
// bp/ops/activation.py.
//
// Vectors run along a long row. Short rows are taken TILE at a time and turned round, so that each lane of a vector has
// a row of its own. The result of a row depends on nothing but the row.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "exp.hpp"
#include "lanes.hpp"
#include "native.hpp"

namespace {

using bp::Array;
using std::int64_t;

constexpr int64_t TILE = 16;   // rows,
constexpr int64_t SHORT = 32;  // of at most so many elements

// Long rows ----------------------------------------------------------------------------------------------------------

// The largest element, or any of them or NaN where one is NaN: the NaN reaches the whole row through its sum.
BP_INLINE float row_max(const float* x, int64_t n) {
    constexpr int LANES = 32;
    float lanes[LANES];
    std::fill(lanes, lanes + LANES, -std::numeric_limits<float>::infinity());
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] = x[j + lane] > lanes[lane] ? x[j + lane] : lanes[lane];
    for (int lane = 0; j < n; ++j, ++lane) lanes[lane] = x[j] > lanes[lane] ? x[j] : lanes[lane];
    return *std::max_element(lanes, lanes + LANES);
}

BP_CLONES void softmax_row(const float* __restrict x, int64_t n, float* __restrict y) {
    const float largest = row_max(x, n);
    const double sum = bp::lane_sum(n, [=](int64_t j) { return y[j] = bp::exp_float(x[j] - largest); });
    const float scale = float(1 / sum);
    for (int64_t j = 0; j < n; ++j) y[j] *= scale;
}

BP_CLONES void log_softmax_row(const float* __restrict x, int64_t n, float* __restrict y) {
    const float largest = row_max(x, n);
    const float log = float(std::log(bp::lane_sum(n, [=](int64_t j) { return bp::exp_float(x[j] - largest); })));
    for (int64_t j = 0; j < n; ++j) y[j] = (x[j] - largest) - log;
}

BP_CLONES void softmax_backward_row(const float* __restrict dy, const float* __restrict y, int64_t n,
                                    float* __restrict dx) {
    const float along = float(bp::lane_sum(n, [=](int64_t j) { return dy[j] * y[j]; }));
    for (int64_t j = 0; j < n; ++j) dx[j] = y[j] * (dy[j] - along);
}

BP_CLONES void log_softmax_backward_row(const float* __restrict dy, const float* __restrict y, int64_t n,
                                        float* __restrict dx) {
    const float sum = float(bp::lane_sum(n, [=](int64_t j) { return dy[j]; }));
    for (int64_t j = 0; j < n; ++j) dx[j] = dy[j] - bp::exp_float(y[j]) * sum;
}

// Short rows: tiles of TILE numbers for each column -------------------------------------------------------------------

// Where there are fewer than TILE rows, the last one fills the other lanes.
BP_INLINE void turn(const float* __restrict rows, int64_t count, int64_t n, float* __restrict tile) {
    for (int64_t row = 0; row < TILE; ++row) {
        const float* from = rows + std::min(row, count - 1) * n;
        for (int64_t j = 0; j < n; ++j) tile[j * TILE + row] = from[j];
    }
}

BP_INLINE void turn_back(const float* __restrict tile, int64_t count, int64_t n, float* __restrict rows) {
    for (int64_t row = 0; row < count; ++row)
        for (int64_t j = 0; j < n; ++j) rows[row * n + j] = tile[j * TILE + row];
}

// x -= the largest of its row.
BP_INLINE void subtract_largest(float* x, int64_t n) {
    float largest[TILE];
    std::copy(x, x + TILE, largest);
    for (int64_t j = 1; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row)
            largest[row] = x[j * TILE + row] > largest[row] ? x[j * TILE + row] : largest[row];
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) x[j * TILE + row] -= largest[row];
}

BP_CLONES void softmax_tile(const float* x, int64_t count, int64_t n, float* y) {
    float tile[SHORT * TILE], sum[TILE] = {};
    turn(x, count, n, tile);
    subtract_largest(tile, n);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) {
            tile[j * TILE + row] = bp::exp_float(tile[j * TILE + row]);
            sum[row] += tile[j * TILE + row];
        }
    for (int64_t row = 0; row < TILE; ++row) sum[row] = 1 / sum[row];
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) tile[j * TILE + row] *= sum[row];
    turn_back(tile, count, n, y);
}

BP_CLONES void log_softmax_tile(const float* x, int64_t count, int64_t n, float* y) {
    float tile[SHORT * TILE], sum[TILE] = {};
    turn(x, count, n, tile);
    subtract_largest(tile, n);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) sum[row] += bp::exp_float(tile[j * TILE + row]);
    for (int64_t row = 0; row < TILE; ++row) sum[row] = std::log(sum[row]);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) tile[j * TILE + row] -= sum[row];
    turn_back(tile, count, n, y);
}

BP_CLONES void softmax_backward_tile(const float* dy, const float* y, int64_t count, int64_t n, float* dx) {
    float upstream[SHORT * TILE], kept[SHORT * TILE], along[TILE] = {};
    turn(dy, count, n, upstream);
    turn(y, count, n, kept);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) along[row] += upstream[j * TILE + row] * kept[j * TILE + row];
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) kept[j * TILE + row] *= upstream[j * TILE + row] - along[row];
    turn_back(kept, count, n, dx);
}

BP_CLONES void log_softmax_backward_tile(const float* dy, const float* y, int64_t count, int64_t n, float* dx) {
    float upstream[SHORT * TILE], kept[SHORT * TILE], sum[TILE] = {};
    turn(dy, count, n, upstream);
    turn(y, count, n, kept);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row) sum[row] += upstream[j * TILE + row];
    for (int64_t j = 0; j < n; ++j)
        for (int64_t row = 0; row < TILE; ++row)
            upstream[j * TILE + row] -= bp::exp_float(kept[j * TILE + row]) * sum[row];
    turn_back(upstream, count, n, dx);
}

// All rows -----------------------------------------------------------------------------------------------------------

// Calls tile(first element, rows) for short rows and row(first element) for long ones, on all threads.
template <class Tile, class Row>
void for_rows(const Array<float>& x, int64_t columns, Tile tile, Row row) {
    const int64_t rows = columns ? x.size() / columns : 0, tiles = (rows + TILE - 1) / TILE;
    pybind11::gil_scoped_release release;
    if (columns <= SHORT) {
#pragma omp parallel for schedule(static) if (rows * columns >= bp::PARALLEL)
        for (int64_t t = 0; t < tiles; ++t) tile(t * TILE * columns, std::min(TILE, rows - t * TILE));
    } else {
#pragma omp parallel for schedule(static) if (rows * columns >= bp::PARALLEL)
        for (int64_t r = 0; r < rows; ++r) row(r * columns);
    }
}

// The length of the rows of x, where the other array has as many elements.
int64_t row_length(const char* name, const Array<float>& x, const Array<float>& other) {
    if (x.ndim() == 0) throw std::invalid_argument(std::string(name) + ": expected arrays with an axis");
    if (x.size() != other.size()) throw std::invalid_argument(std::string(name) + ": arrays of different sizes");
    return x.shape(x.ndim() - 1);
}

using ForwardTile = void (*)(const float*, int64_t, int64_t, float*);
using ForwardRow = void (*)(const float*, int64_t, float*);
using BackwardTile = void (*)(const float*, const float*, int64_t, int64_t, float*);
using BackwardRow = void (*)(const float*, const float*, int64_t, float*);

void define(pybind11::module_& module, const char* name, ForwardTile tile, ForwardRow row) {
    module.def(
        name,
        [=](const Array<float>& x, Array<float> y) {
            const int64_t n = row_length(name, x, y);
            const float* in = x.data();
            float* out = y.mutable_data();
            for_rows(
                x, n, [=](int64_t first, int64_t count) { tile(in + first, count, n, out + first); },
                [=](int64_t first) { row(in + first, n, out + first); });
        },
        pybind11::arg("x").noconvert(), pybind11::arg("y").noconvert());
}

void define(pybind11::module_& module, const char* name, BackwardTile tile, BackwardRow row) {
    module.def(
        name,
        [=](const Array<float>& dy, const Array<float>& y, Array<float> dx) {
            const int64_t n = row_length(name, dy, y);
            row_length(name, dy, dx);
            const float *upstream = dy.data(), *kept = y.data();
            float* out = dx.mutable_data();
            for_rows(
                dy, n,
                [=](int64_t first, int64_t count) { tile(upstream + first, kept + first, count, n, out + first); },
                [=](int64_t first) { row(upstream + first, kept + first, n, out + first); });
        },
        pybind11::arg("dy").noconvert(), pybind11::arg("y").noconvert(), pybind11::arg("dx").noconvert());
}

}  // namespace

BP_NATIVE(activation_softmax) {
    define(module, "softmax", softmax_tile, softmax_row);
    define(module, "softmax_backward", softmax_backward_tile, softmax_backward_row);
    define(module, "log_softmax", log_softmax_tile, log_softmax_row);
    define(module, "log_softmax_backward", log_softmax_backward_tile, log_softmax_backward_row);
}
