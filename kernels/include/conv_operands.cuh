// A convolution as a matrix product whose operands are read where they lie (implicit GEMM): nothing is unfolded.
//
// Along one axis, output position p and tap t of the kernel meet input position p * step + t * reach + origin. For the
// forward pass step is the stride, reach the dilation and origin minus the padding. The gradient of the input has the
// same form, in as many classes of positions as the stride says (Residue), so one operand serves both.
#pragma once
#include "gemm_tile.cuh"

// One axis, as above.
struct ConvAxis {
    int size;       // of the input
    int positions;  // of the output
    int taps;
    int step, reach, origin;
};

// The data gradient along one axis, for the positions h with (h + before) % stride == residue.
//
// y[i] reads x[h] through tap u where i stride + u dilation - before = h. With g = gcd(stride, dilation), the taps that
// fit h are u = first_tap + period t with period = stride / g, the same ones for all h of a class, or none. For
// h = first + stride p then i = p - t dilation / g + (first + before - first_tap dilation) / stride, which is a
// convolution of dy of stride 1. So no tap is tried in vain.
struct Residue {
    int first;              // position of the input
    int first_tap, period;  // of the kernel
    ConvAxis axis;

    __device__ __forceinline__ Residue(int residue, int size, int outputs, int kernel, int stride, int before,
                                       int dilation, int period)
        : period(period) {
        first = ((residue - before) % stride + stride) % stride;
        first_tap = 0;
        const int candidates = period < kernel ? period : kernel;
        while (first_tap < candidates && first_tap * dilation % stride != residue) ++first_tap;
        axis.size = outputs;
        axis.positions = first < size ? (size - first + stride - 1) / stride : 0;
        axis.taps = first_tap < candidates ? (kernel - first_tap + period - 1) / period : 0;
        axis.step = 1;
        axis.reach = -(dilation / (stride / period));
        axis.origin = (first + before - first_tap * dilation) / stride;
    }
};

// The windows of a batch of images as the rows of a matrix: (images * height.positions * width.positions) x
// (height.taps * width.taps * channels). Each row is the patch that one window of one group sees, its elements
// (u, v, c) with c running fastest.
template <typename Type>
struct Patches {
    struct Row {
        const Type* image;  // first pixel, first channel of the group; null for a window beyond the last
        int row, column;    // of tap (0, 0)
    };

    const Type* images;  // first channel of the group
    int64 rows;
    ConvAxis height, width;
    int64 stride, channels;  // from pixel to pixel; of the group
    bool aligned;

    __device__ __forceinline__ Patches(const Type* images, int64 count, const ConvAxis& height, const ConvAxis& width,
                                       int64 stride, int64 channels)
        : images(images), rows(count * height.positions * width.positions), height(height), width(width),
          stride(stride), channels(channels),
          aligned(aligned16(images) && stride % Vector<Type>::size == 0 && channels % Vector<Type>::size == 0) {}

    __device__ __forceinline__ Row row(int64 r) const {
        if (r >= rows) return {nullptr, 0, 0};
        const Quotient line = divide(r, width.positions), image = divide(line.quotient, height.positions);
        return {images + image.quotient * height.size * width.size * stride,
                static_cast<int>(image.remainder) * height.step + height.origin,
                static_cast<int>(line.remainder) * width.step + width.origin};
    }

    __device__ __forceinline__ Vector<Type> load(const Row& patch, int64 element) const {
        constexpr int V = Vector<Type>::size;
        const Quotient tap = divide(element, channels), place = divide(tap.quotient, width.taps);
        int64 u = place.quotient, channel = tap.remainder;
        int v = static_cast<int>(place.remainder);
        const Type* at = pixel(patch, u, v);
        // Where channels are whole vectors, a vector lies in one pixel.
        if (aligned) return load_part(at, channel, channels, true);
        Vector<Type> found;
#pragma unroll
        for (int e = 0; e < V; ++e) {
            found.at[e] = at != nullptr ? at[channel] : convert<Type>(0.0f);
            if (++channel < channels) continue;
            channel = 0;
            if (++v == width.taps) v = 0, ++u;
            at = pixel(patch, u, v);
        }
        return found;
    }

    // The pixel under tap (u, v), null outside the image and beyond the last tap.
    __device__ __forceinline__ const Type* pixel(const Row& patch, int64 u, int v) const {
        if (patch.image == nullptr || u >= height.taps) return nullptr;
        const int h = patch.row + static_cast<int>(u) * height.reach, w = patch.column + v * width.reach;
        const bool inside = h >= 0 && h < height.size && w >= 0 && w < width.size;
        return inside ? patch.image + (static_cast<int64>(h) * width.size + w) * stride : nullptr;
    }
};

// The weights that the data gradient of one group multiplies: row (a, b, o) of the matrix is W[o, u(a), v(b), :] with
// u(a) = first_tap + period a, and likewise v(b).
template <typename Type>
struct TurnedWeights {
    typedef const Type* Row;

    const Type* weight;  // of the group
    int64 outputs, channels;
    int kernel_height, kernel_width;
    const Residue& vertical;
    const Residue& horizontal;
    bool aligned;

    __device__ __forceinline__ TurnedWeights(const Type* weight, int64 outputs, int kernel_height, int kernel_width,
                                             int64 channels, const Residue& vertical, const Residue& horizontal)
        : weight(weight), outputs(outputs), channels(channels), kernel_height(kernel_height),
          kernel_width(kernel_width), vertical(vertical), horizontal(horizontal),
          aligned(aligned16(weight) && channels % Vector<Type>::size == 0) {}

    __device__ __forceinline__ Row row(int64 r) const {
        const Quotient tap = divide(r, outputs), place = divide(tap.quotient, horizontal.axis.taps);
        if (place.quotient >= vertical.axis.taps) return nullptr;
        const int u = vertical.first_tap + static_cast<int>(place.quotient) * vertical.period;
        const int v = horizontal.first_tap + static_cast<int>(place.remainder) * horizontal.period;
        return weight + ((tap.remainder * kernel_height + u) * kernel_width + v) * channels;
    }

    __device__ __forceinline__ Vector<Type> load(Row row, int64 column) const {
        return load_part(row, column, channels, aligned);
    }
};
