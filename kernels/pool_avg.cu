// Average pooling: the mean of each window, and back: each input sums its share of dy over the windows that hold it.
//
// Threads take neighbouring channels, 16 bytes each where C and alignment allow. Sums are in float, first along a row
// of the window, then over its rows: two short sums keep more digits than one long one.
#include "elements.cuh"
#include "window.cuh"

constexpr int THREADS = 256;

// What the mean of an output divides by along one axis: the taps, or those that are no padding.
__device__ __forceinline__ int64 counted(const Axis& axis, int64 output, int include_padding) {
    const int64 origin = axis.origin(output), end = smaller(origin + axis.kernel, axis.inputs);
    return include_padding ? axis.kernel : end - (origin > 0 ? origin : 0);
}

template <int WIDTH>
__device__ __forceinline__ void average_forward(const T* x, T* y, int64 images, int64 channels, Axis rows, Axis columns,
                                                int include_padding) {
    const int64 groups = channels / WIDTH;
    grid_stride(images * rows.outputs * columns.outputs * groups, [&](int64 item) {
        const Quotient pixel = divide(item, groups);
        const Quotient row = divide(pixel.quotient, columns.outputs);
        const Quotient image = divide(row.quotient, rows.outputs);
        const Range down = taps_inside(rows, image.remainder), across = taps_inside(columns, row.remainder);
        const int64 top = image.quotient * rows.inputs + rows.origin(image.remainder);
        Floats<WIDTH> sum = all_of<WIDTH>(0.0f);
        for (int64 r = down.begin; r < down.end; ++r) {
            const int64 left = (top + r) * columns.inputs + columns.origin(row.remainder);
            Floats<WIDTH> sum_of_row = all_of<WIDTH>(0.0f);
#pragma unroll 2
            for (int64 c = across.begin; c < across.end; ++c)
                add_to(sum_of_row, load_floats<WIDTH>(x + (left + c) * channels + pixel.remainder * WIDTH));
            add_to(sum, sum_of_row);
        }
        const int64 count =
            counted(rows, image.remainder, include_padding) * counted(columns, row.remainder, include_padding);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) sum.at[k] /= static_cast<float>(count);
        store_floats<WIDTH>(y + item * WIDTH, sum);
    });
}

template <int WIDTH>
__device__ __forceinline__ void average_backward(const T* dy, T* dx, int64 images, int64 channels, Axis rows,
                                                 Axis columns, int include_padding) {
    const int64 groups = channels / WIDTH;
    grid_stride(images * rows.inputs * columns.inputs * groups, [&](int64 item) {
        const Quotient pixel = divide(item, groups);
        const Quotient row = divide(pixel.quotient, columns.inputs);
        const Quotient image = divide(row.quotient, rows.inputs);
        const Range down = outputs_over(rows, image.remainder), across = outputs_over(columns, row.remainder);
        Floats<WIDTH> sum = all_of<WIDTH>(0.0f);
        for (int64 r = down.begin; r < down.end; ++r) {
            const int64 taps_down = counted(rows, r, include_padding);
            const int64 left = (image.quotient * rows.outputs + r) * columns.outputs;
            Floats<WIDTH> sum_of_row = all_of<WIDTH>(0.0f);
            for (int64 c = across.begin; c < across.end; ++c) {
                const float share = 1.0f / static_cast<float>(taps_down * counted(columns, c, include_padding));
                const Floats<WIDTH> gradient =
                    load_floats<WIDTH>(dy + (left + c) * channels + pixel.remainder * WIDTH);
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) sum_of_row.at[k] += gradient.at[k] * share;
            }
            add_to(sum, sum_of_row);
        }
        store_floats<WIDTH>(dx + item * WIDTH, sum);
    });
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void avg_pool_forward(
    const T* x, T* y, int64 images, int64 height, int64 width, int64 channels, int64 out_height, int64 out_width,
    int64 kernel_height, int64 kernel_width, int64 stride_height, int64 stride_width, int64 padding_height,
    int64 padding_width, int include_padding) {
    constexpr int V = Vector<T>::size;
    const Axis rows = {height, out_height, kernel_height, stride_height, padding_height, 1};
    const Axis columns = {width, out_width, kernel_width, stride_width, padding_width, 1};
    if (channels % V == 0 && aligned16(x) && aligned16(y))
        average_forward<V>(x, y, images, channels, rows, columns, include_padding);
    else
        average_forward<1>(x, y, images, channels, rows, columns, include_padding);
}

extern "C" __global__ __launch_bounds__(THREADS, 3) void avg_pool_backward(
    const T* dy, T* dx, int64 images, int64 height, int64 width, int64 channels, int64 out_height, int64 out_width,
    int64 kernel_height, int64 kernel_width, int64 stride_height, int64 stride_width, int64 padding_height,
    int64 padding_width, int include_padding) {
    constexpr int V = Vector<T>::size;
    const Axis rows = {height, out_height, kernel_height, stride_height, padding_height, 1};
    const Axis columns = {width, out_width, kernel_width, stride_width, padding_width, 1};
    if (channels % V == 0 && aligned16(dy) && aligned16(dx))
        average_backward<V>(dy, dx, images, channels, rows, columns, include_padding);
    else
        average_backward<1>(dy, dx, images, channels, rows, columns, include_padding);
}
