// Optimizer steps over the flat arena: each elementwise rule of bp/ops/optimizer.py in one pass over memory, gradient
// norm, moving average.
//
// A step is elementwise and a sum is made of blocks of fixed size, so no result depends on the number of threads. Within
// a step, numbers below 1.2e-38 count as zero: the mean of a gradient that stays exactly zero (a dead unit) decays into
// that range in some 800 steps and stays there, where arithmetic is many times slower.
#include "lanes.hpp"
#include "native.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

#include <pybind11/stl.h>

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

// The rules. Each updates its running means of a tile from g, which it may use up, and then the values; a mean that a
// rule can do without may be null.
using Tile = float* __restrict;

struct SGD {
    float momentum, one_minus_dampening;
    bool first, nesterov;

    BP_INLINE void update(Tile value, Tile g, float lr, Tile velocity, Tile, Tile) const {
        if (velocity != nullptr) {
            if (first) {
                for (int i = 0; i < kTile; ++i) velocity[i] = g[i];
            } else {
                for (int i = 0; i < kTile; ++i) velocity[i] = momentum * velocity[i] + one_minus_dampening * g[i];
            }
            if (nesterov) {
                for (int i = 0; i < kTile; ++i) g[i] += momentum * velocity[i];
            } else {
                for (int i = 0; i < kTile; ++i) g[i] = velocity[i];
            }
        }
        for (int i = 0; i < kTile; ++i) value[i] -= lr * g[i];
    }
};

struct Adagrad {
    float shrink, eps;

    BP_INLINE void update(Tile value, Tile g, float lr, Tile sum_of_squares, Tile, Tile) const {
        for (int i = 0; i < kTile; ++i) {
            sum_of_squares[i] += g[i] * g[i];
            value[i] -= lr * shrink * g[i] / (std::sqrt(sum_of_squares[i]) + eps);
        }
    }
};

struct Adadelta {
    float rho, one_minus_rho, eps;

    BP_INLINE void update(Tile value, Tile g, float lr, Tile square, Tile square_step, Tile) const {
        for (int i = 0; i < kTile; ++i) {
            square[i] = rho * square[i] + one_minus_rho * (g[i] * g[i]);
            const float step = g[i] * std::sqrt((square_step[i] + eps) / (square[i] + eps));
            square_step[i] = rho * square_step[i] + one_minus_rho * (step * step);
            value[i] -= lr * step;
        }
    }
};

struct RMSprop {
    float alpha, one_minus_alpha, eps, momentum;

    BP_INLINE void update(Tile value, Tile g, float lr, Tile square, Tile mean, Tile velocity) const {
        float variance[kTile];
        for (int i = 0; i < kTile; ++i)
            variance[i] = square[i] = alpha * square[i] + one_minus_alpha * (g[i] * g[i]);
        if (mean != nullptr) {
            for (int i = 0; i < kTile; ++i) {
                mean[i] = alpha * mean[i] + one_minus_alpha * g[i];
                const float centred = square[i] - mean[i] * mean[i];
                variance[i] = centred < 0.0f ? 0.0f : centred;  // NaN stays
            }
        }
        for (int i = 0; i < kTile; ++i) g[i] /= std::sqrt(variance[i]) + eps;
        if (velocity != nullptr)
            for (int i = 0; i < kTile; ++i) g[i] = velocity[i] = momentum * velocity[i] + g[i];
        for (int i = 0; i < kTile; ++i) value[i] -= lr * g[i];
    }
};

struct Adam {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, first_correction, second_correction, eps;

    BP_INLINE void update(Tile value, Tile g, float lr, Tile m, Tile v, Tile largest) const {
        for (int i = 0; i < kTile; ++i) {
            m[i] = beta1 * m[i] + one_minus_beta1 * g[i];
            v[i] = beta2 * v[i] + one_minus_beta2 * (g[i] * g[i]);
        }
        const float* second = v;
        if (largest != nullptr) {
            // Written so that a NaN in v stays: a comparison with it is false.
            for (int i = 0; i < kTile; ++i) largest[i] = largest[i] >= v[i] ? largest[i] : v[i];
            second = largest;
        }
        const float corrected = lr * first_correction;
        for (int i = 0; i < kTile; ++i)
            value[i] -= corrected * m[i] / (std::sqrt(second[i]) * second_correction + eps);
    }
};

struct NAdam {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, of_gradient, of_mean, second_correction, eps;

    BP_INLINE void update(Tile value, Tile g, float lr, Tile m, Tile v, Tile) const {
        for (int i = 0; i < kTile; ++i) {
            m[i] = beta1 * m[i] + one_minus_beta1 * g[i];
            v[i] = beta2 * v[i] + one_minus_beta2 * (g[i] * g[i]);
            const float ahead = of_gradient * g[i] + of_mean * m[i];
            value[i] -= lr * ahead / (std::sqrt(v[i]) * second_correction + eps);
        }
    }
};

struct Lion {
    float beta1, beta2, one_minus_beta1, one_minus_beta2;

    BP_INLINE void update(Tile value, Tile g, float lr, Tile m, Tile, Tile) const {
        for (int i = 0; i < kTile; ++i) {
            const float direction = beta1 * m[i] + one_minus_beta1 * g[i];
            m[i] = beta2 * m[i] + one_minus_beta2 * g[i];
            value[i] -= lr * (direction > 0.0f ? 1.0f : direction < 0.0f ? -1.0f : direction);  // NaN stays
        }
    }
};

// The arena of a step, with the means of its rule in the order in which `update` takes them.
struct Arena {
    float* values;
    const float* gradients;
    const float* settings;
    std::int64_t tiles;
    Step step;
    float* means[3];
};

template <class Rule>
BP_INLINE void update_tiles(std::int64_t first, std::int64_t last, const Arena& arena, const Rule& rule) {
    for (std::int64_t tile = first; tile < last; ++tile) {
        const auto at = [=](float* flat) { return flat == nullptr ? nullptr : flat + tile * kTile; };
        const float* setting = arena.settings + tile * kSettings;
        float g[kTile];
        begin_tile(at(arena.values), arena.gradients + tile * kTile, setting, arena.step, g);
        rule.update(at(arena.values), g, arena.step.lr * setting[kLearningRateFactor], at(arena.means[0]),
                    at(arena.means[1]), at(arena.means[2]));
    }
}

#define BP_RULE(Rule)                                                                                          \
    BP_CLONES void run(std::int64_t first, std::int64_t last, const Arena& arena, const Rule& rule) {          \
        update_tiles(first, last, arena, rule);                                                                \
    }
BP_RULE(SGD)
BP_RULE(Adagrad)
BP_RULE(Adadelta)
BP_RULE(RMSprop)
BP_RULE(Adam)
BP_RULE(NAdam)
BP_RULE(Lion)

// Squares of floats are exact in double, so the lanes alone fix the order of summation and every clone agrees.
BP_CLONES double block_sum_of_squares(const float* x, std::int64_t count) {
    constexpr int kLanes = 32;
    double lane[kLanes] = {};
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int k = 0; k < kLanes; ++k) lane[k] += static_cast<double>(x[i + k]) * static_cast<double>(x[i + k]);
    for (int k = 0; i + k < count; ++k) lane[k] += static_cast<double>(x[i + k]) * static_cast<double>(x[i + k]);
    return bp::fold_lanes<kLanes>(lane);
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

using Floats = Array<float>;
using MaybeFloats = std::optional<Floats>;

struct Mean {
    const char* name;
    MaybeFloats array;
};

template <class Rule>
void step(Floats& values, const Floats& gradients, std::initializer_list<Mean> means, const Floats& settings,
          const Array<double>& control, const Rule& rule) {
    const std::int64_t size = values.size(), tiles = size / kTile;
    expect_size(values, tiles * kTile, "values in whole tiles");
    expect_size(gradients, size, "gradients");
    expect_size(settings, tiles * kSettings, "settings");
    expect_size(control, kControlSize, "control");
    const double* block = control.data();
    Arena arena{values.mutable_data(),
                gradients.data(),
                settings.data(),
                tiles,
                {static_cast<float>(block[kLearningRate]), static_cast<float>(block[kGradientScale])},
                {}};
    float** place = arena.means;
    for (const auto& [name, array] : means) {
        if (array) expect_size(*array, size, name);
        *place++ = array ? Floats(*array).mutable_data() : nullptr;
    }
    py::gil_scoped_release release;
    ranges(tiles, size, [&](std::int64_t first, std::int64_t last) { run(first, last, arena, rule); });
}

constexpr float rounded(double number) { return static_cast<float>(number); }

void sgd(Floats values, Floats gradients, MaybeFloats velocity, Floats settings, Array<double> control, double momentum,
         double dampening, bool nesterov) {
    const bool first = control.data()[kAppliedStep] <= 1;
    step(values, gradients, {{"velocity", velocity}}, settings, control,
         SGD{rounded(momentum), rounded(1.0 - dampening), first, nesterov});
}

void adagrad(Floats values, Floats gradients, Floats sum_of_squares, Floats settings, Array<double> control,
             double lr_decay, double eps) {
    const double shrink = 1.0 / (1.0 + (control.data()[kAppliedStep] - 1.0) * lr_decay);
    step(values, gradients, {{"sum_of_squares", sum_of_squares}}, settings, control,
         Adagrad{rounded(shrink), rounded(eps)});
}

void adadelta(Floats values, Floats gradients, Floats mean_square, Floats mean_square_step, Floats settings,
              Array<double> control, double rho, double eps) {
    step(values, gradients, {{"mean_square", mean_square}, {"mean_square_step", mean_square_step}}, settings, control,
         Adadelta{rounded(rho), rounded(1.0 - rho), rounded(eps)});
}

void rmsprop(Floats values, Floats gradients, Floats mean_square, MaybeFloats mean, MaybeFloats velocity,
             Floats settings, Array<double> control, double alpha, double eps, double momentum) {
    step(values, gradients, {{"mean_square", mean_square}, {"mean", mean}, {"velocity", velocity}}, settings, control,
         RMSprop{rounded(alpha), rounded(1.0 - alpha), rounded(eps), rounded(momentum)});
}

void adam(Floats values, Floats gradients, Floats first_moment, Floats second_moment, MaybeFloats largest,
          Floats settings, Array<double> control, double beta1, double beta2, double eps) {
    const double count = control.data()[kAppliedStep];
    step(values, gradients,
         {{"first_moment", first_moment}, {"second_moment", second_moment}, {"largest_second_moment", largest}},
         settings, control,
         Adam{rounded(beta1), rounded(beta2), rounded(1.0 - beta1), rounded(1.0 - beta2),
              rounded(1.0 / (1.0 - std::pow(beta1, count))), rounded(1.0 / std::sqrt(1.0 - std::pow(beta2, count))),
              rounded(eps)});
}

// of_gradient, of_mean: what g and m are multiplied by in m^.
void nadam(Floats values, Floats gradients, Floats first_moment, Floats second_moment, Floats settings,
           Array<double> control, double beta1, double beta2, double eps, double of_gradient, double of_mean) {
    const double count = control.data()[kAppliedStep];
    step(values, gradients, {{"first_moment", first_moment}, {"second_moment", second_moment}}, settings, control,
         NAdam{rounded(beta1), rounded(beta2), rounded(1.0 - beta1), rounded(1.0 - beta2), rounded(of_gradient),
               rounded(of_mean), rounded(1.0 / std::sqrt(1.0 - std::pow(beta2, count))), rounded(eps)});
}

void lion(Floats values, Floats gradients, Floats first_moment, Floats settings, Array<double> control, double beta1,
          double beta2) {
    step(values, gradients, {{"first_moment", first_moment}}, settings, control,
         Lion{rounded(beta1), rounded(beta2), rounded(1.0 - beta1), rounded(1.0 - beta2)});
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
    const auto as_is = [](const char* name) { return arg(name).noconvert(); };
    const py::arg values = as_is("values"), gradients = as_is("gradients"), settings = as_is("settings"),
                  control = as_is("control"), eps("eps"), beta1("beta1"), beta2("beta2");
    const py::arg first_moment = as_is("first_moment"), second_moment = as_is("second_moment"),
                  mean_square = as_is("mean_square"), velocity = as_is("velocity");
    module.def("sgd", &sgd, values, gradients, velocity, settings, control, arg("momentum"), arg("dampening"),
               arg("nesterov"));
    module.def("adagrad", &adagrad, values, gradients, as_is("sum_of_squares"), settings, control, arg("lr_decay"),
               eps);
    module.def("adadelta", &adadelta, values, gradients, mean_square, as_is("mean_square_step"), settings, control,
               arg("rho"), eps);
    module.def("rmsprop", &rmsprop, values, gradients, mean_square, as_is("mean"), velocity, settings, control,
               arg("alpha"), eps, arg("momentum"));
    module.def("adam", &adam, values, gradients, first_moment, second_moment, as_is("largest_second_moment"), settings,
               control, beta1, beta2, eps);
    module.def("nadam", &nadam, values, gradients, first_moment, second_moment, settings, control, beta1, beta2, eps,
               arg("of_gradient"), arg("of_mean"));
    module.def("lion", &lion, values, gradients, first_moment, settings, control, beta1, beta2);
    module.def("sum_of_squares", &sum_of_squares, as_is("array"));
    module.def("moving_average", &moving_average, as_is("averages"), as_is("values"), arg("weight"));
}
