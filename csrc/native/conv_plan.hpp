// How a convolution is cut into blocks: which input lies under which output pixels, in what order, read from where.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "conv_isa.hpp"

namespace bp {
namespace conv {
namespace {

// Memory of one thread that grows to what the largest call needed and is used again by the next, aligned to a vector.
class Scratch {
  public:
    float* floats(int64_t count) { return static_cast<float*>(bytes(count * 4)); }
    int64_t* integers(int64_t count) { return static_cast<int64_t*>(bytes(count * 8)); }

  private:
    void* bytes(int64_t count) {
        if (count + 64 > size_) {
            memory_.reset(new char[count + 64]);
            size_ = count + 64;
        }
        const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
        return reinterpret_cast<void*>((address + 63) / 64 * 64);
    }
    std::unique_ptr<char[]> memory_;
    int64_t size_ = 0;
};
thread_local Scratch packed_weights, packed_bias, partial_sums, patch_memory, gradient_memory, gradient_table,
    row_table;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Geometry {  // of the convolution whose forward reads `x` and writes `y`
    int64_t n, h, w, c, out_h, out_w, out_c, kernel_h, kernel_w, in_per_group, out_per_group;
    int64_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, groups;
};

struct Position {
    int64_t kernel, offset;  // index in the kernel; input pixels from where the output pixel stands
};

struct Phase {
    std::vector<Position> rows, columns;
    int64_t grid_h, grid_w;  // output pixels of this phase in one image
    int64_t out_offset;      // the first one, in floats from the start of the image
    std::vector<int64_t> run_offsets;
    int64_t run_length = 0;
    bool three_columns = false;  // the runs are three neighbouring pixels, and output pixels are neighbours too
    int64_t weight_rows = 0;    // floats of input under a window, for one output channel
    int64_t weight_offset = 0;  // of its panels in the packed weights

    Runs runs() const { return {run_offsets.data(), static_cast<int64_t>(run_offsets.size()), run_length}; }
};

struct Gather {
    int64_t images, h, w, c;  // of the input
    int64_t step_h, step_w;   // input pixels between output pixels
    int64_t groups, in_per_group, out_per_group;
    int64_t out_image, out_row, out_column;  // floats between the output pixels of one phase
    int64_t weight_lane, weight_channel, weight_row, weight_column, weight_group;  // floats between weights
    std::vector<Phase> phases;
    bool depthwise = false;

    int64_t grid_h = 0, grid_w = 0;
    int64_t top = 0, left = 0, span_h = 0, span_w = 0;  // input under one output pixel, all phases
    int64_t block_images, block_h, block_w;             // output pixels of one task
    int64_t row_stride, image_stride;                   // of the input under a task
    int64_t patch_h, patch_w;
    bool in_place;
    int64_t multiplications = 0;  // with the border of zeros
};

// A window must be copied where it leaves the image; a block of the copy should stay in the second-level cache and
// give a panel of weights, which is read once for each, enough pixels.
constexpr int64_t PATCH_FLOATS = 48 * 1024, BLOCK_PIXELS = 512;

// Fewer multiplications are done sooner than other threads are woken.
constexpr int64_t PARALLEL_FROM = 1 << 19;

void plan(Gather& g) {
    int64_t top = INT64_MAX, bottom = INT64_MIN, left = INT64_MAX, right = INT64_MIN;
    for (const Phase& phase : g.phases) {
        g.grid_h = std::max(g.grid_h, phase.grid_h);
        g.grid_w = std::max(g.grid_w, phase.grid_w);
        if (phase.rows.empty() || phase.columns.empty()) continue;
        top = std::min(top, phase.rows.front().offset);
        bottom = std::max(bottom, phase.rows.back().offset);
        left = std::min(left, phase.columns.front().offset);
        right = std::max(right, phase.columns.back().offset);
    }
    if (top <= bottom) {
        g.top = top, g.span_h = bottom - top + 1;
        g.left = left, g.span_w = right - left + 1;
    }
    g.in_place = g.top >= 0 && g.left >= 0 && (g.grid_h - 1) * g.step_h + g.top + g.span_h <= g.h &&
                 (g.grid_w - 1) * g.step_w + g.left + g.span_w <= g.w &&
                 !(g.depthwise && g.c % isa.lanes);  // vectors would be read past the last channel of the last pixel
    g.block_images = 1, g.block_h = g.grid_h, g.block_w = g.grid_w;
    const auto floats = [&] {
        return ((g.block_h - 1) * g.step_h + g.span_h) * ((g.block_w - 1) * g.step_w + g.span_w) * g.c;
    };
    while (g.block_h > 1 && (floats() > PATCH_FLOATS || g.block_h * g.block_w > 2 * BLOCK_PIXELS))
        g.block_h = divide_up(g.block_h, 2);
    while (g.block_w > 16 && floats() > PATCH_FLOATS) g.block_w = divide_up(g.block_w, 2);
    if (g.block_h == g.grid_h && g.block_w == g.grid_w)
        while (g.block_images * 2 <= g.images && 2 * g.block_images * floats() <= PATCH_FLOATS &&
               2 * g.block_images * g.block_h * g.block_w <= BLOCK_PIXELS)
            g.block_images *= 2;
    g.patch_h = (g.block_h - 1) * g.step_h + g.span_h;
    g.patch_w = (g.block_w - 1) * g.step_w + g.span_w;
    g.row_stride = (g.in_place ? g.w : g.patch_w) * g.c;
    g.image_stride = (g.in_place ? g.h * g.w : g.patch_h * g.patch_w) * g.c;

    for (Phase& phase : g.phases) {
        // Neighbouring kernel columns read neighbouring pixels: with all channels taken they are one run.
        bool joined = !g.depthwise && g.groups == 1 && !phase.columns.empty();
        for (size_t i = 1; i < phase.columns.size(); ++i)
            joined = joined && phase.columns[i].offset == phase.columns[i - 1].offset + 1;
        const int64_t channels = g.depthwise ? 1 : g.in_per_group;
        phase.run_length = joined ? channels * static_cast<int64_t>(phase.columns.size()) : channels;
        for (const Position& row : phase.rows)
            for (size_t i = 0; i < (joined ? 1 : phase.columns.size()); ++i)
                phase.run_offsets.push_back((row.offset - g.top) * g.row_stride +
                                            (phase.columns[i].offset - g.left) * g.c);
        phase.three_columns = joined && !phase.rows.empty() && phase.columns.size() == 3 && g.step_w == 1 &&
                              g.phases.size() == 1;
        phase.weight_rows = static_cast<int64_t>(phase.rows.size() * phase.columns.size()) * channels;
        g.multiplications += g.images * phase.grid_h * phase.grid_w * phase.weight_rows * g.groups * g.out_per_group;
    }
}

Gather forward_gather(const Geometry& s) {
    Gather g{};
    g.images = s.n, g.h = s.h, g.w = s.w, g.c = s.c;
    g.step_h = s.stride_h, g.step_w = s.stride_w;
    g.groups = s.groups, g.in_per_group = s.in_per_group, g.out_per_group = s.out_per_group;
    g.out_image = s.out_h * s.out_w * s.out_c, g.out_row = s.out_w * s.out_c, g.out_column = s.out_c;
    g.weight_channel = 1, g.weight_column = s.in_per_group, g.weight_row = s.kernel_w * s.in_per_group;
    g.weight_lane = s.kernel_h * g.weight_row, g.weight_group = s.out_per_group * g.weight_lane;
    Phase phase{};
    for (int64_t k = 0; k < s.kernel_h; ++k) phase.rows.push_back({k, k * s.dilation_h - s.pad_top});
    for (int64_t k = 0; k < s.kernel_w; ++k) phase.columns.push_back({k, k * s.dilation_w - s.pad_left});
    phase.grid_h = s.out_h, phase.grid_w = s.out_w;
    g.phases.push_back(phase);
    return g;
}

// Kernel positions k that reach the pixels of residue `residue`: y pixel (residue + pad - k dilation) / stride + i.
std::vector<Position> phase_positions(int64_t residue, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    std::vector<Position> positions;
    for (int64_t k = kernel - 1; k >= 0; --k) {
        const int64_t distance = residue + pad - k * dilation;
        if (distance % stride == 0) positions.push_back({k, distance / stride});
    }
    return positions;
}

Gather backward_gather(const Geometry& s) {
    Gather g{};
    g.images = s.n, g.h = s.out_h, g.w = s.out_w, g.c = s.out_c;
    g.step_h = g.step_w = 1;
    g.groups = s.groups, g.in_per_group = s.out_per_group, g.out_per_group = s.in_per_group;
    g.out_image = s.h * s.w * s.c, g.out_row = s.stride_h * s.w * s.c, g.out_column = s.stride_w * s.c;
    g.weight_lane = 1, g.weight_column = s.in_per_group, g.weight_row = s.kernel_w * s.in_per_group;
    g.weight_channel = s.kernel_h * g.weight_row, g.weight_group = s.out_per_group * g.weight_channel;
    for (int64_t a = 0; a < std::min(s.stride_h, s.h); ++a)
        for (int64_t b = 0; b < std::min(s.stride_w, s.w); ++b) {
            Phase phase{};
            phase.rows = phase_positions(a, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h);
            phase.columns = phase_positions(b, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w);
            phase.grid_h = divide_up(s.h - a, s.stride_h), phase.grid_w = divide_up(s.w - b, s.stride_w);
            phase.out_offset = (a * s.w + b) * s.c;
            g.phases.push_back(phase);
        }
    return g;
}

struct Block {
    int64_t image, row, column, images, h, w;
};

struct Blocks {
    explicit Blocks(const Gather& g)
        : rows(divide_up(g.grid_h, g.block_h)), columns(divide_up(g.grid_w, g.block_w)),
          count(divide_up(g.images, g.block_images) * rows * columns) {}
    Block at(const Gather& g, int64_t index) const {
        Block b;
        b.column = index % columns * g.block_w;
        b.row = index / columns % rows * g.block_h;
        b.image = index / columns / rows * g.block_images;
        b.images = std::min(g.block_images, g.images - b.image);
        b.h = std::min(g.block_h, g.grid_h - b.row);
        b.w = std::min(g.block_w, g.grid_w - b.column);
        return b;
    }
    // Lets the kernels that compute `pixels`, `calls` times, fetch the input of block `index` into the cache.
    void look_ahead(const Gather& g, int64_t index, const float* input, Pixels& pixels, int64_t calls) const {
        pixels.ahead = reinterpret_cast<const char*>(input);
        if (index >= count || pixels.count == 0) return;
        const Block b = at(g, index);
        const int64_t top = std::max<int64_t>(0, b.row * g.step_h + g.top);
        const int64_t bottom = std::min(g.h, (b.row + b.h - 1) * g.step_h + g.top + g.span_h);
        const int64_t floats = ((b.images - 1) * g.h + bottom - top) * g.w * g.c;
        pixels.ahead = reinterpret_cast<const char*>(input + (b.image * g.h + top) * g.w * g.c);
        pixels.ahead_bytes = floats * 4 / (calls * pixels.count);
    }
    int64_t rows, columns, count;
};

// The input under a block: a place in the image itself, or a copy with zeros for what lies outside.
const float* patch_of(const Gather& g, const Block& b, const float* input) {
    const int64_t top = b.row * g.step_h + g.top, left = b.column * g.step_w + g.left;
    if (g.in_place) return input + ((b.image * g.h + top) * g.w + left) * g.c;
    float* patch = patch_memory.floats(g.block_images * g.image_stride + 2 * isa.lanes);
    const int64_t width = (b.w - 1) * g.step_w + g.span_w, height = (b.h - 1) * g.step_h + g.span_h;
    const int64_t before = std::clamp<int64_t>(-left, 0, width);
    const int64_t inside = std::clamp<int64_t>(g.w - left, before, width) - before;
    const int64_t after = width - before - inside;
    for (int64_t i = 0; i < b.images; ++i)
        for (int64_t r = 0; r < height; ++r) {
            float* to = patch + i * g.image_stride + r * g.row_stride;
            if (top + r < 0 || top + r >= g.h) {
                isa.copy_row(to, width * g.c, nullptr, 0, 0);
            } else {
                const float* row = input + ((b.image + i) * g.h + top + r) * g.w * g.c;
                const float* from = inside ? row + (left + before) * g.c : nullptr;
                isa.copy_row(to, before * g.c, from, inside * g.c, after * g.c);
            }
        }
    return patch;
}

// Where the pixels of a block lie, relative to its patch and to its first output pixel; kept from block to block, since
// most have the same size.
class PixelTable {
  public:
    Pixels of(const Gather& g, const Phase& phase, const Block& b) {
        const int64_t h = std::min(b.h, phase.grid_h - b.row), w = std::min(b.w, phase.grid_w - b.column);
        if (h <= 0 || w <= 0) return {nullptr, nullptr, nullptr, 0};
        if (h != h_ || w != w_ || b.images > images_) fill(g, b.images, h, w);
        return {nullptr, in_.data(), out_.data(), b.images * h * w};
    }

  private:
    void fill(const Gather& g, int64_t images, int64_t h, int64_t w) {
        images_ = images, h_ = h, w_ = w;
        in_.resize(images * h * w);
        out_.resize(images * h * w);
        int64_t count = 0;
        for (int64_t i = 0; i < images; ++i)
            for (int64_t r = 0; r < h; ++r)
                for (int64_t q = 0; q < w; ++q, ++count) {
                    in_[count] = i * g.image_stride + r * g.step_h * g.row_stride + q * g.step_w * g.c;
                    out_[count] = i * g.out_image + r * g.out_row + q * g.out_column;
                }
    }
    int64_t images_ = 0, h_ = 0, w_ = 0;
    std::vector<int64_t> in_, out_;
};

int64_t out_offset(const Gather& g, const Phase& phase, const Block& b) {
    return b.image * g.out_image + phase.out_offset + b.row * g.out_row + b.column * g.out_column;
}

}  // namespace
}  // namespace conv
}  // namespace bp
