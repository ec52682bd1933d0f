// Group and batch norm on float32: statistics over rows of channels, by groups of channels.
//
// Rows are read as one flat array in steps of `width`, a whole number of rows: with few channels, several rows at once,
// so that the inner loop is long. Element j of a step belongs to channel j % channels.
#include <array>

#include "norm.hpp"

namespace {

using namespace bp::norm;

constexpr int64_t STRIP = 32;        // elements of a step whose sums fit the registers
constexpr int64_t CACHED = 1 << 16;  // elements of a sample that stays in the second-level cache, with its gradients

// Sums of terms(i, i % width), each of so many numbers, over the elements i with the same place in their step; into as
// many arrays of `width`.
template <int COUNT, class Terms>
BP_INLINE void sum_steps(int64_t n, int64_t width, float* __restrict sums, Terms terms) {
    const int64_t whole = n / width * width;
    const auto sum_strip = [&](int64_t j, int64_t count) {
        float lanes[COUNT][STRIP] = {};
        for (int64_t start = j; start < whole; start += width)
            for (int64_t lane = 0; lane < count; ++lane) {
                const std::array<float, COUNT> term = terms(start + lane, j + lane);
                for (int k = 0; k < COUNT; ++k) lanes[k][lane] += term[k];
            }
        for (int k = 0; k < COUNT; ++k) std::copy(lanes[k], lanes[k] + count, sums + k * width + j);
    };
    int64_t j = 0;
    for (; j + STRIP <= width; j += STRIP) sum_strip(j, STRIP);  // a count that the compiler knows
    if (j < width) sum_strip(j, width - j);
    for (int64_t i = whole; i < n; ++i) {
        const std::array<float, COUNT> term = terms(i, i - whole);
        for (int k = 0; k < COUNT; ++k) sums[k * width + i - whole] += term[k];
    }
}

// Sums of a block of n elements about a value near the channel's mean: mean and sum of squared deviations by channel.
// wide: scratch of 3 width.
BP_CLONES void block_statistics(const float* __restrict x, int64_t n, int64_t channels, int64_t width,
                                float* __restrict wide, double* mean, double* squares) {
    const double rows = double(n / channels);
    float* __restrict centre = wide;
    float* __restrict sums = wide + width;
    const float* __restrict products = wide + 2 * width;
    sum_steps<1>(n, width, sums, [=](int64_t i, int64_t) { return std::array<float, 1>{x[i]}; });
    for (int64_t c = 0; c < channels; ++c) {
        double total = 0;
        for (int64_t j = c; j < width; j += channels) total += sums[j];
        for (int64_t j = c; j < width; j += channels) centre[j] = float(total / rows);
    }
    sum_steps<2>(n, width, sums, [=](int64_t i, int64_t j) {
        const float deviation = x[i] - centre[j];
        return std::array<float, 2>{deviation, deviation * deviation};
    });
    for (int64_t c = 0; c < channels; ++c) {
        double rest = 0, square = 0;
        for (int64_t j = c; j < width; j += channels) {
            rest += sums[j];
            square += products[j];
        }
        mean[c] = centre[c] + rest / rows;
        squares[c] = square - rest * rest / rows;
    }
}

// y = (x - centre) scale + shift, each by channel and repeated over a step.
BP_CLONES void scale_block(const float* __restrict x, int64_t n, int64_t width, const float* __restrict centre,
                           const float* __restrict scale, const float* __restrict shift, float* __restrict y) {
    for (int64_t start = 0; start < n; start += width) {
        const int64_t stop = n - start < width ? n - start : width;
        for (int64_t j = 0; j < stop; ++j) y[start + j] = (x[start + j] - centre[j]) * scale[j] + shift[j];
    }
}

// Sums of dy and of dy (x - mean) by channel. wide: scratch of 2 width.
BP_CLONES void block_gradient_sums(const float* __restrict dy, const float* __restrict x, int64_t n, int64_t channels,
                                   int64_t width, const float* __restrict hi, const float* __restrict lo,
                                   float* __restrict wide, double* sums, double* products) {
    const float *sum = wide, *product = wide + width;
    sum_steps<2>(n, width, wide, [=](int64_t i, int64_t j) {
        return std::array<float, 2>{dy[i], dy[i] * ((x[i] - hi[j]) - lo[j])};
    });
    for (int64_t c = 0; c < channels; ++c) {
        sums[c] = products[c] = 0;
        for (int64_t j = c; j < width; j += channels) {
            sums[c] += sum[j];
            products[c] += product[j];
        }
    }
}

// dx = along_dy dy - along_x (x - centre) - constant, each by channel and repeated over a step.
BP_CLONES void project_block(const float* __restrict dy, const float* __restrict x, int64_t n, int64_t width,
                             const float* __restrict centre, const float* __restrict along_dy,
                             const float* __restrict along_x, const float* __restrict constant,
                             float* __restrict dx) {
    for (int64_t start = 0; start < n; start += width) {
        const int64_t stop = n - start < width ? n - start : width;
        for (int64_t j = 0; j < stop; ++j)
            dx[start + j] = along_dy[j] * dy[start + j] - along_x[j] * (x[start + j] - centre[j]) - constant[j];
    }
}

// Samples of rows of channels, in groups of neighbouring channels that share statistics. Batch norm is the case of one
// sample, which is the whole batch, and groups of one channel.
struct Samples {
    int64_t samples, rows, channels, groups, group_channels, block_rows, blocks, width;

    Samples(const Floats& x, const Doubles& statistics) {
        require(x.ndim() == 3 && statistics.ndim() == 2, "expected samples of rows of channels, statistics by group");
        samples = x.shape(0), rows = x.shape(1), channels = x.shape(2), groups = statistics.shape(1);
        require(statistics.shape(0) == samples && groups > 0 && channels > 0 && channels % groups == 0,
                "statistics do not fit");
        group_channels = channels / groups;
        block_rows = std::max<int64_t>(32, 8192 / channels);
        blocks = (rows + block_rows - 1) / block_rows;
        int64_t step_rows = 1;
        while (channels < 64 && (step_rows * channels % 16 != 0 || step_rows * channels < 64)) ++step_rows;
        width = channels * std::clamp<int64_t>(rows, 1, step_rows);
    }
    void check(const Floats& x) const {
        require(x.ndim() == 3 && x.shape(0) == samples && x.shape(1) == rows && x.shape(2) == channels,
                "arrays of two shapes");
    }
    // Calls task(sample, item, first element, elements) for a block of a sample.
    template <class Task>
    void for_block(int64_t item, Task task) const {
        const int64_t sample = item / blocks, first = item % blocks * block_rows;
        task(sample, item, (sample * rows + first) * channels, std::min(block_rows, rows - first) * channels);
    }
    // Does it for each block of each sample, on all threads.
    template <class Task>
    void for_blocks(Task task) const {
#pragma omp parallel for schedule(static) if (samples * rows * channels >= PARALLEL_FROM)
        for (int64_t item = 0; item < samples * blocks; ++item) for_block(item, task);
    }
    template <class Task>
    void for_samples(Task task) const {
#pragma omp parallel for schedule(static) if (samples * blocks * channels >= PARALLEL_FROM)
        for (int64_t sample = 0; sample < samples; ++sample) task(sample);
    }
    // Calls before(...) for all blocks of a sample, between(sample), then after(...) for its blocks: one small sample
    // after the other, so that `after` finds it in the cache, or all large ones at once.
    template <class Before, class Between, class After>
    void for_blocks_twice(Before before, Between between, After after) const {
        if (samples == 1 || rows * channels > CACHED) {
            for_blocks(before);
            for_samples(between);
            for_blocks(after);
            return;
        }
#pragma omp parallel for schedule(static) if (samples * rows * channels >= PARALLEL_FROM)
        for (int64_t sample = 0; sample < samples; ++sample) {
            for (int64_t block = 0; block < blocks; ++block) for_block(sample * blocks + block, before);
            between(sample);
            for (int64_t block = 0; block < blocks; ++block) for_block(sample * blocks + block, after);
        }
    }
    // Repeat the first `channels` of each of the `count` arrays of `width` in `wide`.
    void repeat(std::vector<float>& wide, int64_t count) const {
        for (int64_t array = 0; array < count; ++array)
            for (int64_t j = channels; j < width; ++j) wide[array * width + j] = wide[array * width + j - channels];
    }
};

// Mean and biased variance of each group.
void group_norm_statistics(const Floats& x, Doubles mean, Doubles variance) {
    const Samples all(x, mean);
    require(all.rows > 0, "no rows to take statistics of");
    const float* in = x.data();
    double *means = mean.mutable_data(), *variances = output(variance, all.samples * all.groups);
    pybind11::gil_scoped_release release;
    std::vector<double> partial(static_cast<std::size_t>(all.samples * all.blocks * 2 * all.channels));
    all.for_blocks([&](int64_t, int64_t item, int64_t start, int64_t n) {
        std::vector<float> wide(static_cast<std::size_t>(3 * all.width));
        double* block = partial.data() + item * 2 * all.channels;
        block_statistics(in + start, n, all.channels, all.width, wide.data(), block, block + all.channels);
    });
    // Two sets of values merge by their means and squared deviations. Source: Chan, Golub, LeVeque (1979).
    all.for_samples([&](int64_t sample) {
        double *centre = means + sample * all.groups, *squares = variances + sample * all.groups, count = 0;
        std::fill(centre, centre + all.groups, 0.0);
        std::fill(squares, squares + all.groups, 0.0);
        for (int64_t block = 0; block < all.blocks; ++block) {
            const double rows = double(std::min(all.block_rows, all.rows - block * all.block_rows));
            const double* from = partial.data() + (sample * all.blocks + block) * 2 * all.channels;
            for (int64_t member = 0; member < all.group_channels; ++member) {
                const double share = rows / (count + rows);
                for (int64_t group = 0; group < all.groups; ++group) {
                    const int64_t c = group * all.group_channels + member;
                    const double difference = from[c] - centre[group];
                    centre[group] += difference * share;
                    squares[group] += from[all.channels + c] + difference * difference * count * share;
                }
                count += rows;
            }
        }
        for (int64_t group = 0; group < all.groups; ++group)
            squares[group] = (squares[group] < 0 ? 0 : squares[group]) / count;
    });
}

void group_norm(const Floats& x, const MaybeFloats& gamma, const MaybeFloats& beta, const Doubles& mean,
                const Doubles& rstd, Floats y) {
    const Samples all(x, mean);
    all.check(y);
    const Affine scale(gamma, all.channels, 1), shift(beta, all.channels, 0);
    const float* in = x.data();
    float* out = y.mutable_data();
    const double *means = mean.data(), *rstds = input(rstd, all.samples * all.groups);
    pybind11::gil_scoped_release release;
    all.for_blocks([&](int64_t sample, int64_t, int64_t start, int64_t n) {
        std::vector<float> wide(static_cast<std::size_t>(3 * all.width));
        float *centres = wide.data(), *scales = centres + all.width, *shifts = scales + all.width;
        for (int64_t c = 0; c < all.channels; ++c) {
            const int64_t group = sample * all.groups + c / all.group_channels;
            const double by = rstds[group] * scale[c];
            centres[c] = float(means[group]);
            scales[c] = float(by);
            shifts[c] = float(shift[c] + (centres[c] - means[group]) * by);
        }
        all.repeat(wide, 3);
        scale_block(in + start, n, all.width, centres, scales, shifts, out + start);
    });
}

// constant: mean and rstd did not depend on x, so nothing is projected out.
void group_norm_backward(const Floats& dy, const Floats& x, const MaybeFloats& gamma, const Doubles& mean,
                         const Doubles& rstd, Floats dx, MaybeFloats dgamma, MaybeFloats dbeta, bool accumulate,
                         bool constant) {
    const Samples all(x, mean);
    all.check(dy);
    all.check(dx);
    const Affine scale(gamma, all.channels, 1);
    const float *grad = dy.data(), *in = x.data();
    float *out = dx.mutable_data(), *dscale = output(dgamma, all.channels), *dshift = output(dbeta, all.channels);
    const double *means = mean.data(), *rstds = input(rstd, all.samples * all.groups);
    pybind11::gil_scoped_release release;

    std::vector<double> partial(static_cast<std::size_t>(all.samples * all.blocks * 2 * all.channels));
    const auto sum_block = [&](int64_t sample, int64_t item, int64_t start, int64_t n) {
        std::vector<float> wide(static_cast<std::size_t>(4 * all.width));
        float *hi = wide.data(), *lo = hi + all.width;
        for (int64_t c = 0; c < all.channels; ++c) {
            const double centre = means[sample * all.groups + c / all.group_channels];
            hi[c] = float(centre);
            lo[c] = float(centre - hi[c]);
        }
        all.repeat(wide, 2);
        double* block = partial.data() + item * 2 * all.channels;
        block_gradient_sums(grad + start, in + start, n, all.channels, all.width, hi, lo, lo + all.width, block,
                            block + all.channels);
    };
    // The sums of dy, then those of dy (x - mean), of each channel of each sample.
    std::vector<double> totals(static_cast<std::size_t>(all.samples * 2 * all.channels), 0.0);
    const auto add_blocks = [&](int64_t sample) {
        double* total = totals.data() + sample * 2 * all.channels;
        const double* from = partial.data() + sample * all.blocks * 2 * all.channels;
        for (int64_t block = 0; block < all.blocks; ++block)
            for (int64_t j = 0; j < 2 * all.channels; ++j) total[j] += from[block * 2 * all.channels + j];
    };

    // dx = rstd (g - mean(g) - (x - hi - lo) rstd^2 mean(g (x - mean))), sorted by what it multiplies.
    const auto write_block = [&](int64_t sample, int64_t, int64_t start, int64_t n) {
        std::vector<float> wide(static_cast<std::size_t>(4 * all.width));
        float *hi = wide.data(), *along_dy = hi + all.width, *along_x = along_dy + all.width,
              *rest = along_x + all.width;
        const double *sums = totals.data() + sample * 2 * all.channels, *products = sums + all.channels;
        const double count = double(all.rows * all.group_channels);
        for (int64_t group = 0; group < all.groups; ++group) {
            const double centre = means[sample * all.groups + group], by = rstds[sample * all.groups + group];
            const int64_t first = group * all.group_channels, last = first + all.group_channels;
            double along_ones = 0, along_xhat = 0;
            for (int64_t c = first; c < last; ++c) {
                along_ones += scale[c] * sums[c] / count;
                along_xhat += scale[c] * products[c] / count;
            }
            for (int64_t c = first; c < last; ++c) {
                hi[c] = float(centre);
                along_dy[c] = float(by * scale[c]);
                along_x[c] = float(by * by * by * along_xhat);
                rest[c] = float(by * along_ones + by * by * by * along_xhat * (hi[c] - centre));
            }
        }
        if (constant) {
            std::fill(hi, hi + all.width, 0.0f);
            std::fill(rest, rest + all.width, 0.0f);
        } else if (count == 1) {
            // Nothing of a single element is left; along_dy dy, rounded by itself, would not cancel the rest exactly.
            std::fill(along_dy, hi + 4 * all.width, 0.0f);
        }
        all.repeat(wide, 4);
        if (constant) {
            scale_block(grad + start, n, all.width, hi, along_dy, rest, out + start);
        } else {
            project_block(grad + start, in + start, n, all.width, hi, along_dy, along_x, rest, out + start);
        }
    };
    all.for_blocks_twice(sum_block, add_blocks, write_block);

    std::vector<double> total(static_cast<std::size_t>(2 * all.channels), 0.0);
    for (int64_t sample = 0; sample < all.samples; ++sample) {
        const double *sums = totals.data() + sample * 2 * all.channels, *products = sums + all.channels;
        for (int64_t c = 0; c < all.channels; ++c) {
            total[c] += products[c] * rstds[sample * all.groups + c / all.group_channels];
            total[all.channels + c] += sums[c];
        }
    }
    deliver(total.data(), all.channels, dscale, accumulate);
    deliver(total.data() + all.channels, all.channels, dshift, accumulate);
}

}  // namespace

BP_NATIVE(norm_groups) {
    const pybind11::arg accumulate("accumulate"), constant("constant");
    module.def("group_norm_statistics", &group_norm_statistics, as_is("x"), as_is("mean"), as_is("variance"));
    module.def("group_norm", &group_norm, as_is("x"), as_is("gamma"), as_is("beta"), as_is("mean"), as_is("rstd"),
               as_is("y"));
    module.def("group_norm_backward", &group_norm_backward, as_is("dy"), as_is("x"), as_is("gamma"), as_is("mean"),
               as_is("rstd"), as_is("dx"), as_is("dgamma"), as_is("dbeta"), accumulate, constant);
}
