// Max pooling: the largest of each window and which tap it is, and back: dy to the winners.
//
// Axes (N, H, W, C), so neighbouring threads take neighbouring channels, 16 bytes each where C and alignment allow.
// Forward reads each input once from memory; what overlapping windows read again comes from the caches.
// The tap of a winner is kept in 8 bits where a window has at most 256 taps, else in 16: two kernels from one body.
#include "elements.cuh"
#include "window.cuh"

constexpr int THREADS = 256;

// As many indices as a thread has channels, in one access.
template <typename Index, int WIDTH>
struct alignas(sizeof(Index) * WIDTH) Indices {
    Index at[WIDTH];
};

template <int WIDTH, typename Index>
__device__ __forceinline__ void max_forward(const T* x, T* y, Index* index, int64 images, int64 channels, Axis rows,
                                            Axis columns) {
    const int64 groups = channels / WIDTH;
    grid_stride(images * rows.outputs * columns.outputs * groups, [&](int64 item) {
        const Quotient pixel = divide(item, groups);
        const Quotient row = divide(pixel.quotient, columns.outputs);
        const Quotient image = divide(row.quotient, rows.outputs);
        const Range down = taps_inside(rows, image.remainder), across = taps_inside(columns, row.remainder);

        // The first one inside the image wins against nothing, else a window of -inf alone would have no winner.
        const bool nothing = down.empty() || across.empty();
        const int64 first = nothing ? 0 : down.begin * columns.kernel + across.begin;
        Floats<WIDTH> best = all_of<WIDTH>(-INFINITE);
        Indices<Index, WIDTH> winner;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) winner.at[k] = static_cast<Index>(first);

        const int64 top = image.quotient * rows.inputs + rows.origin(image.remainder);
        for (int64 r = down.begin; r < down.end; ++r) {
            const int64 left = (top + r * rows.dilation) * columns.inputs + columns.origin(row.remainder);
#pragma unroll 2
            for (int64 c = across.begin; c < across.end; ++c) {
                const int64 at = (left + c * columns.dilation) * channels + pixel.remainder * WIDTH;
                const Floats<WIDTH> candidate = load_floats<WIDTH>(x + at);
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    const float value = candidate.at[k];
                    if (value > best.at[k] || value != value) {  // no number is larger than a NaN, so that stays
                        best.at[k] = value;
                        winner.at[k] = static_cast<Index>(r * columns.kernel + c);
                    }
                }
            }
        }
        store_floats<WIDTH>(y + item * WIDTH, best);
        *reinterpret_cast<Indices<Index, WIDTH>*>(index + item * WIDTH) = winner;
    });
}

// Each input gathers from the windows that span it, in their order: no two threads add to one place.
template <int WIDTH, typename Index>
__device__ __forceinline__ void max_backward(const T* dy, const Index* index, T* dx, int64 images, int64 channels,
                                             Axis rows, Axis columns) {
    const int64 groups = channels / WIDTH;
    grid_stride(images * rows.inputs * columns.inputs * groups, [&](int64 item) {
        const Quotient pixel = divide(item, groups);
        const Quotient row = divide(pixel.quotient, columns.inputs);
        const Quotient image = divide(row.quotient, rows.inputs);
        const Range down = outputs_over(rows, image.remainder), across = outputs_over(columns, row.remainder);
        Floats<WIDTH> sum = all_of<WIDTH>(0.0f);
        for (int64 r = down.begin; r < down.end; ++r) {
            const Quotient tap_row = divide(image.remainder - rows.origin(r), rows.dilation);
            if (tap_row.remainder != 0) continue;
#pragma unroll 1  // there are few windows, and copies of the divisions would only take registers
            for (int64 c = across.begin; c < across.end; ++c) {
                const Quotient tap_column = divide(row.remainder - columns.origin(c), columns.dilation);
                if (tap_column.remainder != 0) continue;
                const int64 tap = tap_row.quotient * columns.kernel + tap_column.quotient;
                const int64 output = (image.quotient * rows.outputs + r) * columns.outputs + c;
                const int64 at = output * channels + pixel.remainder * WIDTH;
                const Indices<Index, WIDTH> winner = *reinterpret_cast<const Indices<Index, WIDTH>*>(index + at);
                const Floats<WIDTH> gradient = load_floats<WIDTH>(dy + at);
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) sum.at[k] += winner.at[k] == tap ? gradient.at[k] : 0.0f;
            }
        }
        store_floats<WIDTH>(dx + item * WIDTH, sum);
    });
}

template <typename Index>
__device__ __forceinline__ void choose_forward(const T* x, T* y, Index* index, int64 images, int64 channels,
                                               const Axis& rows, const Axis& columns) {
    constexpr int V = Vector<T>::size;
    if (channels % V == 0 && aligned16(x) && aligned16(y) && aligned16(index))
        max_forward<V>(x, y, index, images, channels, rows, columns);
    else
        max_forward<1>(x, y, index, images, channels, rows, columns);
}

template <typename Index>
__device__ __forceinline__ void choose_backward(const T* dy, const Index* index, T* dx, int64 images, int64 channels,
                                                const Axis& rows, const Axis& columns) {
    constexpr int V = Vector<T>::size;
    if (channels % V == 0 && aligned16(dy) && aligned16(dx) && aligned16(index))
        max_backward<V>(dy, index, dx, images, channels, rows, columns);
    else
        max_backward<1>(dy, index, dx, images, channels, rows, columns);
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void max_pool_forward_8(
    const T* x, T* y, uint8* index, int64 images, int64 height, int64 width, int64 channels, int64 out_height,
    int64 out_width, int64 kernel_height, int64 kernel_width, int64 stride_height, int64 stride_width,
    int64 padding_height, int64 padding_width, int64 dilation_height, int64 dilation_width) {
    choose_forward(x, y, index, images, channels,
                   {height, out_height, kernel_height, stride_height, padding_height, dilation_height},
                   {width, out_width, kernel_width, stride_width, padding_width, dilation_width});
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void max_pool_forward_16(
    const T* x, T* y, uint16* index, int64 images, int64 height, int64 width, int64 channels, int64 out_height,
    int64 out_width, int64 kernel_height, int64 kernel_width, int64 stride_height, int64 stride_width,
    int64 padding_height, int64 padding_width, int64 dilation_height, int64 dilation_width) {
    choose_forward(x, y, index, images, channels,
                   {height, out_height, kernel_height, stride_height, padding_height, dilation_height},
                   {width, out_width, kernel_width, stride_width, padding_width, dilation_width});
}

extern "C" __global__ __launch_bounds__(THREADS, 3) void max_pool_backward_8(
    const T* dy, const uint8* index, T* dx, int64 images, int64 height, int64 width, int64 channels, int64 out_height,
    int64 out_width, int64 kernel_height, int64 kernel_width, int64 stride_height, int64 stride_width,
    int64 padding_height, int64 padding_width, int64 dilation_height, int64 dilation_width) {
    choose_backward(dy, index, dx, images, channels,
                    {height, out_height, kernel_height, stride_height, padding_height, dilation_height},
                    {width, out_width, kernel_width, stride_width, padding_width, dilation_width});
}

extern "C" __global__ __launch_bounds__(THREADS, 3) void max_pool_backward_16(
    const T* dy, const uint16* index, T* dx, int64 images, int64 height, int64 width, int64 channels,
    int64 out_height, int64 out_width, int64 kernel_height, int64 kernel_width, int64 stride_height,
    int64 stride_width, int64 padding_height, int64 padding_width, int64 dilation_height, int64 dilation_width) {
    choose_backward(dy, index, dx, images, channels,
                    {height, out_height, kernel_height, stride_height, padding_height, dilation_height},
                    {width, out_width, kernel_width, stride_width, padding_width, dilation_width});
}
