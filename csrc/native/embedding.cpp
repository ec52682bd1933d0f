// Embedding in float32: the gradient of the table.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>

#include <pybind11/stl.h>

#include "native.hpp"

namespace {

using bp::Array;
using std::int64_t;

BP_CLONES void add_rows(const float* __restrict dy, const int64_t* __restrict indices, float* __restrict dweight,
                        int64_t positions, int64_t columns, int64_t begin, int64_t end, int64_t skipped) {
    for (int64_t n = 0; n < positions; n++) {
        if (indices[n] == skipped) continue;
        const float* from = dy + n * columns;
        float* to = dweight + indices[n] * columns;
        for (int64_t c = begin; c < end; c++) to[c] += from[c];
    }
}

// dweight[indices[n]] += dy[n] for all n in order, except where the index is `padding`. Threads take columns, so that
// every element is summed by one thread, in the order of the positions.
void embedding_backward_parameters(const Array<float>& dy, const Array<int64_t>& indices, Array<float> dweight,
                                   std::optional<int64_t> padding) {
    if (dweight.ndim() != 2) throw std::invalid_argument("embedding: expected a table of rank 2");
    const int64_t rows = dweight.shape(0), columns = dweight.shape(1), positions = indices.size();
    if (dy.size() != positions * columns) throw std::invalid_argument("embedding: sizes of dy and indices differ");
    const int64_t* index = indices.data();
    if (std::any_of(index, index + positions, [rows](int64_t i) { return i < 0 || i >= rows; }))
        throw std::invalid_argument("embedding: index outside the table");
    const float* from = dy.data();
    float* to = dweight.mutable_data();
    const int64_t skipped = padding.value_or(-1);
    constexpr int64_t SLICE = 64;  // columns: a whole number of cache lines, so that threads do not share one
    pybind11::gil_scoped_release release;
#pragma omp parallel for schedule(static) if (positions * columns >= 1 << 16)
    for (int64_t begin = 0; begin < columns; begin += SLICE)
        add_rows(from, index, to, positions, columns, begin, std::min(begin + SLICE, columns), skipped);
}

}  // namespace

BP_NATIVE(embedding) {
    using pybind11::arg;
    module.def("embedding_backward_parameters", embedding_backward_parameters, arg("dy").noconvert(),
               arg("indices").noconvert(), arg("dweight").noconvert(), arg("padding").none(true));
}
