// Losses of single elements in float32, with their gradients; the formulas are derived in bp/ops/loss.py.
#include <cmath>
#include <optional>

#include <pybind11/stl.h>

#include "exp.hpp"
#include "native.hpp"

namespace {

using bp::Array;
using std::int64_t;

struct Term {
    float loss, slope;
};

// The formulas: of prediction x and target t; positive is t times its weight, where a loss knows weights.

BP_INLINE Term squared_error(float x, float t, float) {
    const float difference = x - t;
    return {difference * difference, 2.0f * difference};
}

BP_INLINE Term binary_cross_entropy(float x, float t, float positive) {
    const float negative = 1.0f - t, size = std::fabs(x);
    // The weights of softplus(|x|), which grows with |x|, and of softplus(-|x|), which vanishes.
    const float growing = x > 0.0f ? negative : positive, vanishing = x > 0.0f ? positive : negative;
    const float small = bp::exp_float(-size);
    const float slope = (growing - vanishing * small) / (1.0f + small);
    // No product is chosen or left out, only factors: scalar and vector code round such expressions alike.
    const float grows = growing == 0.0f ? 0.0f : size;
    return {bp::log1p_float(small) * (positive + negative) + growing * grows, x > 0.0f ? slope : -slope};
}

// The gradient may lie where the predictions do, which the compiler has to be told is no obstacle to vectors.
#define BP_LOSS(name)                                                                               \
    BP_CLONES void name##_loop(const float* x, const float* t, const float* positive, float factor, \
                               float* losses, float* gradients, int64_t count) {                    \
        _Pragma("omp simd") for (int64_t i = 0; i < count; ++i) {                                   \
            const Term term = name(x[i], t[i], positive[i]);                                        \
            losses[i] = term.loss;                                                                  \
            gradients[i] = term.slope * factor;                                                     \
        }                                                                                           \
    }

BP_LOSS(squared_error)
BP_LOSS(binary_cross_entropy)

using Loop = void (*)(const float*, const float*, const float*, float, float*, float*, int64_t);
using MaybeFloats = std::optional<Array<float>>;

void run(Loop loop, const Array<float>& x, const Array<float>& t, const Array<float>& positive, double factor,
         Array<float>& losses, MaybeFloats& gradients) {
    const int64_t size = x.size();
    if (t.size() != size || positive.size() != size || losses.size() != size ||
        (gradients && gradients->size() != size))
        throw std::invalid_argument("elementwise loss: arrays of different sizes");
    const float *predictions = x.data(), *targets = t.data(), *weighted = positive.data();
    float *terms = losses.mutable_data(), *slopes = gradients ? gradients->mutable_data() : nullptr;
    const float scale = static_cast<float>(factor);
    pybind11::gil_scoped_release release;
    bp::in_pieces(size, [=](int64_t first, int64_t count) {
        const auto part = [=](int64_t from, int64_t number, float* to) {
            loop(predictions + from, targets + from, weighted + from, scale, terms + from, to, number);
        };
        if (slopes != nullptr) return part(first, count, slopes + first);
        // Gradients that nobody wants are thrown away: another loop, without them, might round the losses differently.
        constexpr int64_t FEW = 1024;
        float unwanted[FEW];
        for (int64_t i = first; i < first + count; i += FEW) part(i, std::min(FEW, first + count - i), unwanted);
    });
}

}  // namespace

BP_NATIVE(loss_elementwise) {
    using pybind11::arg;
    const auto define = [&](const char* name, Loop loop) {
        module.def(
            name,
            [=](const Array<float>& x, const Array<float>& t, const Array<float>& positive, double factor,
                Array<float> losses, MaybeFloats gradients) { run(loop, x, t, positive, factor, losses, gradients); },
            arg("predictions").noconvert(), arg("targets").noconvert(), arg("positive").noconvert(), arg("factor"),
            arg("losses").noconvert(), arg("gradients").noconvert().none(true));
    };
    define("squared_error", squared_error_loop);
    define("binary_cross_entropy", binary_cross_entropy_loop);
}
