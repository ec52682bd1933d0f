// A convolution as a matrix product whose operands are read where they lie (implicit GEMM): nothing is unfolded.
//
// Along one axis, output position p and tap t of the kernel meet input position p * step + t * reach + origin. For the
// forward pass step is the stride, reach the dilation and origin minus the padding. The gradient of the input has the
// same form, in as many classes of positions as the stride says (Residue), so one operand serves both.
#pragma once
#include "convolution.cuh"
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

// The pixels of dx that the same taps fit: one Residue along each axis. They are counted image by image, line by line.
struct PixelClass {
    Residue vertical, horizontal;
    int64 pixels;

    // number: of the class, below stride_h stride_w.
    __device__ __forceinline__ PixelClass(int number, const Convolution& of, int period_h, int period_w)
        : vertical(number / of.stride_w, of.h, of.p, of.kh, of.stride_h, of.top, of.dilation_h, period_h),
          horizontal(number % of.stride_w, of.w, of.q, of.kw, of.stride_w, of.left, of.dilation_w, period_w),
          pixels(of.images * vertical.axis.positions * horizontal.axis.positions) {
        // Without a tap along one axis there is none at all; a width of one keeps divisions by it defined.
        if (horizontal.axis.taps == 0) vertical.axis.taps = 0, horizontal.axis.taps = 1;
    }

    // Which of all pixels of dx it is. Count: int64, or uint32 where that counts them all.
    template <typename Count>
    __device__ __forceinline__ Count place(Count pixel, const Convolution& of) const {
        const auto line = over(pixel, static_cast<Count>(horizontal.axis.positions));
        const auto image = over(line.quotient, static_cast<Count>(vertical.axis.positions));
        const Count row = image.quotient * of.h + vertical.first + image.remainder * of.stride_h;
        return row * of.w + horizontal.first + line.remainder * of.stride_w;
    }

private:
    struct Small {
        uint32 quotient, remainder;
    };
    __device__ __forceinline__ static Quotient over(int64 n, int64 d) { return divide(n, d); }
    __device__ __forceinline__ static Small over(uint32 n, uint32 d) { return {n / d, n % d}; }
};

// The windows of a batch of images as the rows of a matrix: (images * height.positions * width.positions) x
// (height.taps * width.taps * channels). Each row is the patch that one window of one group sees, its elements
// (u, v, c) with c running fastest.
template <typename Type>
struct Patches {
    struct Row {
        const Type* image;   // first pixel, first channel of the group
        int row, column;     // of tap (0, 0); for a window beyond the last, so far out that no tap reaches an image
        uint32 y, x;         // of the window
        const Type* corner;  // the pixel under tap (0, 0), as if images had no edges
    };

    struct Column {
        int64 channel;
        int u, v;
        int down, across;  // from tap (0, 0) to (u, v)
        int64 offset;      // of the element, from the corner on
    };

    const Type* images;  // first channel of the group
    const Type* last;    // behind all of them
    int64 rows;
    ConvAxis height, width;
    int64 stride, channels;  // from pixel to pixel; of the group
    bool aligned;

    __device__ __forceinline__ Patches(const Type* images, int64 count, const ConvAxis& height, const ConvAxis& width,
                                       int64 stride, int64 channels)
        : images(images), last(images + count * height.size * width.size * stride),
          rows(count * height.positions * width.positions), height(height), width(width), stride(stride),
          channels(channels),
          aligned(aligned16(images) && stride % Vector<Type>::size == 0 && channels % Vector<Type>::size == 0) {}

    __device__ __forceinline__ Row row(int64 r) const {
        if (r >= rows) return beyond();
        const Quotient line = divide(r, width.positions), image = divide(line.quotient, height.positions);
        return window(images + image.quotient * height.size * width.size * stride,
                      static_cast<uint32>(image.remainder), static_cast<uint32>(line.remainder));
    }

    __device__ __forceinline__ Column column(int64 element) const {
        const Quotient tap = divide(element, channels), place = divide(tap.quotient, width.taps);
        return under(static_cast<int>(place.quotient), static_cast<int>(place.remainder), tap.remainder);
    }

    // The row, the column further on. What is small is faster to count than to divide.
    __device__ __forceinline__ void advance_row(Row& row, int by) const {
        uint32 x = row.x + by, y = row.y;
        const Type* image = row.image;
        while (x >= width.positions) {
            x -= width.positions;
            if (++y < height.positions) continue;
            y = 0;
            image += height.size * width.size * stride;
        }
        row = image < last ? window(image, y, x) : beyond();
    }
    __device__ __forceinline__ void advance_column(Column& column, int by) const {
        int64 channel = column.channel + by;
        int u = column.u, v = column.v;
        while (channel >= channels) {
            channel -= channels;
            if (++v == width.taps) v = 0, ++u;
        }
        column = under(u, v, channel);
    }

    // WIDTH elements from `column` on, which lie in one pixel.
    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(const Row& row, const Column& column) const {
        const uint32 h = static_cast<uint32>(row.row) + static_cast<uint32>(column.down);
        const uint32 w = static_cast<uint32>(row.column) + static_cast<uint32>(column.across);
        return {row.corner + column.offset, column.u < height.taps && h < height.size && w < width.size ? WIDTH : 0};
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
        if (u >= height.taps) return nullptr;
        const int h = patch.row + static_cast<int>(u) * height.reach, w = patch.column + v * width.reach;
        const bool inside = h >= 0 && h < height.size && w >= 0 && w < width.size;
        return inside ? patch.image + (static_cast<int64>(h) * width.size + w) * stride : nullptr;
    }

private:
    __device__ __forceinline__ Row window(const Type* image, uint32 y, uint32 x) const {
        const int row = static_cast<int>(y) * height.step + height.origin;
        const int column = static_cast<int>(x) * width.step + width.origin;
        return {image, row, column, y, x, image + (static_cast<int64>(row) * width.size + column) * stride};
    }
    __device__ __forceinline__ Row beyond() const {
        return {last, height.reach < 0 ? -1 : -2147483647 - 1, 0, 0, 0, last};
    }
    __device__ __forceinline__ Column under(int u, int v, int64 channel) const {
        const int down = u * height.reach, across = v * width.reach;
        return {channel, u, v, down, across, (static_cast<int64>(down) * width.size + across) * stride + channel};
    }
};

// The weights that the data gradient of one group multiplies: row (a, b, o) of the matrix is W[o, u(a), v(b), :] with
// u(a) = first_tap + period a, and likewise v(b).
template <typename Type>
struct TurnedWeights {
    struct Row {
        const Type* at;  // null beyond the last
        int64 output;
        int a, b;
    };
    typedef int64 Column;

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
        return under(static_cast<int>(place.quotient), static_cast<int>(place.remainder), tap.remainder);
    }
    __device__ __forceinline__ Column column(int64 c) const { return c; }

    // The row, the column further on.
    __device__ __forceinline__ void advance_row(Row& row, int by) const {
        int64 output = row.output + by;
        int a = row.a, b = row.b;
        while (output >= outputs) {
            output -= outputs;
            if (++b == horizontal.axis.taps) b = 0, ++a;
        }
        row = under(a, b, output);
    }
    __device__ __forceinline__ void advance_column(Column& column, int by) const { column += by; }

    // WIDTH elements from `column` on.
    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(const Row& row, Column column) const {
        const int64 left = channels - column;
        const int valid = left < WIDTH ? static_cast<int>(left < 0 ? 0 : left) : WIDTH;
        return {row.at + column, row.at == nullptr ? 0 : valid};
    }

    __device__ __forceinline__ Vector<Type> load(const Row& row, int64 column) const {
        return load_part(row.at, column, channels, aligned);
    }

private:
    __device__ __forceinline__ Row under(int a, int b, int64 output) const {
        const int u = vertical.first_tap + a * vertical.period, v = horizontal.first_tap + b * horizontal.period;
        const bool exists = a < vertical.axis.taps;
        return {exists ? weight + ((output * kernel_height + u) * kernel_width + v) * channels : nullptr, output, a, b};
    }
};

// What x shows the windows of a group of `channels` channels: a row for each pixel of y.
template <typename Type>
__device__ __forceinline__ Patches<Type> windows_of(const Type* x, const Convolution& of, int64 group, int64 channels) {
    return {x + group * channels,
            of.images,
            {of.h, of.p, of.kh, of.stride_h, of.dilation_h, -of.top},
            {of.w, of.q, of.kw, of.stride_w, of.dilation_w, -of.left},
            of.channels,
            channels};
}

// What dy shows the pixels of a class, in a group of `outputs` outputs: a row for each pixel of dx.
template <typename Type>
__device__ __forceinline__ Patches<Type> windows_of(const Type* dy, const Convolution& of, const PixelClass& pixels,
                                                    int64 group, int64 outputs) {
    return {dy + group * outputs, of.images, pixels.vertical.axis, pixels.horizontal.axis, of.out, outputs};
}
