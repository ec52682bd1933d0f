// Shared by norm.cpp and norm_groups.cpp: their arguments, and how sums and statistics are kept.
//
// Sums are cut into blocks of rows whose number depends on the shape alone; a block sums in float32 over a few hundred
// terms a lane, runs and blocks are added in double and in order. So the result is the same for any number of threads.
// Statistics are in double. A mean is used as hi + lo, two floats: x - hi is exact for x near the mean, and lo restores
// what rounding the mean to hi left out, so a large mean with a small variance does not cancel.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "native.hpp"

namespace bp {
namespace norm {

using std::int64_t;
using Floats = bp::Array<float>;
using Doubles = bp::Array<double>;
using MaybeFloats = std::optional<Floats>;

constexpr int64_t PARALLEL_FROM = 1 << 17;  // elements; below, waking the threads (20 to 40 us) costs more than they save

inline void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(std::string("native norm kernel: ") + what);
}

template <class T>
const T* input(const bp::Array<T>& array, int64_t size) {
    require(array.size() == size, "a vector has the wrong size");
    return array.data();
}

template <class T>
T* output(bp::Array<T>& array, int64_t size) {
    input(array, size);
    return array.mutable_data();
}

inline float* output(MaybeFloats& array, int64_t size) { return array ? output(*array, size) : nullptr; }

// The values of gamma or beta, or `otherwise` for each element where there are none.
class Affine {
   public:
    Affine(const MaybeFloats& array, int64_t size, float otherwise) {
        if (!array) fallback_.assign(static_cast<std::size_t>(size), otherwise);
        data_ = array ? input(*array, size) : fallback_.data();
    }
    const float* data() const { return data_; }
    float operator[](int64_t index) const { return data_[index]; }

   private:
    std::vector<float> fallback_;
    const float* data_;
};

// destination = total, or += where accumulating; null: not wanted.
inline void deliver(const double* total, int64_t size, float* destination, bool accumulate) {
    if (!destination) return;
    for (int64_t j = 0; j < size; ++j) destination[j] = float(accumulate ? destination[j] + total[j] : total[j]);
}

// Arrays are taken as they are: a silent copy of a destination would lose the result.
inline py::arg as_is(const char* name) { return py::arg(name).noconvert(); }

}  // namespace norm
}  // namespace bp
