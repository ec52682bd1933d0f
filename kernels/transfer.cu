// Transfers: copies, fills and conversions of whole arrays within device memory.
//
// A copy moves bytes whatever they mean, so one kernel serves every element type.
#include "vector.cuh"

constexpr int THREADS = 256;

extern "C" __global__ __launch_bounds__(THREADS) void copy_bytes(const void* source, void* destination, int64 n) {
    const uint8* x = static_cast<const uint8*>(source);
    uint8* y = static_cast<uint8*>(destination);
    const int64 vectors = aligned16(x) && aligned16(y) ? n / 16 : 0;
    grid_stride(vectors, [&](int64 i) { store16(y + 16 * i, load16(x + 16 * i)); });
    const int64 done = 16 * vectors;
    grid_stride(n - done, [&](int64 i) { y[done + i] = x[done + i]; });
}

// y[i] = the lower `width` bytes of `bits`, width 1, 2, 4 or 8. The array is aligned to its elements.
template <typename Word>
__device__ __forceinline__ void fill_words(void* destination, int64 n, uint64 bits) {
    constexpr int V = Vector<Word>::size;
    Word* y = static_cast<Word*>(destination);
    Vector<Word> v;
#pragma unroll
    for (int k = 0; k < V; ++k) v.at[k] = static_cast<Word>(bits);
    const int64 vectors = aligned16(y) ? n / V : 0;
    grid_stride(vectors, [&](int64 i) { store16(y + i * V, v); });
    const int64 done = vectors * V;
    grid_stride(n - done, [&](int64 i) { y[done + i] = v.at[0]; });
}

extern "C" __global__ __launch_bounds__(THREADS) void fill(void* y, int64 n, int width, uint64 bits) {
    if (width == 1) fill_words<uint8>(y, n, bits);
    if (width == 2) fill_words<uint16>(y, n, bits);
    if (width == 4) fill_words<uint32>(y, n, bits);
    if (width == 8) fill_words<uint64>(y, n, bits);
}
