// Bias and activation together: y = f(x + bias) along rows, and its backward with the sums of a bias gradient.
//
// `lanes` threads of a block lie beside each other along a row, each with the same few columns for all of its rows:
// their bias is read once, and their gradients are summed in registers.
#include "activation.cuh"
#include "elements.cuh"

constexpr int THREADS = 256;
constexpr int VECTOR = Vector<T>::size;

// Which columns and rows a thread takes. A line is as many lanes as lie beside each other along a row; blockIdx.x
// counts the splits of the rows, blockIdx.y the tiles of the columns. Threads beyond the last whole line have no work.
struct Place {
    int lane, line, lines;

    __device__ __forceinline__ explicit Place(int lanes)
        : lane(threadIdx.x % lanes), line(threadIdx.x / lanes), lines(THREADS / lanes) {}
    __device__ __forceinline__ int64 first_row() const { return static_cast<int64>(blockIdx.x) * lines + line; }
    __device__ __forceinline__ int64 row_step() const { return static_cast<int64>(gridDim.x) * lines; }
};

template <int V>
__device__ __forceinline__ void store(T* address, const Floats<V>& values) {
    if constexpr (V == 1) {
        *address = convert<T>(values.at[0]);
    } else {
        Vector<T> vector;
#pragma unroll
        for (int k = 0; k < V; ++k) vector.at[k] = convert<T>(values.at[k]);
        store16_global(address, vector);
    }
}

template <int V, typename Function>
__device__ __forceinline__ void rows_forward(const T* x, const T* bias, T* y, int64 rows, int64 columns, int lanes,
                                             Function f) {
    constexpr int ROWS = 2;  // on their way at once
    const Place place(lanes);
    if (place.line >= place.lines) return;
    const int64 step = place.row_step();
    for (int64 c = (static_cast<int64>(blockIdx.y) * lanes + place.lane) * V; c < columns;
         c += static_cast<int64>(gridDim.y) * lanes * V) {
        Floats<V> b;
#pragma unroll
        for (int k = 0; k < V; ++k) b.at[k] = to_float(bias[c + k]);
#pragma unroll 1
        for (int64 row = place.first_row(); row < rows; row += ROWS * step) {
            Floats<V> z[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                if (row + r * step < rows) z[r] = load_floats<V>(x + (row + r * step) * columns + c);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
#pragma unroll
                for (int k = 0; k < V; ++k) z[r].at[k] = f(z[r].at[k] + b.at[k]);
                if (row + r * step < rows) store<V>(y + (row + r * step) * columns + c, z[r]);
            }
        }
    }
}

template <typename Function>
__device__ __forceinline__ void bias_forward(const T* x, const T* bias, T* y, int64 rows, int64 columns, int lanes,
                                             Function f) {
    if (columns % VECTOR == 0 && aligned16(x) && aligned16(y))
        rows_forward<VECTOR>(x, bias, y, rows, columns, lanes, f);
    else
        rows_forward<1>(x, bias, y, rows, columns, lanes, f);
}

// dx = gradient(dy, kept, bias), and sums[split][column] = the sum of dx over the rows of the split; sums may be null.
template <int V, typename Gradient>
__device__ __forceinline__ void rows_backward(const T* dy, const T* kept, const T* bias, T* dx, float* sums,
                                              int64 rows, int64 columns, int lanes, int accumulate, float* scratch,
                                              Gradient gradient) {
    constexpr int ROWS = 2;  // on their way at once
    const Place place(lanes);
    const int64 step = place.row_step(), width = static_cast<int64>(gridDim.y) * lanes * V;
    for (int64 first = static_cast<int64>(blockIdx.y) * lanes * V; first < columns; first += width) {
        const int64 c = first + place.lane * V;
        Floats<V> sum = all_of<V>(0.0f);
        if (c < columns && place.line < place.lines) {
            Floats<V> b;
#pragma unroll
            for (int k = 0; k < V; ++k) b.at[k] = to_float(bias[c + k]);
#pragma unroll 1
            for (int64 row = place.first_row(); row < rows; row += ROWS * step) {
                Floats<V> g[ROWS], x[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    if (row + r * step < rows) {
                        g[r] = load_floats<V>(dy + (row + r * step) * columns + c);
                        x[r] = load_floats<V>(kept + (row + r * step) * columns + c);
                    }
                }
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    if (row + r * step < rows) {
                        Floats<V> d;
#pragma unroll
                        for (int k = 0; k < V; ++k) {
                            d.at[k] = gradient(g[r].at[k], x[r].at[k], b.at[k]);
                            sum.at[k] += d.at[k];
                        }
                        store<V>(dx + (row + r * step) * columns + c, d);
                    }
                }
            }
        }
        if (!sums) continue;
        // A tree over the lines of the block: the sum of the upper half of them is added to the lower half.
#pragma unroll
        for (int k = 0; k < V; ++k) scratch[k * THREADS + threadIdx.x] = sum.at[k];
        for (int left = place.lines; left > 1; left = (left + 1) / 2) {
            const int half = (left + 1) / 2;
            __syncthreads();
            if (place.line + half >= left) continue;
#pragma unroll
            for (int k = 0; k < V; ++k)
                scratch[k * THREADS + threadIdx.x] += scratch[k * THREADS + threadIdx.x + half * lanes];
        }
        if (place.line == 0 && c < columns) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                float& at = sums[static_cast<int64>(blockIdx.x) * columns + c + k];
                const float total = scratch[k * THREADS + threadIdx.x];
                at = accumulate ? at + total : total;
            }
        }
        __syncthreads();
    }
}

template <typename Gradient>
__device__ __forceinline__ void bias_backward(const T* dy, const T* kept, const T* bias, T* dx, float* sums,
                                              int64 rows, int64 columns, int lanes, int accumulate, float* scratch,
                                              Gradient gradient) {
    if (columns % VECTOR == 0 && aligned16(dy) && aligned16(kept) && aligned16(dx))
        rows_backward<VECTOR>(dy, kept, bias, dx, sums, rows, columns, lanes, accumulate, scratch, gradient);
    else
        rows_backward<1>(dy, kept, bias, dx, sums, rows, columns, lanes, accumulate, scratch, gradient);
}

extern "C" __global__ __launch_bounds__(THREADS) void bias_identity_forward(const T* x, const T* bias, T* y, int64 rows,
                                                                            int64 columns, int lanes) {
    bias_forward(x, bias, y, rows, columns, lanes, [](float z) { return z; });
}

extern "C" __global__ __launch_bounds__(THREADS) void bias_relu_forward(const T* x, const T* bias, T* y, int64 rows,
                                                                        int64 columns, int lanes) {
    bias_forward(x, bias, y, rows, columns, lanes, [](float z) { return relu(z); });
}

extern "C" __global__ __launch_bounds__(THREADS) void bias_gelu_tanh_forward(const T* x, const T* bias, T* y,
                                                                             int64 rows, int64 columns, int lanes) {
    bias_forward(x, bias, y, rows, columns, lanes, [](float z) { return gelu_tanh<T>(z); });
}

extern "C" __global__ __launch_bounds__(THREADS) void bias_silu_forward(const T* x, const T* bias, T* y, int64 rows,
                                                                        int64 columns, int lanes) {
    bias_forward(x, bias, y, rows, columns, lanes, [](float z) { return silu<T>(z); });
}

extern "C" __global__ __launch_bounds__(THREADS) void bias_relu_backward(const T* dy, const T* y, const T* bias, T* dx,
                                                                         float* sums, int64 rows, int64 columns,
                                                                         int lanes, int accumulate) {
    __shared__ float scratch[VECTOR * THREADS];
    bias_backward(dy, y, bias, dx, sums, rows, columns, lanes, accumulate, scratch,
                  [](float g, float v, float) { return relu_gradient(g, v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void bias_gelu_tanh_backward(const T* dy, const T* x, const T* bias,
                                                                              T* dx, float* sums, int64 rows,
                                                                              int64 columns, int lanes,
                                                                              int accumulate) {
    __shared__ float scratch[VECTOR * THREADS];
    bias_backward(dy, x, bias, dx, sums, rows, columns, lanes, accumulate, scratch,
                  [](float g, float v, float b) { return g * gelu_tanh_slope<T>(v + b); });
}

extern "C" __global__ __launch_bounds__(THREADS) void bias_silu_backward(const T* dy, const T* x, const T* bias, T* dx,
                                                                         float* sums, int64 rows, int64 columns,
                                                                         int lanes, int accumulate) {
    __shared__ float scratch[VECTOR * THREADS];
    bias_backward(dy, x, bias, dx, sums, rows, columns, lanes, accumulate, scratch,
                  [](float g, float v, float b) { return g * silu_slope<T>(v + b); });
}
