// Softmax cross-entropy with integer labels: losses and the gradient in one pass over the rows.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include <pybind11/stl.h>

#include "exp.hpp"
#include "lanes.hpp"
#include "native.hpp"

namespace bp {
namespace {

struct CrossEntropy {
    const float* logits;
    const std::int64_t* labels;
    const float* class_weight;  // or null: all 1
    float* losses;
    float* dlogits;  // or null: not wanted; may be the logits
    std::int64_t classes;
    std::int64_t ignore_index;
    float smoothing;
    float inverse_denominator;
    float weight_sum;  // of all classes
};

constexpr int LANES = 16;
// Rows are taken in blocks of about so many elements: they stay in the first-level cache from pass to pass, and
// the exponentials of many short rows are one long loop.
constexpr std::int64_t BLOCK_ELEMENTS = 4096;
// Below so many elements, about 60 us of work, waking other threads saves little, and on a busy machine costs much.
constexpr std::int64_t PARALLEL_ELEMENTS = 1 << 17;

// Sums and maxima go through LANES running values, in an order that depends on the length alone; without them the
// compiler could not use vectors, since it must not reorder float arithmetic.
BP_INLINE float row_max(const float* x, std::int64_t n) {
    float result = -std::numeric_limits<float>::infinity();
    std::int64_t i = 0;
    if (n >= LANES) {
        float lanes[LANES];
        for (int k = 0; k < LANES; ++k) lanes[k] = x[k];
        for (i = LANES; i + LANES <= n; i += LANES)
            for (int k = 0; k < LANES; ++k) lanes[k] = lanes[k] > x[i + k] ? lanes[k] : x[i + k];
        for (int width = LANES / 2; width > 0; width /= 2)
            for (int k = 0; k < width; ++k) lanes[k] = lanes[k] > lanes[k + width] ? lanes[k] : lanes[k + width];
        result = lanes[0];
    }
    for (; i < n; ++i) result = result > x[i] ? result : x[i];
    return result;
}

BP_INLINE float row_sum(const float* x, std::int64_t n) {
    float result = 0.0f;
    std::int64_t i = 0;
    if (n >= LANES) {
        float lanes[LANES];
        for (int k = 0; k < LANES; ++k) lanes[k] = x[k];
        for (i = LANES; i + LANES <= n; i += LANES)
            for (int k = 0; k < LANES; ++k) lanes[k] += x[i + k];
        result = fold_lanes<LANES>(lanes);
    }
    for (; i < n; ++i) result += x[i];
    return result;
}

// sum_c w_c x_c, where a class of weight 0 counts 0 even if x_c is infinite.
BP_INLINE float weighted_sum(const float* x, const float* weight, std::int64_t n) {
    if (weight == nullptr) return row_sum(x, n);
    float result = 0.0f;
    for (std::int64_t c = 0; c < n; ++c) result += weight[c] == 0.0f ? 0.0f : weight[c] * x[c];
    return result;
}

// Rows first..last-1; `exponentials` holds (last - first) * classes floats and may be the rows of dlogits themselves.
BP_CLONES void cross_entropy_rows(const CrossEntropy& p, std::int64_t first, std::int64_t last, float* exponentials) {
    const std::int64_t classes = p.classes;
    for (std::int64_t row = first; row < last; ++row) {
        const float* z = p.logits + row * classes;
        float* e = exponentials + (row - first) * classes;
        const float largest = row_max(z, classes);
#pragma omp simd  // e may be z itself
        for (std::int64_t c = 0; c < classes; ++c) e[c] = z[c] - largest;
        const std::int64_t label = p.labels[row];
        if (label == p.ignore_index) {
            p.losses[row] = 0.0f;
            continue;
        }
        // The part of the loss that is linear in the logits; the logarithm of the sum is added below.
        const float weight = (1.0f - p.smoothing) * (p.class_weight ? p.class_weight[label] : 1.0f);
        float linear = weight == 0.0f ? 0.0f : weight * e[label];
        if (p.smoothing != 0.0f) linear += p.smoothing / classes * weighted_sum(e, p.class_weight, classes);
        p.losses[row] = -linear;
    }
    const std::int64_t elements = (last - first) * classes;
    for (std::int64_t i = 0; i < elements; ++i) exponentials[i] = exp_float(exponentials[i]);

    const float uniform = p.smoothing / classes;
    for (std::int64_t row = first; row < last; ++row) {
        const float* e = exponentials + (row - first) * classes;
        const std::int64_t label = p.labels[row];
        float* dz = p.dlogits ? p.dlogits + row * classes : nullptr;
        if (label == p.ignore_index) {
            if (dz) std::fill(dz, dz + classes, 0.0f);
            continue;
        }
        const float label_part = (1.0f - p.smoothing) * (p.class_weight ? p.class_weight[label] : 1.0f);
        const float mass = label_part + uniform * p.weight_sum;
        const float normaliser = row_sum(e, classes);
        if (mass == 0.0f) {  // no term, so no gradient, even where the logits are NaN
            if (dz) std::fill(dz, dz + classes, 0.0f);
            continue;
        }
        p.losses[row] += mass * std::log(normaliser);
        if (!dz) continue;
        const float scale = mass * p.inverse_denominator / normaliser;
        const float uniform_part = uniform * p.inverse_denominator;
        if (uniform == 0.0f)
            for (std::int64_t c = 0; c < classes; ++c) dz[c] = e[c] * scale;
        else if (p.class_weight == nullptr)
            for (std::int64_t c = 0; c < classes; ++c) dz[c] = e[c] * scale - uniform_part;
        else
            for (std::int64_t c = 0; c < classes; ++c) dz[c] = e[c] * scale - uniform_part * p.class_weight[c];
        dz[label] -= label_part * p.inverse_denominator;
    }
}

void cross_entropy(const CrossEntropy& p, std::int64_t rows) {
    const std::int64_t block = std::max<std::int64_t>(1, BLOCK_ELEMENTS / p.classes);
    const std::int64_t blocks = (rows + block - 1) / block;
#pragma omp parallel if (rows * p.classes >= PARALLEL_ELEMENTS && blocks > 1)
    {
        std::vector<float> scratch(p.dlogits ? 0 : std::min(block, rows) * p.classes);
#pragma omp for schedule(static)
        for (std::int64_t b = 0; b < blocks; ++b) {
            const std::int64_t first = b * block, last = std::min(rows, first + block);
            cross_entropy_rows(p, first, last, p.dlogits ? p.dlogits + first * p.classes : scratch.data());
        }
    }
}

// Whether all labels are in range; where one is not, nothing is computed.
bool softmax_cross_entropy(const Array<float>& logits, const Array<std::int64_t>& labels,
                           const std::optional<Array<float>>& class_weight, std::int64_t ignore_index,
                           double smoothing, double inverse_denominator, Array<float>& losses,
                           std::optional<Array<float>>& dlogits) {
    const std::int64_t rows = labels.size();
    const std::int64_t classes = rows > 0 ? logits.size() / rows : 1;
    if (classes < 1 || logits.size() != rows * classes || losses.size() != rows ||
        (dlogits && dlogits->size() != logits.size()) || (class_weight && rows > 0 && class_weight->size() != classes))
        throw std::invalid_argument("softmax_cross_entropy: array sizes do not fit");

    CrossEntropy p{};
    p.logits = logits.data();
    p.labels = labels.data();
    p.class_weight = class_weight ? class_weight->data() : nullptr;
    p.losses = losses.mutable_data();
    p.dlogits = dlogits ? dlogits->mutable_data() : nullptr;
    p.classes = classes;
    p.ignore_index = ignore_index;
    p.smoothing = static_cast<float>(smoothing);
    p.inverse_denominator = static_cast<float>(inverse_denominator);

    const py::gil_scoped_release release;
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t label = p.labels[row];
        if ((label < 0 || label >= classes) && label != ignore_index) return false;
    }
    double weight_sum = static_cast<double>(classes);
    if (p.class_weight) {
        weight_sum = 0.0;
        for (std::int64_t c = 0; c < classes && rows > 0; ++c) weight_sum += p.class_weight[c];
    }
    p.weight_sum = static_cast<float>(weight_sum);
    cross_entropy(p, rows);
    return true;
}

}  // namespace

BP_NATIVE(loss) {
    module.def("softmax_cross_entropy", &softmax_cross_entropy, py::arg("logits").noconvert(),
               py::arg("labels").noconvert(), py::arg("class_weight").noconvert().none(true),
               py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("inverse_denominator"),
               py::arg("losses").noconvert(), py::arg("dlogits").noconvert().none(true));
}

}  // namespace bp
