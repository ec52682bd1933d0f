// WIDTH neighbouring elements in registers: one alone, or whole vectors of 16 bytes.
//
// A kernel over channels is written once for any WIDTH. It runs with WIDTH elements to 16 bytes where the number of
// channels and the addresses allow it, and with WIDTH = 1 otherwise.
#pragma once
#include "vector.cuh"

template <typename Type, int WIDTH>
struct Elements {
    Type at[WIDTH];
};

template <int WIDTH>
using Floats = Elements<float, WIDTH>;

// The address is a multiple of 16 bytes, unless WIDTH is 1.
template <int WIDTH, typename Type>
__device__ __forceinline__ Elements<Type, WIDTH> load_elements(const Type* address) {
    Elements<Type, WIDTH> x;
    if constexpr (WIDTH == 1) {
        x.at[0] = *address;
    } else {
        constexpr int V = Vector<Type>::size;
        static_assert(WIDTH % V == 0, "whole vectors of 16 bytes");
#pragma unroll
        for (int first = 0; first < WIDTH; first += V) {
            const Vector<Type> v = load16(address + first);
#pragma unroll
            for (int k = 0; k < V; ++k) x.at[first + k] = v.at[k];
        }
    }
    return x;
}

template <int WIDTH, typename Type>
__device__ __forceinline__ void store_elements(Type* address, const Elements<Type, WIDTH>& x) {
    if constexpr (WIDTH == 1) {
        *address = x.at[0];
    } else {
        constexpr int V = Vector<Type>::size;
        static_assert(WIDTH % V == 0, "whole vectors of 16 bytes");
#pragma unroll
        for (int first = 0; first < WIDTH; first += V) {
            Vector<Type> v;
#pragma unroll
            for (int k = 0; k < V; ++k) v.at[k] = x.at[first + k];
            store16(address + first, v);
        }
    }
}

template <int WIDTH, typename Type>
__device__ __forceinline__ Floats<WIDTH> load_floats(const Type* address) {
    const Elements<Type, WIDTH> x = load_elements<WIDTH>(address);
    Floats<WIDTH> y;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) y.at[k] = to_float(x.at[k]);
    return y;
}

template <int WIDTH, typename Type>
__device__ __forceinline__ void store_floats(Type* address, const Floats<WIDTH>& x) {
    Elements<Type, WIDTH> y;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) y.at[k] = convert<Type>(x.at[k]);
    store_elements<WIDTH>(address, y);
}

// Of the same value in all places.
template <int WIDTH>
__device__ __forceinline__ Floats<WIDTH> all_of(float value) {
    Floats<WIDTH> x;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) x.at[k] = value;
    return x;
}

template <int WIDTH>
__device__ __forceinline__ void add_to(Floats<WIDTH>& sum, const Floats<WIDTH>& x) {
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) sum.at[k] += x.at[k];
}
