// Convolution on Hopper's tensor cores, for 16-bit elements: an implicit matrix product whose patches the copy engine
// brings.
//
//   wgmma_forward:              y (pixels of y, out)  = patches of x (pixels of y, taps in) W^T
//   wgmma_backward_input:       dx (pixels of x, in)  = patches of dy (pixels of x, taps out) W
//   wgmma_backward_strided:     the same for one class of the pixels that a stride above 1 makes
//   wgmma_backward_parameters:  dW (out, taps in)     = dy^T patches of x, and the sums of dy's columns: db
//
// Nothing is unfolded, and no thread computes the address of a pixel. A map of pixels (im2col, tensor_map.cuh) knows
// the sizes of the images, the padding and the stride; a copy names the first window, a tap of the kernel and a
// channel, and brings 64 channels of the pixels under that tap in as many windows as the tile has rows, across the
// ends of lines and images, with zeros where a window reaches beyond an image. From there on it is the product of
// linear_wgmma.cu, on the same blocks (wgmma_block.cuh).
//
// A slice of 64 of the depth. Forward and input gradient: 64 channels at one tap; the thread that loads counts
// channels, then taps, and divides nothing. The last slice of a tap is filled up with zeros in both factors, so that
// an infinity meets none; in groups of no whole slices it would be filled with the next group's channels, and they are
// left to other rungs. Weight gradient: 64 windows; each panel of 64 columns is its own copy, at its own tap.
//
// What a slice costs with tiles of 128 x 256, by the machine code and the limits of an H100 or H200 (not measured yet):
//
//   tensor cores    8 products of 64 x 256 x 16, 128 cycles each                              1024 cycles
//   shared memory   80 KB read by the products, 48 KB written by the copies, 128 bytes a cycle  1024
//   L2 cache        48 KB, so 48 bytes a cycle for each multiprocessor
//   schedulers      80 instructions of each consumer's warp, two of which share one             160
//                   73 (forward), 111 (input) or 137 (parameters) of the warp that loads, by the way
//
// So the tensor cores are the limit, as of the matrix product, by as much as slices are full: 64 channels use all of a
// slice, 72 use 9/16 and 8 an eighth. The taps of a tile read nearly the same pixels, which come from the L2 cache
// then. How fast the copy engine walks along pixels no document says. Pixels of dx that a stride scatters are stored
// by threads, 16 bytes each, with two divisions of 32 bits for each vector, and two more where another array is read.
#include "convolution.cuh"
#include "wgmma_block.cuh"

constexpr int THREADS = 384;  // a warpgroup that loads, and two that multiply
static_assert(THREADS == (1 + CONSUMERS) * WARPGROUP, "a warpgroup more than there are consumers");

using Shape = WgmmaShape<ROWS, COLUMNS, STAGES>;

// The windows of all images, one for each pixel of a result.
struct Windows {
    int height, width;     // of them in an image
    int step_h, step_w;    // from one to the next, in pixels of what they read
    int first_h, first_w;  // of tap (0, 0) of the first one
};

// Tap (0, 0) of a window.
struct Corner {
    int w, h, n;

    __device__ __forceinline__ Corner(const Windows& windows, int64 window) {
        const Quotient line = divide(window, windows.width), image = divide(line.quotient, windows.height);
        w = windows.first_w + static_cast<int>(line.remainder) * windows.step_w;
        h = windows.first_h + static_cast<int>(image.remainder) * windows.step_h;
        n = static_cast<int>(image.quotient);
    }
};

// The taps under which a window sees pixels, rows x columns of them, and the weights they belong to.
struct Taps {
    int rows, columns;
    int reach_h, reach_w;     // from a tap to the next, in pixels
    int first, down, across;  // which tap of W the first one is, and how many it is from one to the next
};

// Of forward and of the input gradients: A is the patches, and the depth runs tap by tap, within a tap in slices of 64
// channels, the last of which is filled up with zeros. MAJOR_B: of W (out, taps, in), whose rows run along the depth of
// forward and along the columns of the input gradients.
template <Major MAJOR_B>
struct PatchLoads {
    struct Tile {
        Corner corner;
        int item, column;
        int u, v, channel;  // of the slice
    };

    const TensorMap& patches;
    const TensorMap& weight;
    const Windows windows;
    const Taps taps;
    const int channels, outputs;  // of a group: of what is read; of W
    const int images, out;

    __device__ __forceinline__ void prefetch() const {
        prefetch_tensor_map(patches);
        prefetch_tensor_map(weight);
    }

    __device__ __forceinline__ Tile tile(const Work& work) const {
        const int slice = work.first, of_tap = (channels + SLICE - 1) / SLICE, tap = slice / of_tap;
        Tile at{Corner(windows, work.row), work.item, work.column, tap / taps.columns, tap % taps.columns,
                slice % of_tap * SLICE};
        // A part without depth is one slice of what lies beyond all images and outputs: zeros.
        if (tap >= taps.rows * taps.columns) at.corner.n = images, at.u = 0, at.channel = out;
        return at;
    }

    __device__ __forceinline__ void slice(Tile& at, int, unsigned char* tile_a, unsigned char* tile_b,
                                          Barrier& barrier) const {
        const Corner& corner = at.corner;
        const int tap = taps.first + at.u * taps.down + at.v * taps.across;
        load_pixels(tile_a, patches, barrier, {at.item * channels + at.channel, corner.w, corner.h, corner.n},
                    static_cast<uint16>(at.v * taps.reach_w), static_cast<uint16>(at.u * taps.reach_h));
        if constexpr (MAJOR_B == Major::K) {
            load_box(tile_b, weight, barrier, {at.channel, tap, at.item * outputs + at.column});
        } else {
#pragma unroll
            for (int panel = 0; panel < COLUMNS / SPAN; ++panel)
                load_box(tile_b + panel * PANEL, weight, barrier,
                         {at.column + panel * SPAN, tap, at.item * outputs + at.channel});
        }
        at.channel += SLICE;
        if (at.channel < channels) return;
        at.channel = 0;
        if (++at.v == taps.columns) at.v = 0, ++at.u;
    }
};

// Of backward_parameters: the depth is the windows, 64 a slice. A is dy, B the patches. Where channels are whole
// panels, an item is a group and its columns run over all taps; where they are not, an item is a tap.
struct GradientLoads {
    static constexpr int PANELS = COLUMNS / SPAN;

    struct Tile {
        Corner corner;  // of the slice
        int row, group;
        int channel[PANELS];
        uint16 right[PANELS], down[PANELS];  // from tap (0, 0) to the panel's
    };

    const TensorMap& gradient;
    const TensorMap& patches;
    const Windows windows;
    const int kw, reach_h, reach_w, channels, columns;
    const bool by_tap;  // an item is a tap
    // From a slice to the next: 64 windows.
    const int slice_w, slice_h, slice_n;

    __device__ __forceinline__ void prefetch() const {
        prefetch_tensor_map(gradient);
        prefetch_tensor_map(patches);
    }

    __device__ __forceinline__ Tile tile(const Work& work) const {
        Tile at{Corner(windows, static_cast<int64>(work.first) * SLICE), work.row, by_tap ? 0 : work.item, {}, {}, {}};
#pragma unroll
        for (int panel = 0; panel < PANELS; ++panel) {
            // A panel beyond the last one is not stored; it reads what there is.
            const int column = min(work.column + panel * SPAN, (columns - 1) / SPAN * SPAN);
            const int tap = by_tap ? work.item : column / channels;
            at.channel[panel] = by_tap ? column : work.item * channels + column % channels;
            at.right[panel] = static_cast<uint16>(tap % kw * reach_w);
            at.down[panel] = static_cast<uint16>(tap / kw * reach_h);
        }
        return at;
    }

    __device__ __forceinline__ void slice(Tile& at, int slice, unsigned char* tile_a, unsigned char* tile_b,
                                          Barrier& barrier) const {
        load_panels<Major::MN, ROWS>(tile_a, gradient, barrier, slice * SLICE, at.row, at.group);
        Corner& corner = at.corner;
#pragma unroll
        for (int panel = 0; panel < PANELS; ++panel)
            load_pixels(tile_b + panel * PANEL, patches, barrier,
                        {at.channel[panel], corner.w, corner.h, corner.n}, at.right[panel], at.down[panel]);
        corner.w += slice_w;
        corner.h += slice_h;
        corner.n += slice_n;
        const int line = windows.width * windows.step_w, image = windows.height * windows.step_h;
        if (corner.w >= windows.first_w + line) corner.w -= line, corner.h += windows.step_h;
        if (corner.h >= windows.first_h + image) corner.h -= image, ++corner.n;
    }
};

// Rows of C that are some of the pixels of dx: every stride_h-th line from first_h on, every stride_w-th pixel of it.
struct ScatteredPixels {
    int lines, pixels;  // of an image
    int h, w, first_h, first_w, stride_h, stride_w;

    __device__ __forceinline__ int64 at(uint32 row) const {
        const uint32 line = row / pixels, image = line / lines;
        return (static_cast<int64>(image) * h + first_h + (line - image * lines) * stride_h) * w + first_w +
               (row - line * pixels) * stride_w;
    }
};

struct ScatteredTarget : Target {
    int first_row;
    const ScatteredPixels& places;

    __device__ __forceinline__ ScatteredTarget(const Target& target, int first_row, const ScatteredPixels& places)
        : Target(target), first_row(first_row), places(places) {}
    __device__ __forceinline__ int64 row_of(int row, int more) const { return places.at(first_row + row + more); }
};

struct ScatteredProduct : WgmmaProduct {
    static constexpr bool IN_ROWS = false;

    ScatteredPixels places;

    __device__ __forceinline__ ScatteredProduct(const WgmmaProduct& product, const ScatteredPixels& places)
        : WgmmaProduct(product), places(places) {}
    __device__ __forceinline__ ScatteredTarget scattered(const Target& target, int row) const {
        return {target, row, places};
    }
};

// part, parts: of the depth, slices filled up with zeros included. boxes: see run_block; map_c is of y then.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_forward(const __grid_constant__ TensorMap map_x,
                                                                       const __grid_constant__ TensorMap map_weight,
                                                                       const __grid_constant__ TensorMap map_c,
                                                                       EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS,
                                                                       int64 part, int parts, bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    const int group_in = static_cast<int>(channels / groups), group_out = static_cast<int>(out / groups);
    const int64 depth = int64(kh) * kw * ((group_in + SLICE - 1) / SLICE * SLICE);
    const PatchLoads<Major::K> loads{map_x,
                                     map_weight,
                                     {p, q, stride_h, stride_w, -top, -left},
                                     {kh, kw, dilation_h, dilation_w, 0, kw, 1},
                                     group_in,
                                     group_out,
                                     static_cast<int>(images),
                                     static_cast<int>(out)};
    const WgmmaProduct product{images * p * q, group_out, depth, groups,    part, parts,           group_out,
                               out,            group_out, out,   group_out, 0,    images * p * q * out};
    run_block<Multiply<T, Major::K, Major::K, Shape>>(loads, map_c, Epilogue<T>{EPILOGUE_ARGUMENTS}, nullptr, product,
                                                      boxes, pipeline, tiles);
}

// dx of stride 1 is the convolution of dy with the mirrored kernel. Where a window reaches beyond dy it sees zeros,
// which an infinite weight turns into NaN, as on the other rungs.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_backward_input(
    const __grid_constant__ TensorMap map_dy, const __grid_constant__ TensorMap map_weight,
    const __grid_constant__ TensorMap map_c, EPILOGUE_PARAMETERS, CONVOLUTION_PARAMETERS, int64 part, int parts,
    bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    const int group_in = static_cast<int>(channels / groups), group_out = static_cast<int>(out / groups);
    const int64 depth = int64(kh) * kw * ((group_out + SLICE - 1) / SLICE * SLICE);
    const PatchLoads<Major::MN> loads{map_dy,
                                      map_weight,
                                      {h, w, 1, 1, top - (kh - 1) * dilation_h, left - (kw - 1) * dilation_w},
                                      {kh, kw, dilation_h, dilation_w, kh * kw - 1, -kw, -1},
                                      group_out,
                                      group_out,
                                      static_cast<int>(images),
                                      static_cast<int>(out)};
    const WgmmaProduct product{images * h * w, group_in, depth,    groups,   part, parts,                   group_in,
                               channels,       group_in, channels, group_in, 0,    images * h * w * channels};
    run_block<Multiply<T, Major::K, Major::MN, Shape>>(loads, map_c, Epilogue<T>{EPILOGUE_ARGUMENTS}, nullptr, product,
                                                       boxes, pipeline, tiles);
}

// For the lines x pixels of an image with (h + top) % stride_h and (w + left) % stride_w the same, first_h and first_w
// the first of them: rows x columns taps of W fit these, every period_h-th and period_w-th from first_tap_h and
// first_tap_w on (Residue in conv_operands.cuh), or none. corner_h, corner_w: the pixel of dy under tap (0, 0) of the
// first window, whose taps run the other way.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_backward_strided(
    const __grid_constant__ TensorMap map_dy, const __grid_constant__ TensorMap map_weight, EPILOGUE_PARAMETERS,
    CONVOLUTION_PARAMETERS, int lines, int pixels, int first_h, int first_w, int rows, int columns, int first_tap_h,
    int first_tap_w, int period_h, int period_w, int corner_h, int corner_w, int64 part, int parts) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    const int group_in = static_cast<int>(channels / groups), group_out = static_cast<int>(out / groups);
    const int64 depth = int64(rows) * columns * ((group_out + SLICE - 1) / SLICE * SLICE);
    const int reach_h = dilation_h * period_h / stride_h, reach_w = dilation_w * period_w / stride_w;
    const int last = (first_tap_h + period_h * (rows - 1)) * kw + first_tap_w + period_w * (columns - 1);
    const PatchLoads<Major::MN> loads{map_dy,
                                      map_weight,
                                      {lines, pixels, 1, 1, corner_h, corner_w},
                                      {rows, columns, reach_h, reach_w, last, -period_h * kw, -period_w},
                                      group_out,
                                      group_out,
                                      static_cast<int>(images),
                                      static_cast<int>(out)};
    const WgmmaProduct product{images * lines * pixels,  group_in, depth,    groups,   part,
                               parts,                    group_in, channels, group_in, channels,
                               group_in,                 0,        images * h * w * channels};
    const ScatteredProduct scattered(product, {lines, pixels, h, w, first_h, first_w, stride_h, stride_w});
    run_block<Multiply<T, Major::K, Major::MN, Shape>>(loads, map_dy, Epilogue<T>{EPILOGUE_ARGUMENTS}, nullptr,
                                                       scattered, false, pipeline, tiles);
}

// column_sums (null: not wanted): the sums of dy's columns. Parts have theirs behind their part of dW.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_backward_parameters(
    const __grid_constant__ TensorMap map_dy, const __grid_constant__ TensorMap map_x, EPILOGUE_PARAMETERS,
    float* column_sums, CONVOLUTION_PARAMETERS, int64 part, int parts) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    const int group_in = static_cast<int>(channels / groups), group_out = static_cast<int>(out / groups);
    const int taps = kh * kw, row = taps * group_in;
    const bool by_tap = group_in % SPAN != 0;  // then there is one group
    const int columns = by_tap ? group_in : row, lines = SLICE / q;
    const GradientLoads loads{map_dy,
                              map_x,
                              {p, q, stride_h, stride_w, -top, -left},
                              kw,
                              dilation_h,
                              dilation_w,
                              group_in,
                              columns,
                              by_tap,
                              SLICE % q * stride_w,
                              lines % p * stride_h,
                              lines / p};
    const int64 item = by_tap ? group_in : int64(group_out) * row;
    const WgmmaProduct product{group_out, columns, images * p * q, by_tap ? taps : groups, part, parts,
                               item,      row,     item,           row,                    0,    by_tap ? 1 : groups,
                               out * row};
    run_block<Multiply<T, Major::MN, Major::MN, Shape>>(loads, map_dy, Epilogue<T>{EPILOGUE_ARGUMENTS}, column_sums,
                                                        product, false, pipeline, tiles);
}
