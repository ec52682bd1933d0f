// Optimizer steps over the flat arena: SGD and Adam in one pass over memory, gradient norm, moving average.
//
// A step is elementwise and a sum is made of blocks of fixed size, so no result depends on the number of threads. Within
// a step, numbers below 1.2e-38 count as zero: the mean of a gradient that stays exactly zero (a dead unit) decays into
// that range in some 800 steps and stays there, where arithmetic is many times slower.
#include "native.hpp"

#include <algorithm>
#include <cmath>

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace {

namespace py = pybind11;
using bp::Array;

constexpr std::int64_t kTile = 128;             // elements that share one row of settings (bp/ops/optimizer.py)
constexpr std::int64_t kBlock = 16 * 1024;      // elements of a partial sum
constexpr std::int64_t kParallel = 256 * 1024;  // below this many elements, starting threads costs more than it saves

enum Setting { kLearningRateFactor, kDecoupledDecay, kL2, kL1, kSettings };  // columns of the settings
enum Control { kLearningRate = 0, kAppliedStep = 6, kGradientScale = 8, kControlSize = 16 };  // bp/ops/control.py

class FlushSubnormals {
#if defined(__SSE2__) || defined(_M_X64)
public:
    FlushSubnormals() : kept_(_mm_getcsr()) { _mm_setcsr(kept_ | 0x8040); }  // results and operands
    ~FlushSubnormals() { _mm_setcsr(kept_); }

private:
    unsigned kept_;
#endif
};

// Calls body(first, last) for ranges that cover [0, count), on several threads where the arena is large.
template <class Body>
void ranges(std::int64_t count, std::int64_t elements, Body body) {
    const std::int64_t chunk = std::max<std::int64_t>(1, count / 64);
#pragma omp parallel for schedule(static) if (elements >= kParallel)
    for (std::int64_t first = 0; first < count; first += chunk) {
        [[maybe_unused]] FlushSubnormals flush;
        body(first, std::min(count, first + chunk));
    }
}

struct Step {
    float lr;
    float scale;
};

// The regularised gradient of one tile into g, and decoupled decay of its values.
BP_INLINE void begin_tile(float* value, const float* gradient, const float* setting, const Step& step, float* g) {
    for (int i = 0; i < kTile; ++i) g[i] = gradient[i] * step.scale;
    if (const float l2 = setting[kL2]; l2 != 0.0f)
        for (int i = 0; i < kTile; ++i) g[i] += l2 * value[i];
    if (const float l1 = setting[kL1]; l1 != 0.0f)
        for (int i = 0; i < kTile; ++i) g[i] += value[i] > 0.0f ? l1 : value[i] < 0.0f ? -l1 : 0.0f;
    if (const float decay = setting[kDecoupledDecay]; decay != 0.0f) {
        const float kept = 1.0f - step.lr * setting[kLearningRateFactor] * decay;
        for (int i = 0; i < kTile; ++i) value[i] *= kept;
    }
}

struct SGD {
    Step step;
    float momentum, one_minus_dampening;
    bool first, nesterov;
};

BP_CLONES void sgd_tiles(std::int64_t first, std::int64_t last, float* values, const float* gradients, float* velocity,
                         const float* settings, SGD rule) {
    for (std::int64_t tile = first; tile < last; ++tile) {
        float* value = values + tile * kTile;
        const float* setting = settings + tile * kSettings;
        const float lr = rule.step.lr * setting[kLearningRateFactor];
        float g[kTile];
        begin_tile(value, gradients + tile * kTile, setting, rule.step, g);
        if (velocity != nullptr) {
            float* v = velocity + tile * kTile;
            if (rule.first) {
                for (int i = 0; i < kTile; ++i) v[i] = g[i];
            } else {
                for (int i = 0; i < kTile; ++i) v[i] = rule.momentum * v[i] + rule.one_minus_dampening * g[i];
            }
            if (rule.nesterov) {
                for (int i = 0; i < kTile; ++i) g[i] += rule.momentum * v[i];
            } else {
                for (int i = 0; i < kTile; ++i) g[i] = v[i];
            }
        }
        for (int i = 0; i < kTile; ++i) value[i] -= lr * g[i];
    }
}

struct Adam {
    Step step;
    float beta1, beta2, one_minus_beta1, one_minus_beta2, first_correction, second_correction, eps;
};

BP_CLONES void adam_tiles(std::int64_t first, std::int64_t last, float* values, const float* gradients, float* means,
                          float* squares, float* largest, const float* settings, Adam rule) {
    for (std::int64_t tile = first; tile < last; ++tile) {
        float* __restrict value = values + tile * kTile;
        float* __restrict m = means + tile * kTile;
        float* __restrict v = squares + tile * kTile;
        const float* setting = settings + tile * kSettings;
        const float lr = rule.step.lr * setting[kLearningRateFactor] * rule.first_correction;
        float g[kTile];
        begin_tile(value, gradients + tile * kTile, setting, rule.step, g);
        for (int i = 0; i < kTile; ++i) {
            m[i] = rule.beta1 * m[i] + rule.one_minus_beta1 * g[i];
            v[i] = rule.beta2 * v[i] + rule.one_minus_beta2 * (g[i] * g[i]);
        }
        const float* second = v;
        if (largest != nullptr) {
            float* top = largest + tile * kTile;
            // Written so that a NaN in v stays: a comparison with it is false.
            for (int i = 0; i < kTile; ++i) top[i] = top[i] >= v[i] ? top[i] : v[i];
            second = top;
        }
        for (int i = 0; i < kTile; ++i)
            value[i] -= lr * m[i] / (std::sqrt(second[i]) * rule.second_correction + rule.eps);
    }
}

// Squares of floats are exact in double, so the lanes alone fix the order of summation and every clone agrees.
BP_CLONES double block_sum_of_squares(const float* x, std::int64_t count) {
    constexpr int kLanes = 32;
    double lane[kLanes] = {};
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int k = 0; k < kLanes; ++k) lane[k] += static_cast<double>(x[i + k]) * static_cast<double>(x[i + k]);
    for (int k = 0; i + k < count; ++k) lane[k] += static_cast<double>(x[i + k]) * static_cast<double>(x[i + k]);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k) lane[k] += lane[k + half];
    return lane[0];
}

BP_CLONES void average_range(float* averages, const float* values, float weight, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) averages[i] += weight * (values[i] - averages[i]);
}

template <class T>
void expect_size(const Array<T>& array, std::int64_t size, const char* name) {
    if (array.size() != size)
        throw std::invalid_argument(std::string("optimizer expected ") + name + " of " + std::to_string(size) +
                                    " elements, got " + std::to_string(array.size()));
}

// The pointer to a moment of the arena's size, or null for None.
float* optional(py::object& moment, std::int64_t size, const char* name) {
    if (moment.is_none()) return nullptr;
    if (!py::isinstance<Array<float>>(moment))
        throw std::invalid_argument(std::string("optimizer expected ") + name + " of float32");
    auto array = py::reinterpret_borrow<Array<float>>(moment);
    expect_size(array, size, name);
    return array.mutable_data();
}

std::int64_t expect_arena(const Array<float>& values, const Array<float>& gradients, const Array<float>& settings,
                          const Array<double>& control) {
    const std::int64_t size = values.size(), tiles = size / kTile;
    expect_size(values, tiles * kTile, "values in whole tiles");
    expect_size(gradients, size, "gradients");
    expect_size(settings, tiles * kSettings, "settings");
    expect_size(control, kControlSize, "control");
    return tiles;
}

void sgd(Array<float> values, Array<float> gradients, py::object velocity, Array<float> settings,
         Array<double> control, double momentum, double dampening, bool nesterov) {
    const std::int64_t tiles = expect_arena(values, gradients, settings, control), size = values.size();
    const double* block = control.data();
    const Step step{static_cast<float>(block[kLearningRate]), static_cast<float>(block[kGradientScale])};
    const SGD rule{step, static_cast<float>(momentum), static_cast<float>(1.0 - dampening), block[kAppliedStep] <= 1,
                   nesterov};
    float *w = values.mutable_data(), *v = optional(velocity, size, "velocity");
    const float *g = gradients.data(), *rows = settings.data();
    py::gil_scoped_release release;
    ranges(tiles, size,
           [=](std::int64_t first, std::int64_t last) { sgd_tiles(first, last, w, g, v, rows, rule); });
}

void adam(Array<float> values, Array<float> gradients, Array<float> first_moment, Array<float> second_moment,
          py::object largest_second_moment, Array<float> settings, Array<double> control, double beta1, double beta2,
          double eps) {
    const std::int64_t tiles = expect_arena(values, gradients, settings, control), size = values.size();
    expect_size(first_moment, size, "first_moment");
    expect_size(second_moment, size, "second_moment");
    const double* block = control.data();
    const double count = block[kAppliedStep];
    const Step step{static_cast<float>(block[kLearningRate]), static_cast<float>(block[kGradientScale])};
    const Adam rule{step,
                    static_cast<float>(beta1),
                    static_cast<float>(beta2),
                    static_cast<float>(1.0 - beta1),
                    static_cast<float>(1.0 - beta2),
                    static_cast<float>(1.0 / (1.0 - std::pow(beta1, count))),
                    static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, count))),
                    static_cast<float>(eps)};
    float *w = values.mutable_data(), *m = first_moment.mutable_data(), *v = second_moment.mutable_data();
    float* largest = optional(largest_second_moment, size, "largest_second_moment");
    const float *g = gradients.data(), *rows = settings.data();
    py::gil_scoped_release release;
    ranges(tiles, size,
           [=](std::int64_t first, std::int64_t last) { adam_tiles(first, last, w, g, m, v, largest, rows, rule); });
}

double sum_of_squares(Array<float> array) {
    const std::int64_t size = array.size(), blocks = (size + kBlock - 1) / kBlock;
    std::vector<double> partial(static_cast<std::size_t>(blocks));
    const float* x = array.data();
    py::gil_scoped_release release;
#pragma omp parallel for schedule(static) if (size >= kParallel)
    for (std::int64_t block = 0; block < blocks; ++block)
        partial[static_cast<std::size_t>(block)] =
            block_sum_of_squares(x + block * kBlock, std::min(kBlock, size - block * kBlock));
    double total = 0.0;
    for (double sum : partial) total += sum;
    return total;
}

void moving_average(Array<float> averages, Array<float> values, double weight) {
    const std::int64_t size = values.size();
    expect_size(averages, size, "averages");
    float* average = averages.mutable_data();
    const float* value = values.data();
    py::gil_scoped_release release;
    ranges(size, size, [=](std::int64_t first, std::int64_t last) {
        average_range(average + first, value + first, static_cast<float>(weight), last - first);
    });
}

}  // namespace

BP_NATIVE(optimizer) {
    using py::arg;
    module.def("sgd", &sgd, arg("values").noconvert(), arg("gradients").noconvert(), arg("velocity"),
               arg("settings").noconvert(), arg("control").noconvert(), arg("momentum"), arg("dampening"),
               arg("nesterov"));
    module.def("adam", &adam, arg("values").noconvert(), arg("gradients").noconvert(), arg("first_moment").noconvert(),
               arg("second_moment").noconvert(), arg("largest_second_moment"), arg("settings").noconvert(),
               arg("control").noconvert(), arg("beta1"), arg("beta2"), arg("eps"));
    module.def("sum_of_squares", &sum_of_squares, arg("array").noconvert());
    module.def("moving_average", &moving_average, arg("averages").noconvert(), arg("values").noconvert(),
               arg("weight"));
}
