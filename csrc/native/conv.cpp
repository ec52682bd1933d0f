// Convolution of images (N, H, W, C) as an implicit matrix product: forward, data gradient, weight gradient.
//
// Forward and data gradient are one computation, "gather": an output pixel is a sum over kernel positions of an input
// pixel times a small matrix. The data gradient of stride s falls into s x s phases, the output pixels of one residue,
// and each phase is such a sum of stride 1 with every s-th kernel position. Weights are packed in panels of one or two
// vectors of output channels; input pixels are read where they lie. Where a window leaves the image, the block of input
// under a task is copied with its border of zeros into a buffer of the thread; no larger copy is ever made.
//
// The weight gradient is a sum over pixels of the outer product of input patch and output gradient. The pixels are
// split by shape alone, each split sums in its own buffer, and the buffers are added in order.
#include <array>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "conv_plan.hpp"
#include "native.hpp"

namespace bp {
namespace conv {
namespace {

// How the output channels of a group are cut into panels: two vectors wide, the last one narrower where that suffices.
struct Panels {
    Panels(int64_t channels, bool dot) : channels(channels), dot(dot) {
        const int64_t wide = 2 * isa.lanes;
        count = dot ? 1 : divide_up(channels, wide);
        width = dot ? channels * isa.lanes : divide_up(channels, isa.lanes) * isa.lanes;
    }
    int64_t first(int64_t panel) const { return panel * 2 * isa.lanes; }
    int64_t columns(int64_t panel) const {
        return dot ? channels : std::min<int64_t>(2 * isa.lanes, channels - first(panel));
    }
    int vectors(int64_t panel) const { return columns(panel) > isa.lanes ? 2 : 1; }
    int64_t channels;
    bool dot;
    int64_t count;
    int64_t width;  // floats of all panels of a group in one row of packed weights
};

// Rows of a packed phase: one for each float under the window, or for `dot` one for each vector of a run.
int64_t packed_rows(const Phase& phase, bool dot) {
    return dot ? static_cast<int64_t>(phase.run_offsets.size()) * divide_up(phase.run_length, isa.lanes)
               : phase.weight_rows;
}

void pack(const Gather& g, const Phase& phase, const Panels& panels, int64_t job, const float* weight, float* to) {
    const int64_t group = job / panels.count, panel = job % panels.count;
    const int64_t lanes = isa.lanes, first = panels.first(panel), columns = panels.columns(panel);
    const int64_t channels = g.depthwise ? 1 : g.in_per_group;
    const int64_t width = panels.dot ? columns * lanes : panels.vectors(panel) * lanes;
    if (panels.dot || columns < width) std::memset(to, 0, packed_rows(phase, panels.dot) * width * sizeof(float));
    int64_t k = 0;  // index under the window
    for (const Position& row : phase.rows)
        for (const Position& column : phase.columns) {
            const float* from = weight + group * g.weight_group + row.kernel * g.weight_row +
                                column.kernel * g.weight_column + first * g.weight_lane;
            if (panels.dot) {
                for (int64_t c = 0; c < channels; ++c) {
                    const int64_t run = (k + c) / phase.run_length, at = (k + c) % phase.run_length;
                    float* vectors = to + (run * divide_up(phase.run_length, lanes) + at / lanes) * width + at % lanes;
                    for (int64_t o = 0; o < columns; ++o)
                        vectors[o * lanes] = from[o * g.weight_lane + c * g.weight_channel];
                }
            } else {
                for (int64_t o = 0; o < columns; ++o)
                    for (int64_t c = 0; c < channels; ++c)
                        to[(k + c) * width + o] = from[o * g.weight_lane + c * g.weight_channel];
            }
            k += channels;
        }
}

// A depthwise convolution is one group again, in which a lane stands for a channel of input and output at once.
bool join_depthwise(Gather& g) {
    g.depthwise = g.groups > 1 && g.in_per_group == 1 && g.out_per_group == 1;
    if (g.depthwise) {
        g.weight_lane = g.weight_group;
        g.out_per_group = g.groups;
        g.groups = 1;
    }
    return g.depthwise;
}

int64_t thread_count() {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

void run_gather(Gather g, const float* input, const float* weight, const float* bias, float* output) {
    join_depthwise(g);
    plan(g);
    if (g.images == 0) return;
    const bool dot = !g.depthwise && g.out_per_group <= 4 && g.in_per_group >= isa.lanes;
    const Panels panels(g.out_per_group, dot);
    const int64_t jobs = g.groups * panels.count;
    int64_t total = 0;
    for (Phase& phase : g.phases) {
        phase.weight_offset = total;
        total += g.groups * packed_rows(phase, dot) * panels.width;
    }
    float* packed = packed_weights.floats(total);
    const auto panel_at = [&](const Phase& phase, int64_t job) {
        return packed + phase.weight_offset +
               packed_rows(phase, dot) * (job / panels.count * panels.width + panels.first(job % panels.count));
    };
    float* padded_bias = bias ? packed_bias.floats(g.groups * panels.width) : nullptr;
    for (int64_t group = 0; bias && group < g.groups; ++group)
        isa.copy_row(padded_bias + group * panels.width, 0, bias + group * g.out_per_group, g.out_per_group,
                     panels.width - g.out_per_group);
    const Blocks blocks(g);
    // Where there are few blocks, the panels of one block are shared out as well, each with a copy of its input.
    const int64_t shares = blocks.count < 8 ? jobs : 1;
#pragma omp parallel if (g.multiplications >= PARALLEL_FROM)
    {
#pragma omp for schedule(static)
        for (int64_t job = 0; job < jobs; ++job)
            for (const Phase& phase : g.phases) pack(g, phase, panels, job, weight, panel_at(phase, job));
        PixelTable table;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < blocks.count * shares; ++task) {
            const Block block = blocks.at(g, task / shares);
            const float* patch = patch_of(g, block, input);
            for (const Phase& phase : g.phases) {
                Pixels pixels = table.of(g, phase, block);
                if (shares == 1 && phase.three_columns)  // the block that this thread will most likely take next
                    blocks.look_ahead(g, task + thread_count(), input, pixels, jobs);
                const Runs runs = phase.runs();
                for (int64_t job = task % shares; job < jobs; job += shares) {
                    const int64_t group = job / panels.count, p = job % panels.count, first = panels.first(p);
                    const Panel panel{panel_at(phase, job), bias ? padded_bias + group * panels.width + first : nullptr,
                                      panels.columns(p), panels.vectors(p), g.depthwise};
                    float* out = output + out_offset(g, phase, block) + group * g.out_per_group + first;
                    pixels.in = patch + (g.depthwise ? first : group * g.in_per_group);
                    if (dot) {
                        isa.dot(pixels, runs, panel, out);
                    } else if (!phase.three_columns || !isa.gather_rows(pixels, block.w, runs, panel, out)) {
                        isa.gather(pixels, runs, panel, out);
                    }
                    pixels.ahead += pixels.ahead_bytes * pixels.count;
                }
            }
        }
    }
}

// Pixels of one split at least, the most splits, and floats of all their sums: enough for load balance, few enough to
// add up cheaply. They follow from the shape alone, and so does the order of every sum.
constexpr int64_t SPLIT_PIXELS = 2048, SPLITS = 32, SPLIT_FLOATS = 1 << 22;
// Every register block passes over these floats of x and dy: they should stay in the first-level cache.
constexpr int64_t CHUNK_FLOATS = 6 * 1024;
constexpr int64_t COPY_ROWS = 96;

// Whether vectors at `from` and whole pixels after it lie within lines of the cache.
bool aligned(const float* from, int64_t channels) {
    return reinterpret_cast<uintptr_t>(from) % (isa.lanes * 4) == 0 && channels % isa.lanes == 0;
}

// The columns of dy that a panel needs, one pixel after the other and filled up with zeros; `pixels` then finds them.
const float* copy_gradient(Pixels& pixels, const float* from, int64_t columns, int64_t width) {
    float* copy = gradient_memory.floats(pixels.count * width);
    int64_t* offsets = gradient_table.integers(pixels.count);
    isa.copy_pixels(copy, from, pixels.out_offsets, pixels.count, columns, static_cast<int>(width / isa.lanes));
    for (int64_t i = 0; i < pixels.count; ++i) offsets[i] = i * width;
    pixels.out_offsets = offsets;
    return copy;
}

// Of each split, for each panel of each group: the rows of the weight gradient, rows to spare, and the bias gradient.
struct Sums {
    Panels panels;
    int64_t groups, rows;
    float* data = nullptr;

    int64_t width(int64_t job) const { return panels.vectors(job % panels.count) * isa.lanes; }
    int64_t height() const { return rows + isa.rows + 1; }
    int64_t floats() const { return groups * height() * panels.width; }
    float* of(int64_t split, int64_t job) const {
        return data + split * floats() +
               height() * (job / panels.count * panels.width + panels.first(job % panels.count));
    }
    float* bias_of(int64_t split, int64_t job) const { return of(split, job) + (height() - 1) * width(job); }
};

// Adds the splits up in order and writes one panel.
void finish(const Sums& sums, int64_t splits, int64_t job, int64_t out_per_group, float* dweight, float* dbias,
            bool accumulate) {
    const int64_t width = sums.width(job), p = job % sums.panels.count;
    float* total = sums.of(0, job);
    for (int64_t split = 1; split < splits; ++split) {
        const float* part = sums.of(split, job);
        for (int64_t i = 0; i < sums.height() * width; ++i) total[i] += part[i];
    }
    const float* bias = sums.bias_of(0, job);
    for (int64_t o = 0; o < sums.panels.columns(p); ++o) {
        const int64_t channel = job / sums.panels.count * out_per_group + sums.panels.first(p) + o;
        if (dbias) dbias[channel] = accumulate ? dbias[channel] + bias[o] : bias[o];
        float* row = dweight + channel * sums.rows;
        for (int64_t k = 0; dweight && k < sums.rows; ++k)
            row[k] = accumulate ? row[k] + total[k * width + o] : total[k * width + o];
    }
}

void run_weight_gradient(const Geometry& s, const float* dy, const float* x, float* dweight, float* dbias,
                         bool accumulate) {
    Gather g = forward_gather(s);
    join_depthwise(g);
    plan(g);
    const Phase& phase = g.phases[0];
    const Runs runs = phase.runs();
    const Blocks blocks(g);
    Sums sums{Panels(g.out_per_group, false), g.groups, phase.weight_rows};
    const int64_t most = std::max<int64_t>(1, std::min({SPLITS, SPLIT_FLOATS / sums.floats(), blocks.count}));
    const int64_t splits = std::clamp<int64_t>(s.n * s.out_h * s.out_w / SPLIT_PIXELS, 1, most);
    const int64_t jobs = g.groups * sums.panels.count, shares = splits < 8 ? jobs : 1;
    const int64_t row_pixels = CHUNK_FLOATS / (s.c * std::min(s.stride_w, s.kernel_w) + 2 * isa.lanes) + 32;
    sums.data = partial_sums.floats(splits * sums.floats());
    int64_t* offsets = row_table.integers(sums.rows + isa.rows);
    for (int64_t k = 0; k < sums.rows + isa.rows; ++k) {
        const int64_t row = std::min(k, sums.rows - 1);
        offsets[k] = phase.run_offsets[row / phase.run_length] + row % phase.run_length;
    }
#pragma omp parallel if (g.multiplications >= PARALLEL_FROM)
    {
        PixelTable table;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < splits * shares; ++task) {
            const int64_t split = task / shares;
            for (int64_t job = task % shares; job < jobs; job += shares)
                std::memset(sums.of(split, job), 0, sums.height() * sums.width(job) * sizeof(float));
            for (int64_t b = split * blocks.count / splits; b < (split + 1) * blocks.count / splits; ++b) {
                const Block block = blocks.at(g, b);
                const float* patch = patch_of(g, block, x);
                const Pixels all = table.of(g, phase, block);
                const float* block_dy = dy + out_offset(g, phase, block);
                const int64_t chunk = divide_up(row_pixels, block.w) * block.w;
                for (int64_t first = 0; first < all.count; first += chunk)
                    for (int64_t job = task % shares; job < jobs; job += shares) {
                        const int64_t group = job / sums.panels.count, p = job % sums.panels.count;
                        const int64_t column = sums.panels.first(p), width = sums.width(job);
                        const int vectors = sums.panels.vectors(p);
                        Pixels pixels = all;
                        pixels.in = patch + (g.depthwise ? column : group * g.in_per_group);
                        pixels.in_offsets += first;
                        pixels.out_offsets += first;
                        pixels.count = std::min(chunk, all.count - first);
                        const float* from = block_dy + group * g.out_per_group + column;
                        // A whole vector could reach into the next pixel; and vectors that cross a line of the cache,
                        // as NumPy's memory makes them, cost a tenth of the time where there are many passes.
                        if (sums.panels.columns(p) < width || (sums.rows >= COPY_ROWS && !aligned(from, s.out_c)))
                            from = copy_gradient(pixels, from, sums.panels.columns(p), width);
                        float* to = sums.of(split, job);
                        if (dweight &&
                            !(phase.three_columns && isa.outer_rows(pixels, from, block.w, runs, vectors, to)))
                            isa.outer(pixels, from, offsets, sums.rows, vectors, g.depthwise, to);
                        if (dbias) isa.column_sums(pixels, from, vectors, sums.bias_of(split, job));
                    }
            }
        }
#pragma omp for schedule(static)
        for (int64_t job = 0; job < jobs; ++job)
            finish(sums, splits, job, g.out_per_group, dweight, dbias, accumulate);
    }
}

void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("bp.cpu._native convolution expected ") + what);
}

using Pair = std::pair<int64_t, int64_t>;

// `kernel`: the shape of the weights, (out, kh, kw, in / groups).
Geometry geometry(const Array<float>& x, const std::array<int64_t, 4>& kernel, const Array<float>& y, Pair stride,
                  Pair padding, Pair dilation, int64_t groups) {
    expect(x.ndim() == 4 && y.ndim() == 4, "images of rank 4");
    expect(groups > 0 && stride.first > 0 && stride.second > 0 && dilation.first > 0 && dilation.second > 0 &&
               padding.first >= 0 && padding.second >= 0,
           "positive stride, dilation and groups, and padding that is not negative");
    const Geometry s{x.shape(0),   x.shape(1),    x.shape(2),     x.shape(3),      y.shape(1),     y.shape(2),
                     y.shape(3),   kernel[1],     kernel[2],      kernel[3],       kernel[0] / groups,
                     stride.first, stride.second, padding.first,  padding.second,  dilation.first, dilation.second,
                     groups};
    expect(s.kernel_h > 0 && s.kernel_w > 0 && s.in_per_group > 0 && s.out_per_group > 0, "weights that are not empty");
    expect(s.h > 0 && s.w > 0 && s.out_h > 0 && s.out_w > 0, "images that are not empty");
    expect(y.shape(0) == s.n && s.c == groups * s.in_per_group && s.out_c == groups * s.out_per_group &&
               s.out_c == kernel[0],
           "batch and channels of input, weights and output to agree");
    return s;
}

std::array<int64_t, 4> shape_of(const Array<float>& weight) {
    expect(weight.ndim() == 4, "weights of rank 4");
    return {weight.shape(0), weight.shape(1), weight.shape(2), weight.shape(3)};
}

// The data of an optional array of `size` elements; null for None.
float* optional(const py::object& given, int64_t size) {
    if (given.is_none()) return nullptr;
    expect(Array<float>::check_(given), "C-contiguous float32 arrays");
    auto array = py::reinterpret_borrow<Array<float>>(given);
    expect(array.size() == size, "parameters that fit the images");
    return array.mutable_data();
}

void conv2d(const Array<float>& x, const Array<float>& weight, const py::object& bias, Array<float>& y, Pair stride,
            Pair padding, Pair dilation, int64_t groups) {
    const Geometry s = geometry(x, shape_of(weight), y, stride, padding, dilation, groups);
    const float* b = optional(bias, s.out_c);
    float* out = y.mutable_data();
    py::gil_scoped_release release;
    run_gather(forward_gather(s), x.data(), weight.data(), b, out);
}

void conv2d_backward_input(const Array<float>& dy, const Array<float>& weight, const py::object& bias, Array<float>& dx,
                           Pair stride, Pair padding, Pair dilation, int64_t groups) {
    const Geometry s = geometry(dx, shape_of(weight), dy, stride, padding, dilation, groups);
    const float* b = optional(bias, s.c);
    float* out = dx.mutable_data();
    py::gil_scoped_release release;
    run_gather(backward_gather(s), dy.data(), weight.data(), b, out);
}

void conv2d_backward_parameters(const Array<float>& dy, const Array<float>& x, const py::object& dweight,
                                const py::object& dbias, bool accumulate, Pair kernel, Pair stride, Pair padding,
                                Pair dilation, int64_t groups) {
    expect(x.ndim() == 4 && dy.ndim() == 4 && groups > 0, "images of rank 4 and positive groups");
    const std::array<int64_t, 4> shape = {dy.shape(3), kernel.first, kernel.second, x.shape(3) / groups};
    const Geometry s = geometry(x, shape, dy, stride, padding, dilation, groups);
    float* weight_gradient = optional(dweight, shape[0] * shape[1] * shape[2] * shape[3]);
    float* bias_gradient = optional(dbias, shape[0]);
    py::gil_scoped_release release;
    run_weight_gradient(s, dy.data(), x.data(), weight_gradient, bias_gradient, accumulate);
}

}  // namespace
}  // namespace conv

BP_NATIVE(conv) {
    using py::arg;
    module.def("conv2d", conv::conv2d, arg("x").noconvert(), arg("weight").noconvert(), arg("bias"),
               arg("y").noconvert(), arg("stride"), arg("padding"), arg("dilation"), arg("groups"),
               "y = the convolution of x; padding: (top, left), what lies below and right follows from the size of y.");
    module.def("conv2d_backward_input", conv::conv2d_backward_input, arg("dy").noconvert(), arg("weight").noconvert(),
               arg("bias"), arg("dx").noconvert(), arg("stride"), arg("padding"), arg("dilation"), arg("groups"),
               "dx = the data gradient, plus a bias by channel where it serves as transposed convolution.");
    module.def("conv2d_backward_parameters", conv::conv2d_backward_parameters, arg("dy").noconvert(),
               arg("x").noconvert(), arg("dweight"), arg("dbias"), arg("accumulate"), arg("kernel"), arg("stride"),
               arg("padding"), arg("dilation"), arg("groups"), 
               "Writes dweight and dbias, or adds to them; either may be None.");
}

}  // namespace bp
