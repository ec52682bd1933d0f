// Accesses of 16 bytes, the widest there are: 4 floats or 8 elements of 16 bits in one instruction.
#pragma once
#include "types.cuh"

template <typename Type>
struct alignas(16) Vector {
    static constexpr int size = 16 / sizeof(Type);
    Type at[size];
};

// The address must be a multiple of 16.
template <typename Type>
__device__ __forceinline__ Vector<Type> load16(const Type* address) {
#ifdef BP_EMULATOR
    return emulator::load16<Vector<Type>>(address);
#else
    union {
        uint4 words;
        Vector<Type> elements;
    } x;
    x.words = *reinterpret_cast<const uint4*>(address);
    return x.elements;
#endif
}

template <typename Type>
__device__ __forceinline__ void store16(Type* address, const Vector<Type>& value) {
#ifdef BP_EMULATOR
    emulator::store16(address, value);
#else
    union {
        uint4 words;
        Vector<Type> elements;
    } x;
    x.elements = value;
    *reinterpret_cast<uint4*>(address) = x.words;
#endif
}

// As store16, but to global memory alone, and one instruction wherever it stands: between other stores in a branch the
// compiler may split a store16 in four.
template <typename Type>
__device__ __forceinline__ void store16_global(Type* address, const Vector<Type>& value) {
#ifdef BP_EMULATOR
    emulator::store16(address, value);
#else
    union {
        uint4 words;
        Vector<Type> elements;
    } x;
    x.elements = value;
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)), "r"(x.words.x),
                 "r"(x.words.y), "r"(x.words.z), "r"(x.words.w)
                 : "memory");
#endif
}

__device__ __forceinline__ bool aligned16(const void* address) {
    return (reinterpret_cast<uint64>(address) & 15) == 0;
}

// Calls body(i) for each i in 0..n-1 over all threads of the grid.
template <typename Body>
__device__ __forceinline__ void grid_stride(int64 n, Body body) {
    const int64 step = static_cast<int64>(gridDim.x) * blockDim.x;
    for (int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) body(i);
}

// Vectors that a thread of map1 and map2 has on their way at once. At full occupancy two are 64 KB a multiprocessor for
// each array; on an H200, bandwidth times delay is about 30 KB. So a block may have twice as many vectors as threads.
constexpr int MAP_VECTORS = 2;

// y[i] = f(x[i]) in float, for any n and any alignment: 16 bytes a thread and step where both arrays allow it.
template <typename Type, typename Function>
__device__ __forceinline__ void map1(const Type* x, Type* y, int64 n, Function f) {
    constexpr int V = Vector<Type>::size;
    const int64 vectors = aligned16(x) && aligned16(y) ? n / V : 0;
    const int64 step = static_cast<int64>(gridDim.x) * blockDim.x;
#pragma unroll 1
    for (int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += MAP_VECTORS * step) {
        Vector<Type> v[MAP_VECTORS];
#pragma unroll
        for (int u = 0; u < MAP_VECTORS; ++u)
            if (i + u * step < vectors) v[u] = load16(x + (i + u * step) * V);
#pragma unroll
        for (int u = 0; u < MAP_VECTORS; ++u) {
#pragma unroll
            for (int k = 0; k < V; ++k) v[u].at[k] = convert<Type>(f(to_float(v[u].at[k])));
            if (i + u * step < vectors) store16(y + (i + u * step) * V, v[u]);
        }
    }
    const int64 first = vectors * V + static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
#pragma unroll 1
    for (int64 i = first; i < n; i += step) y[i] = convert<Type>(f(to_float(x[i])));
}

// y[i] = f(a[i], b[i]) in float; otherwise as map1.
template <typename Type, typename Function>
__device__ __forceinline__ void map2(const Type* a, const Type* b, Type* y, int64 n, Function f) {
    constexpr int V = Vector<Type>::size;
    const int64 vectors = aligned16(a) && aligned16(b) && aligned16(y) ? n / V : 0;
    const int64 step = static_cast<int64>(gridDim.x) * blockDim.x;
#pragma unroll 1
    for (int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += MAP_VECTORS * step) {
        Vector<Type> u[MAP_VECTORS], v[MAP_VECTORS];
#pragma unroll
        for (int j = 0; j < MAP_VECTORS; ++j) {
            if (i + j * step < vectors) {
                u[j] = load16(a + (i + j * step) * V);
                v[j] = load16(b + (i + j * step) * V);
            }
        }
#pragma unroll
        for (int j = 0; j < MAP_VECTORS; ++j) {
#pragma unroll
            for (int k = 0; k < V; ++k) v[j].at[k] = convert<Type>(f(to_float(u[j].at[k]), to_float(v[j].at[k])));
            if (i + j * step < vectors) store16(y + (i + j * step) * V, v[j]);
        }
    }
    const int64 first = vectors * V + static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
#pragma unroll 1
    for (int64 i = first; i < n; i += step) y[i] = convert<Type>(f(to_float(a[i]), to_float(b[i])));
}
