// Pooling on float32 images (N, H, W, C): windows as loops over outputs and taps, vectors along the channels.
//
// Forward runs over rows of outputs. Backward runs over rows of inputs and gathers from every window that holds them:
// no two threads write one element, and the shares of overlapping windows add in the order of their taps.
#include <algorithm>
#include <limits>
#include <utility>

#include "native.hpp"

namespace {

using std::int64_t;
using Floats = bp::Array<float>;
using Pair = std::pair<int64_t, int64_t>;

constexpr int64_t PARALLEL_FROM = 1 << 17;  // elements; below, waking the threads (20 to 40 us) costs more than they save
constexpr int64_t STRIP = 64;               // channels whose sums fit the registers

// One axis of the windows: output o looks with tap t at input o stride - padding + t dilation.
struct Axis {
    int64_t inputs, outputs, kernel, stride, padding, dilation;

    int64_t input(int64_t output, int64_t tap) const { return output * stride - padding + tap * dilation; }
    bool inside(int64_t output, int64_t tap) const { return input(output, tap) >= 0 && input(output, tap) < inputs; }
    // The first input that the window of an output covers, and the one behind the last; without dilation.
    Pair covered(int64_t output) const {
        const int64_t first = input(output, 0), last = std::min(first + kernel, inputs);
        return {std::min(std::max<int64_t>(first, 0), last), last};
    }
    // The output that looks with `tap` at `input`, or -1.
    int64_t output(int64_t input, int64_t tap) const {
        const int64_t distance = input + padding - tap * dilation;
        const bool exists = distance >= 0 && distance % stride == 0 && distance / stride < outputs;
        return exists ? distance / stride : -1;
    }
};

struct Windows {
    int64_t images, channels;
    Axis rows, columns;

    int64_t input_size() const { return images * rows.inputs * columns.inputs * channels; }
    int64_t input_row() const { return columns.inputs * channels; }
    int64_t output_row() const { return columns.outputs * channels; }
    std::size_t taps() const { return static_cast<std::size_t>(rows.kernel * columns.kernel); }
};

// An element of the image that a window holds: its offset in the image and its tap.
struct Member {
    int64_t offset, tap;
};

// Fills `members` with the elements of the window of output (row, column), in order of the taps; returns their count.
BP_INLINE int64_t find_members(const Windows& windows, int64_t row, int64_t column, Member* members) {
    int64_t count = 0;
    for (int64_t r = 0; r < windows.rows.kernel; ++r) {
        if (!windows.rows.inside(row, r)) continue;
        for (int64_t c = 0; c < windows.columns.kernel; ++c)
            if (windows.columns.inside(column, c))
                members[count++] = {windows.rows.input(row, r) * windows.input_row() +
                                        windows.columns.input(column, c) * windows.channels,
                                    r * windows.columns.kernel + c};
    }
    return count;
}

// One row of outputs of the image x. members, winner: scratch for the elements of one window, and for one pixel. Taps
// are kept as wide as the numbers until the end, so that both fill the same vectors.
template <class Index>
BP_INLINE void max_row(const Windows& windows, const float* x, int64_t row, Member* members,
                       std::int32_t* __restrict winner, float* y, Index* index) {
    for (int64_t column = 0; column < windows.columns.outputs; ++column) {
        float* __restrict best = y + column * windows.channels;
        Index* __restrict taps = index + column * windows.channels;
        const int64_t count = find_members(windows, row, column, members);
        const float* __restrict first = x + (count ? members[0].offset : 0);
        const std::int32_t first_tap = count ? static_cast<std::int32_t>(members[0].tap) : 0;
        for (int64_t j = 0; j < windows.channels; ++j) {
            best[j] = count ? first[j] : -std::numeric_limits<float>::infinity();
            winner[j] = first_tap;
        }
        for (int64_t m = 1; m < count; ++m) {
            const float* __restrict candidate = x + members[m].offset;
            const std::int32_t tap = static_cast<std::int32_t>(members[m].tap);
            for (int64_t j = 0; j < windows.channels; ++j) {
                const bool wins = (candidate[j] > best[j]) | (candidate[j] != candidate[j]);
                best[j] = wins ? candidate[j] : best[j];
                winner[j] = wins ? tap : winner[j];
            }
        }
        for (int64_t j = 0; j < windows.channels; ++j) taps[j] = static_cast<Index>(winner[j]);
    }
}

// For all windows that hold elements of one row of inputs, calls begin(output row) and then, for elements in it,
// add(output column, tap, offset in the row of inputs).
template <class Begin, class Add>
BP_INLINE void gather_row(const Windows& windows, int64_t row, float* dx, Begin begin, Add add) {
    std::fill(dx, dx + windows.input_row(), 0.0f);
    for (int64_t r = 0; r < windows.rows.kernel; ++r) {
        const int64_t output_row = windows.rows.output(row, r);
        if (output_row < 0) continue;
        begin(output_row);
        for (int64_t c = 0; c < windows.columns.kernel; ++c)
            for (int64_t column = 0; column < windows.columns.outputs; ++column)
                if (windows.columns.inside(column, c))
                    add(column, r * windows.columns.kernel + c, windows.columns.input(column, c) * windows.channels);
    }
}

// winners: scratch for one row of outputs.
template <class Index>
BP_INLINE void max_gather(const Windows& windows, const float* dy, const Index* index, int64_t row,
                          std::int32_t* __restrict winners, float* dx) {
    const float* grads = dy;
    const auto begin = [&](int64_t output_row) {
        const Index* __restrict from = index + output_row * windows.output_row();
        for (int64_t j = 0; j < windows.output_row(); ++j) winners[j] = from[j];
        grads = dy + output_row * windows.output_row();
    };
    gather_row(windows, row, dx, begin, [&](int64_t column, int64_t tap, int64_t to) {
        const float* __restrict grad = grads + column * windows.channels;
        const std::int32_t* __restrict winner = winners + column * windows.channels;
        float* __restrict out = dx + to;
        const std::int32_t wanted = static_cast<std::int32_t>(tap);
        for (int64_t j = 0; j < windows.channels; ++j) out[j] += winner[j] == wanted ? grad[j] : 0.0f;
    });
}

// BP_CLONES takes no templates.
BP_CLONES void max_forward(const Windows& windows, const float* x, int64_t row, Member* members, std::int32_t* winner,
                           float* y, std::uint8_t* index) {
    max_row(windows, x, row, members, winner, y, index);
}
BP_CLONES void max_forward_wide(const Windows& windows, const float* x, int64_t row, Member* members,
                                std::int32_t* winner, float* y, std::uint16_t* index) {
    max_row(windows, x, row, members, winner, y, index);
}
BP_CLONES void max_backward(const Windows& windows, const float* dy, const std::uint8_t* index, int64_t row,
                            std::int32_t* winners, float* dx) {
    max_gather(windows, dy, index, row, winners, dx);
}
BP_CLONES void max_backward_wide(const Windows& windows, const float* dy, const std::uint16_t* index, int64_t row,
                                 std::int32_t* winners, float* dx) {
    max_gather(windows, dy, index, row, winners, dx);
}

// Terms that a float32 sum takes before it goes into a double: a long one loses more of each term the larger it grows.
constexpr int64_t RUN = 128;

// The pixels of one window inside the image: rows x columns of them from `first` on.
struct Pixels {
    const float* first;
    int64_t rows, columns, row_step, step;
};

// y = weight times the sum of the pixels, in each of at most STRIP channels.
BP_INLINE void mean_of_channels(const Pixels& pixels, int64_t channels, float weight, float* __restrict y) {
    float sums[STRIP];
    double totals[STRIP];
    for (int64_t j = 0; j < channels; ++j) sums[j] = 0, totals[j] = 0;
    int64_t run = 0;
    bool several = false;
    for (int64_t r = 0; r < pixels.rows; ++r) {
        for (int64_t c = 0; c < pixels.columns;) {
            const int64_t stop = std::min(pixels.columns, c + RUN - run);
            run += stop - c;
            for (; c < stop; ++c) {
                const float* __restrict x = pixels.first + r * pixels.row_step + c * pixels.step;
                for (int64_t j = 0; j < channels; ++j) sums[j] += x[j];
            }
            if (run < RUN) continue;
            for (int64_t j = 0; j < channels; ++j) totals[j] += sums[j];
            for (int64_t j = 0; j < channels; ++j) sums[j] = 0;
            run = 0;
            several = true;
        }
    }
    if (several)
        for (int64_t j = 0; j < channels; ++j) y[j] = float((totals[j] + sums[j]) * weight);
    else
        for (int64_t j = 0; j < channels; ++j) y[j] = sums[j] * weight;
}

BP_CLONES void avg_forward(const Windows& windows, const float* x, const float* weights, int64_t row, float* y) {
    const auto [top, bottom] = windows.rows.covered(row);
    for (int64_t column = 0; column < windows.columns.outputs; ++column) {
        const auto [left, right] = windows.columns.covered(column);
        Pixels pixels = {x + top * windows.input_row() + left * windows.channels, bottom - top, right - left,
                         windows.input_row(), windows.channels};
        // A count that the compiler knows keeps the sums in registers.
        float *out = y + column * windows.channels, *end = out + windows.channels;
        for (; end - out >= STRIP; out += STRIP, pixels.first += STRIP)
            mean_of_channels(pixels, STRIP, weights[column], out);
        for (; end - out >= STRIP / 4; out += STRIP / 4, pixels.first += STRIP / 4)
            mean_of_channels(pixels, STRIP / 4, weights[column], out);
        if (out != end) mean_of_channels(pixels, end - out, weights[column], out);
    }
}

BP_CLONES void avg_backward(const Windows& windows, const float* dy, const float* weights, int64_t row, float* dx) {
    int64_t first = 0;
    const auto begin = [&](int64_t output_row) { first = output_row * windows.columns.outputs; };
    gather_row(windows, row, dx, begin, [&](int64_t column, int64_t, int64_t to) {
        const float* __restrict grad = dy + (first + column) * windows.channels;
        const float weight = weights[first + column];
        float* __restrict out = dx + to;
        for (int64_t j = 0; j < windows.channels; ++j) out[j] += grad[j] * weight;
    });
}

// Arguments and entry points -----------------------------------------------------------------------------------------

void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(std::string("native pool kernel: ") + what);
}

// Whatever sizes come, the kernels stay inside arrays of these shapes; that they belong together is checked in bp/ops.
Windows windows_of(const Floats& inputs, const Floats& outputs, const Pair& kernel, const Pair& stride,
                   const Pair& padding, const Pair& dilation) {
    require(inputs.ndim() == 4 && outputs.ndim() == 4, "expected images (N, H, W, C)");
    require(inputs.shape(0) == outputs.shape(0) && inputs.shape(3) == outputs.shape(3), "images or channels differ");
    require(std::min({kernel.first, kernel.second, stride.first, stride.second, dilation.first, dilation.second}) >= 1,
            "sizes below 1");
    return {inputs.shape(0), inputs.shape(3),
            {inputs.shape(1), outputs.shape(1), kernel.first, stride.first, padding.first, dilation.first},
            {inputs.shape(2), outputs.shape(2), kernel.second, stride.second, padding.second, dilation.second}};
}

// Calls task(image, row) for all rows of all images, on all threads.
template <class Task>
void for_rows(const Windows& windows, int64_t rows, Task task) {
    if (windows.channels == 0) return;
#pragma omp parallel for schedule(static) if (windows.input_size() >= PARALLEL_FROM)
    for (int64_t item = 0; item < windows.images * rows; ++item) task(item / rows, item % rows);
}

template <class Index, void (*forward)(const Windows&, const float*, int64_t, Member*, std::int32_t*, float*, Index*)>
void max_pool2d(const Floats& x, Pair kernel, Pair stride, Pair padding, Pair dilation, Floats y,
                bp::Array<Index> index) {
    const Windows windows = windows_of(x, y, kernel, stride, padding, dilation);
    require(index.size() == y.size(), "y and index differ in size");
    const float* in = x.data();
    float* out = y.mutable_data();
    Index* winners = index.mutable_data();
    pybind11::gil_scoped_release release;
    for_rows(windows, windows.rows.outputs, [&](int64_t image, int64_t row) {
        const int64_t offset = (image * windows.rows.outputs + row) * windows.output_row();
        std::vector<Member> members(windows.taps());
        std::vector<std::int32_t> winner(static_cast<std::size_t>(windows.channels));
        forward(windows, in + image * windows.rows.inputs * windows.input_row(), row, members.data(), winner.data(),
                out + offset, winners + offset);
    });
}

template <class Index, void (*backward)(const Windows&, const float*, const Index*, int64_t, std::int32_t*, float*)>
void max_pool2d_backward(const Floats& dy, const bp::Array<Index>& index, Pair kernel, Pair stride, Pair padding,
                         Pair dilation, Floats dx) {
    const Windows windows = windows_of(dx, dy, kernel, stride, padding, dilation);
    require(index.size() == dy.size(), "dy and index differ in size");
    const float* grad = dy.data();
    const Index* winners = index.data();
    float* out = dx.mutable_data();
    pybind11::gil_scoped_release release;
    for_rows(windows, windows.rows.inputs, [&](int64_t image, int64_t row) {
        const int64_t offset = image * windows.rows.outputs * windows.output_row();
        std::vector<std::int32_t> wide(static_cast<std::size_t>(windows.output_row()));
        backward(windows, grad + offset, winners + offset, row, wide.data(),
                 out + (image * windows.rows.inputs + row) * windows.input_row());
    });
}

// weights: (H', W'), one divided by the count of each window.
const float* checked_weights(const Floats& weights, const Windows& windows) {
    require(weights.size() == windows.rows.outputs * windows.columns.outputs, "weights have the wrong size");
    return weights.data();
}

void avg_pool2d(const Floats& x, const Floats& weights, Pair kernel, Pair stride, Pair padding, Floats y) {
    const Windows windows = windows_of(x, y, kernel, stride, padding, {1, 1});
    const float *in = x.data(), *shares = checked_weights(weights, windows);
    float* out = y.mutable_data();
    pybind11::gil_scoped_release release;
    for_rows(windows, windows.rows.outputs, [&](int64_t image, int64_t row) {
        avg_forward(windows, in + image * windows.rows.inputs * windows.input_row(),
                    shares + row * windows.columns.outputs, row,
                    out + (image * windows.rows.outputs + row) * windows.output_row());
    });
}

void avg_pool2d_backward(const Floats& dy, const Floats& weights, Pair kernel, Pair stride, Pair padding, Floats dx) {
    const Windows windows = windows_of(dx, dy, kernel, stride, padding, {1, 1});
    const float *grad = dy.data(), *shares = checked_weights(weights, windows);
    float* out = dx.mutable_data();
    pybind11::gil_scoped_release release;
    for_rows(windows, windows.rows.inputs, [&](int64_t image, int64_t row) {
        avg_backward(windows, grad + image * windows.rows.outputs * windows.output_row(), shares, row,
                     out + (image * windows.rows.inputs + row) * windows.input_row());
    });
}

}  // namespace

BP_NATIVE(pool) {
    // Arrays are taken as they are: a silent copy of a destination would lose the result.
    const auto as_is = [](const char* name) { return pybind11::arg(name).noconvert(); };
    const pybind11::arg kernel("kernel"), stride("stride"), padding("padding"), dilation("dilation");
    module.def("max_pool2d", &max_pool2d<std::uint8_t, max_forward>, as_is("x"), kernel, stride, padding, dilation,
               as_is("y"), as_is("index"));
    module.def("max_pool2d", &max_pool2d<std::uint16_t, max_forward_wide>, as_is("x"), kernel, stride, padding,
               dilation, as_is("y"), as_is("index"));
    module.def("max_pool2d_backward", &max_pool2d_backward<std::uint8_t, max_backward>, as_is("dy"), as_is("index"),
               kernel, stride, padding, dilation, as_is("dx"));
    module.def("max_pool2d_backward", &max_pool2d_backward<std::uint16_t, max_backward_wide>, as_is("dy"),
               as_is("index"), kernel, stride, padding, dilation, as_is("dx"));
    module.def("avg_pool2d", &avg_pool2d, as_is("x"), as_is("weights"), kernel, stride, padding, as_is("y"));
    module.def("avg_pool2d_backward", &avg_pool2d_backward, as_is("dy"), as_is("weights"), kernel, stride, padding,
               as_is("dx"));
}
