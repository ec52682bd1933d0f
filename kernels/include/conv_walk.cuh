// How a thread of mma_tile.cuh walks through the operands of a convolution, with few registers and no divisions.
//
// Where the depth runs over taps and channels, each tap is filled up with zeros to whole slices. So a slice lies within
// one tap, and all threads of a block are at the same one: they count it once for both operands, and read from a table
// in shared memory where it lies. A thread keeps the corners of its windows and which of the taps meet the image. The
// zeros cost as much as what they replace: nothing with 64 channels of 16 bits, half of the products with 16 of them.
//
// Where the depth runs over windows, a thread keeps its tap, and counts windows as the digits of a number: pixel, line,
// image.
//
// All this counts in 32 bits, and keeps 16 bits for the taps along an axis: Sizes.counted in bp/cuda/convolution.py
// says for which convolutions that is enough.
#pragma once
#include "conv_operands.cuh"
#include "mma_tile.cuh"

// A window, as its place among all of them.
struct Window {
    int image, y, x;

    template <typename Type>
    __device__ __forceinline__ Window(const Patches<Type>& patches, uint32 number) {
        const uint32 line = number / patches.width.positions;
        x = number - line * patches.width.positions;
        image = line / patches.height.positions;
        y = line - image * patches.height.positions;
    }

    // On by `step`, which is another window's distance from the first.
    template <typename Type>
    __device__ __forceinline__ void advance(const Patches<Type>& patches, const Window& step) {
        image += step.image;
        y += step.y;
        x += step.x;
        if (x >= patches.width.positions) x -= patches.width.positions, ++y;
        if (y >= patches.height.positions) y -= patches.height.positions, ++image;
    }
};

constexpr int TAPS_ALONG = 16, MOST_TAPS = TAPS_ALONG * TAPS_ALONG;

// Where a tap lies.
struct alignas(16) Tap {
    int further;  // pixels of an image, from tap (0, 0)
    int weights;  // elements of a filter, from its first
    uint32 bits;  // its row's, and TAPS_ALONG further on its column's, among those of a window
    uint32 unused;
};

// The depth of a product over `count` taps, in slices of DEPTH elements: the tap of a slice, and its first channel.
template <int DEPTH>
struct FilledTaps {
    const Tap* table;  // in shared memory
    int channels, count;
    int tap, channel;

    // Fills the table for the taps along both axes; weights(u, v): of a tap. All threads of the block call it.
    template <typename Weights>
    __device__ __forceinline__ FilledTaps(Tap* table, uint32 begin, int channels, const ConvAxis& height,
                                          const ConvAxis& width, const Weights& weights)
        : table(table), channels(channels), count(height.taps * width.taps), tap(begin / filled()),
          channel(begin - tap * filled()) {
        // Without taps the depth is 0, and the first entry is read all the same.
        for (int i = threadIdx.x; i < max(count, 1); i += blockDim.x) {
            const int u = i / width.taps, v = i - u * width.taps;
            table[i] = {u * height.reach * width.size + v * width.reach, weights(u, v),
                        1u << u | 1u << (TAPS_ALONG + v), 0};
        }
        __syncthreads();
    }

    // The depth of a tap, and of all.
    __device__ __forceinline__ uint32 filled() const { return (channels + DEPTH - 1) / DEPTH * DEPTH; }
    __device__ __forceinline__ int64 depth() const { return count * filled(); }

    // How many of the slice's elements exist, DEPTH or more where all do.
    __device__ __forceinline__ int left() const { return tap < count ? channels - channel : 0; }

    // The tap of the slice; behind the last one it does not matter which.
    __device__ __forceinline__ const Tap& at() const { return table[tap < count ? tap : 0]; }

    // To the next slice; returns whether that is of the next tap.
    __device__ __forceinline__ bool advance() {
        channel += DEPTH;
        if (channel < channels) return false;
        channel = 0;
        ++tap;
        return true;
    }
};

// A: patches whose rows run along such a depth. It is their walk that counts the taps.
template <typename Type, int DEPTH>
struct FilledPatches {
    const Patches<Type>& patches;
    FilledTaps<DEPTH>& taps;
    const int64 begin;
};

template <typename Type, int COUNT, int APART, int DEPTH>
struct Walk<Type, true, COUNT, APART, DEPTH, FilledPatches<Type, DEPTH>> {
    const Patches<Type>& patches;
    FilledTaps<DEPTH>& taps;
    const int own;   // element of the slice
    const Type* at;  // that element of pixel 0
    // Of each window the pixel under tap (0, 0), as if images had no edges; and which taps meet the image: bit u for
    // those of row u, bit TAPS_ALONG + v for those of column v.
    int pixels[COUNT];
    uint32 inside[COUNT];
    int further;    // pixels from tap (0, 0) to that of the slice
    uint32 wanted;  // the bits of that tap

    __device__ __forceinline__ Walk(const FilledPatches<Type, DEPTH>& filled, int64 row, int64 element, int)
        : patches(filled.patches), taps(filled.taps), own(static_cast<int>(element - filled.begin)) {
        const ConvAxis &height = patches.height, &width = patches.width;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const Window window(patches, static_cast<uint32>(row) + i * APART);
            const int h = window.y * height.step + height.origin, w = window.x * width.step + width.origin;
            pixels[i] = (window.image * height.size + h) * width.size + w;
            inside[i] = row + i * APART < patches.rows ? bits(h, height) | bits(w, width) << TAPS_ALONG : 0;
        }
        enter_tap();
    }

    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(int i, int) const {
        static_assert(WIDTH == Vector<Type>::size, "channels in whole vectors");
        const bool exists = own < taps.left() && (inside[i] & wanted) == wanted;
        return {at + static_cast<int64>(pixels[i] + further) * static_cast<int>(patches.stride), exists ? WIDTH : 0};
    }

    __device__ __forceinline__ void advance() {
        at += DEPTH;
        if (taps.advance()) enter_tap();
    }

private:
    __device__ __forceinline__ void enter_tap() {
        at = patches.images + (taps.channel + own);
        further = taps.at().further;
        wanted = taps.at().bits;
    }
    // Of the taps along an axis, which lie in the image. As an unsigned number, what lies before it lies far behind.
    __device__ __forceinline__ static uint32 bits(int first, const ConvAxis& axis) {
        uint32 found = 0;
        for (int tap = 0; tap < axis.taps; ++tap) {
            const uint32 at = static_cast<uint32>(first) + static_cast<uint32>(tap * axis.reach);
            found |= (at < static_cast<uint32>(axis.size) ? 1u : 0u) << tap;
        }
        return found;
    }
};

// What B brings of a slice: elements or rows, `left` of which exist; the first one's place in the weights of the group.
//
// A's walk has gone on to a slice when B's does, so B finds there what it needs for its own next one.
struct FilledSlice {
    int offset, left;
};

// B: the weights of a group, (rows, taps, channels), whose rows run along such a depth.
template <typename Type, int DEPTH>
struct FilledWeights {
    const Type* at;
    const int rows, stride;  // from one to the next
    const FilledTaps<DEPTH>& taps;
    const int64 begin;

    __device__ __forceinline__ FilledSlice slice() const { return {taps.at().weights + taps.channel, taps.left()}; }
};

template <typename Type, int COUNT, int APART, int DEPTH>
struct Walk<Type, true, COUNT, APART, DEPTH, FilledWeights<Type, DEPTH>> {
    const FilledWeights<Type, DEPTH>& weights;
    FilledSlice slice;
    const int own;    // element of the slice
    const int place;  // that of the first slice in the first row
    const int lines;  // that exist

    __device__ __forceinline__ Walk(const FilledWeights<Type, DEPTH>& weights, int64 row, int64 element, int)
        : weights(weights), slice(weights.slice()), own(static_cast<int>(element - weights.begin)),
          place(static_cast<int>(row) * weights.stride + own),
          lines((weights.rows - static_cast<int>(row) + APART - 1) / APART) {}

    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(int i, int) const {
        return {weights.at + (place + slice.offset + i * APART * weights.stride),
                i < lines && own < slice.left ? WIDTH : 0};
    }

    __device__ __forceinline__ void advance() { slice = weights.slice(); }
};

// B: the weights of the data gradient, one output channel of a tap below the other, over such a depth of taps and
// outputs.
template <typename Type, int DEPTH>
struct FilledTurnedWeights {
    const Type* at;
    const int stride, columns;  // from an output to the next; input channels
    const FilledTaps<DEPTH>& taps;
    const int64 begin;

    __device__ __forceinline__ FilledSlice slice() const {
        return {taps.channel * stride + taps.at().weights, taps.left()};
    }
};

template <typename Type, int COUNT, int APART, int DEPTH>
struct Walk<Type, false, COUNT, APART, DEPTH, FilledTurnedWeights<Type, DEPTH>> {
    const FilledTurnedWeights<Type, DEPTH>& weights;
    FilledSlice slice;
    const int own;    // row of the slice, beyond all where the column does not exist
    const int place;  // of the first slice

    __device__ __forceinline__ Walk(const FilledTurnedWeights<Type, DEPTH>& weights, int64 row, int64 column, int)
        : weights(weights), slice(weights.slice()),
          own(static_cast<int>(row - weights.begin) + (column < weights.columns ? 0 : BEYOND)),
          place(static_cast<int>(row - weights.begin) * weights.stride + static_cast<int>(column)) {}

    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(int i, int) const {
        return {weights.at + (place + slice.offset + i * APART * weights.stride),
                own + i * APART < slice.left ? WIDTH : 0};
    }

    __device__ __forceinline__ void advance() { slice = weights.slice(); }

private:
    static constexpr int BEYOND = 1 << 30;  // a group has less channels
};

// B: windows one below the other, of which a thread has the same channels of one tap.
template <typename Type>
struct Windows {
    const Patches<Type>& patches;
    const int images;
};

template <typename Type, int COUNT, int APART, int DEPTH>
struct Walk<Type, false, COUNT, APART, DEPTH, Windows<Type>> {
    static_assert(DEPTH == COUNT * APART, "the windows of a slice are as far apart as those of two slices");
    typedef typename Patches<Type>::Column Column;

    const Windows<Type>& windows;
    const Column column;
    const Type* const images;  // at these channels
    const int row, across;     // under the tap in the first window of an image; row is NOWHERE beyond the last tap
    const Window step;
    Window first;  // of this slice

    __device__ __forceinline__ Walk(const Windows<Type>& windows, int64 window, int64 element, int)
        : windows(windows), column(windows.patches.column(element)), images(windows.patches.images + column.channel),
          row(row_under(column)), across(column_under(column)), step(windows.patches, APART),
          first(windows.patches, static_cast<uint32>(window)) {}

    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(int i, int further) const {
        Window at = first;
#pragma unroll
        for (int turn = 0; turn < COUNT; ++turn)
            if (turn < i) at.advance(windows.patches, step);
        if constexpr (WIDTH == Vector<Type>::size) {
            return under<WIDTH>(at, row, across, images);
        } else {
            Column other = column;
            windows.patches.advance_column(other, further);
            return under<WIDTH>(at, row_under(other), column_under(other), windows.patches.images + other.channel);
        }
    }

    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int turn = 0; turn < COUNT; ++turn) first.advance(windows.patches, step);
    }

private:
    static constexpr int NOWHERE = -2147483647 - 1;  // an image has less than 2^31 rows, its padding included

    __device__ __forceinline__ int row_under(const Column& tap) const {
        const ConvAxis& height = windows.patches.height;
        return tap.u < height.taps ? height.origin + tap.down : NOWHERE;
    }
    __device__ __forceinline__ int column_under(const Column& tap) const {
        return windows.patches.width.origin + tap.across;
    }

    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> under(const Window& at, int row, int column, const Type* images) const {
        const ConvAxis &height = windows.patches.height, &width = windows.patches.width;
        // As unsigned numbers, what lies before an image lies far behind it.
        const uint32 h = static_cast<uint32>(row) + static_cast<uint32>(at.y * height.step);
        const uint32 w = static_cast<uint32>(column) + static_cast<uint32>(at.x * width.step);
        const bool exists = at.image < windows.images && h < static_cast<uint32>(height.size) &&
                            w < static_cast<uint32>(width.size);
        const uint32 pixel = (static_cast<uint32>(at.image) * height.size + h) * width.size + w;
        return {images + static_cast<int64>(pixel) * static_cast<uint32>(windows.patches.stride), exists ? WIDTH : 0};
    }
};
