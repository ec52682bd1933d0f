// A matrix of 16-bit floats in 8 bits, for a product of 8-bit factors (linear_fp8.cu): as it lies, transposed, or both.
//
// The tensor cores take 8-bit factors only with the depth running along their rows. The forward pass wants x and W as
// they lie, the backward pass their transposes, so one pass over the source writes what is asked for: 2 bytes read and
// 1 or 2 written for each element, and 2 more bytes read for the largest size, which the scale follows from.
//
// The scale is a power of two, so that scaling rounds nothing. What is not finite becomes NaN: it must not turn into a
// large number, and e4m3 has no infinity.
#include "fp8.cuh"
#include "indexing.cuh"
#include "reduce.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 64, COLUMNS = 128;  // of a tile
constexpr int RUN = 16;                  // elements that a thread takes at once: as bytes, one store
constexpr int PITCH = COLUMNS + 4;       // of a row of bytes in shared memory: columns are read down the rows
constexpr float LARGEST_E4M3 = 448.0f, LARGEST_E5M2 = 57344.0f;
constexpr uint8 NOT_A_NUMBER = 0x7f;  // in both formats

// largest[block] = max |x| over the block's part of `rows` rows of `columns` elements, `stride` apart; NaN wins.
extern "C" __global__ __launch_bounds__(THREADS) void fp8_largest(const T* x, float* largest, int64 rows, int64 columns,
                                                                  int64 stride) {
    __shared__ float scratch[WARP];
    constexpr int V = Vector<T>::size;
    const Max combine;
    float found = 0.0f;
    const bool whole = aligned16(x) && columns % V == 0 && stride % V == 0;
    const int64 across = whole ? columns / V : columns;
    grid_stride(rows * across, [&](int64 index) {
        const Quotient place = divide(index, across);
        if (whole) {
            const Vector<T> v = load16(x + place.quotient * stride + place.remainder * V);
#pragma unroll
            for (int k = 0; k < V; ++k) found = combine(found, fabsf(to_float(v.at[k])));
        } else {
            found = combine(found, fabsf(to_float(x[place.quotient * stride + place.remainder])));
        }
    });
    found = block_reduce(found, scratch, combine);
    if (threadIdx.x == 0) largest[blockIdx.x] = found;
}

// The largest power of two that keeps `size` within the format; 1 where there is no such size.
__device__ __forceinline__ float scale_of(float size, float most) {
    if (!(size > 0.0f && size < INFINITE)) return 1.0f;
    const uint32 exponent = __float_as_uint(most / size) >> 23;
    return __uint_as_float(min(max(exponent, 1u), 253u) << 23);  // its inverse is a normal number too
}

__device__ __forceinline__ uint8 quantized(float x, float scale, bool gradient) {
    if (!(fabsf(x) < INFINITE)) return NOT_A_NUMBER;
    return gradient ? to_e5m2(x * scale) : to_e4m3(x * scale);
}

// copy: rows x columns bytes, `copy_stride` apart; transposed: columns x rows bytes, `transposed_stride` apart; null:
// not wanted. Both begin at multiples of 16, and so do their rows. largest: `count` values of fp8_largest, at most
// THREADS. inverse[0] = 1 / scale. gradient: e5m2, which has range for precision; otherwise e4m3.
extern "C" __global__ __launch_bounds__(THREADS) void fp8_quantize(
    const T* x, const float* largest, uint8* copy, uint8* transposed, float* inverse, int64 rows, int64 columns,
    int64 stride, int64 copy_stride, int64 transposed_stride, int count, bool gradient) {
    __shared__ float scratch[WARP];
    __shared__ uint32 words[ROWS * PITCH / 4];
    uint8* const tile = reinterpret_cast<uint8*>(words);
    constexpr int V = Vector<T>::size;
    static_assert(V == 8, "16-bit elements");
    const int thread = static_cast<int>(threadIdx.x);
    const float size = block_reduce(thread < count ? largest[thread] : 0.0f, scratch, Max());
    const float scale = scale_of(size, gradient ? LARGEST_E5M2 : LARGEST_E4M3);
    if (blockIdx.x == 0 && thread == 0) inverse[0] = 1.0f / scale;
    const bool aligned = aligned16(x) && stride % V == 0;
    const int64 across = divide_up(columns, COLUMNS), tiles = across * divide_up(rows, ROWS);
    for (int64 task = blockIdx.x; task < tiles; task += gridDim.x) {
        const Quotient place = divide(task, across);
        const int64 first_row = place.quotient * ROWS, first_column = place.remainder * COLUMNS;
#pragma unroll
        for (int part = thread; part < ROWS * COLUMNS / RUN; part += THREADS) {
            const int line = part / (COLUMNS / RUN), offset = part % (COLUMNS / RUN) * RUN;
            const int64 row = first_row + line, column = first_column + offset;
            if (row >= rows || column >= columns) continue;
            const T* const at = x + row * stride + column;
            Vector<uint8> bytes;
            if (aligned && column + RUN <= columns) {
#pragma unroll
                for (int u = 0; u < RUN; u += V) {
                    const Vector<T> v = load16(at + u);
#pragma unroll
                    for (int k = 0; k < V; ++k) bytes.at[u + k] = quantized(to_float(v.at[k]), scale, gradient);
                }
            } else {
#pragma unroll
                for (int k = 0; k < RUN; ++k)
                    bytes.at[k] = column + k < columns ? quantized(to_float(at[k]), scale, gradient) : uint8(0);
            }
            // The rows of the copy are padded to multiples of 16 bytes, so a whole vector fits.
            if (copy != nullptr) store16(copy + row * copy_stride + column, bytes);
            if (transposed != nullptr) {
                const uint32* const packed = reinterpret_cast<const uint32*>(bytes.at);
                uint32* const there = reinterpret_cast<uint32*>(tile + line * PITCH + offset);
#pragma unroll
                for (int k = 0; k < RUN / 4; ++k) there[k] = packed[k];
            }
        }
        if (transposed == nullptr) continue;
        __syncthreads();
#pragma unroll
        for (int part = thread; part < ROWS * COLUMNS / RUN; part += THREADS) {
            const int line = part / (ROWS / RUN), offset = part % (ROWS / RUN) * RUN;
            const int64 column = first_column + line, row = first_row + offset;
            if (column >= columns || row >= rows) continue;
            Vector<uint8> bytes;
#pragma unroll
            for (int k = 0; k < RUN; ++k) bytes.at[k] = row + k < rows ? tile[(offset + k) * PITCH + line] : uint8(0);
            store16(transposed + column * transposed_stride + row, bytes);
        }
        __syncthreads();
    }
}
