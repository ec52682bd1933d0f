// The gradient in front of an activation that a dropout follows, dz = (dy m) f'(z), the mask m drawn again on the way.
//
// After ReLU no bits are needed: what was kept is the result behind the mask, above zero exactly where both let the
// gradient through. For the others a thread draws the 128 bits of a chunk of eight elements (dropout_mask.cuh).
// bp/ops/linear.py has the formula.
#include "activation.cuh"
#include "dropout_mask.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void relu_masked_backward(const T* dy, const T* y, T* dz, int64 n,
                                                                           float scale) {
    map2(dy, y, dz, n, [=](float g, float v) { return relu_gradient(g * scale, v); });
}

// dz[i] = slope(z[i]) dy[i] scale where the element with logical index first_element + i is kept, else slope(z[i]) 0.
template <typename Slope>
__device__ __forceinline__ void masked_backward(const T* dy, const T* z, T* dz, int64 n, int64 first_element,
                                                const Mask& mask, Slope slope) {
    constexpr int V = Vector<T>::size;
    const int64 first_chunk = first_element / CHUNK, lead = first_element % CHUNK;
    const int64 whole = lead == 0 && aligned16(dy) && aligned16(z) && aligned16(dz) ? n / CHUNK : 0;
    grid_stride(whole, [&](int64 chunk) {
        Vector<T> g[CHUNK / V], v[CHUNK / V];
#pragma unroll
        for (int u = 0; u < CHUNK / V; ++u) {
            g[u] = load16(dy + chunk * CHUNK + u * V);
            v[u] = load16(z + chunk * CHUNK + u * V);
        }
        const uint4 bits = mask.bits(first_chunk + chunk);
#pragma unroll
        for (int u = 0; u < CHUNK / V; ++u) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                const float passed = mask.apply(bits, u * V + k, to_float(g[u].at[k]));
                v[u].at[k] = convert<T>(passed * slope(to_float(v[u].at[k])));
            }
            store16(dz + chunk * CHUNK + u * V, v[u]);
        }
    });
    // The other chunks: the last one where it is not full, or all where dy begins within a chunk or at an odd address.
    grid_stride((lead + n + CHUNK - 1) / CHUNK - whole, [&](int64 i) {
        const int64 chunk = whole + i, begin = chunk * CHUNK - lead;
        const uint4 bits = mask.bits(first_chunk + chunk);
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) {
            const int64 at = begin + j;
            if (at >= 0 && at < n) dz[at] = convert<T>(mask.apply(bits, j, to_float(dy[at])) * slope(to_float(z[at])));
        }
    });
}

#define MASKED_PARAMETERS                                                                                \
    const T *dy, const T *z, const double *control, T *dz, int64 n, int64 first_element, uint32 call_site, \
        uint32 dropped, float scale

__device__ __forceinline__ Mask mask_of(const double* control, uint32 call_site, uint32 dropped, float scale) {
    return {random_key(control), static_cast<uint32>(static_cast<int64>(control[FORWARD_COUNTER])), call_site, dropped,
            scale};
}

extern "C" __global__ __launch_bounds__(THREADS) void gelu_masked_backward(MASKED_PARAMETERS) {
    masked_backward(dy, z, dz, n, first_element, mask_of(control, call_site, dropped, scale),
                    [](float v) { return gelu_slope<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void gelu_tanh_masked_backward(MASKED_PARAMETERS) {
    masked_backward(dy, z, dz, n, first_element, mask_of(control, call_site, dropped, scale),
                    [](float v) { return gelu_tanh_slope<T>(v); });
}

extern "C" __global__ __launch_bounds__(THREADS) void silu_masked_backward(MASKED_PARAMETERS) {
    masked_backward(dy, z, dz, n, first_element, mask_of(control, call_site, dropped, scale),
                    [](float v) { return silu_slope<T>(v); });
}
