// Dropout: a mask of random bits, drawn where it is needed and never stored; bp/ops/dropout.py states which bits.
//
// Forward and backward are the same kernel. A thread draws the 128 bits of a chunk, eight elements whose logical
// indices share all but the last three bits. Philox is about 10 instructions an element, the rest 7: within the 27 that
// a 16-bit stream leaves time for on an H200.
#include "dropout_mask.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

// y[i] = x[i] scale where the element with logical index first_element + i is kept, else 0.
extern "C" __global__ __launch_bounds__(THREADS) void dropout(const T* x, const double* control, T* y, int64 n,
                                                              int64 first_element, uint32 call_site, uint32 dropped,
                                                              float scale) {
    constexpr int V = Vector<T>::size;
    const Mask mask{random_key(control), static_cast<uint32>(static_cast<int64>(control[FORWARD_COUNTER])), call_site,
                    dropped, scale};
    const int64 first_chunk = first_element / CHUNK, lead = first_element % CHUNK;
    const int64 whole = lead == 0 && aligned16(x) && aligned16(y) ? n / CHUNK : 0;
    grid_stride(whole, [&](int64 chunk) {
        Vector<T> v[CHUNK / V];
#pragma unroll
        for (int u = 0; u < CHUNK / V; ++u) v[u] = load16(x + chunk * CHUNK + u * V);
        const uint4 bits = mask.bits(first_chunk + chunk);
#pragma unroll
        for (int u = 0; u < CHUNK / V; ++u) {
#pragma unroll
            for (int k = 0; k < V; ++k) v[u].at[k] = convert<T>(mask.apply(bits, u * V + k, to_float(v[u].at[k])));
            store16(y + chunk * CHUNK + u * V, v[u]);
        }
    });
    // The other chunks: the last one where it is not full, or all where x begins within a chunk or at an odd address.
    grid_stride((lead + n + CHUNK - 1) / CHUNK - whole, [&](int64 i) {
        const int64 chunk = whole + i, begin = chunk * CHUNK - lead;
        const uint4 bits = mask.bits(first_chunk + chunk);
#pragma unroll
        for (int j = 0; j < CHUNK; ++j)
            if (begin + j >= 0 && begin + j < n) y[begin + j] = convert<T>(mask.apply(bits, j, to_float(x[begin + j])));
    });
}
