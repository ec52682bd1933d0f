// What the kernels of a convolution of one input channel for each output have in common; TAPS and STEP are macros of
// theirs.
#pragma once
#include "convolution.cuh"

constexpr int V = Vector<T>::size;
constexpr int KEPT = TAPS > 0 ? TAPS : 1;  // taps of a row of the kernel that a thread has at once
constexpr int STRIDE = TAPS > 0 ? STEP : 1;

// Along one axis: which inputs NUMBER neighbouring results read, counted from the first that one of them does. Result r
// reads input r STRIDE + tap on the way there, and (r - tap) / STRIDE, where that is a whole number, on the way back;
// there the first result has a position that is a multiple of STRIDE in the padded image.
template <int NUMBER, bool BACK>
struct Reach {
    static constexpr int BEFORE = BACK ? (KEPT - 1) / STRIDE : 0;
    static constexpr int SIZE = BACK ? BEFORE + (NUMBER - 1) / STRIDE + 1 : (NUMBER - 1) * STRIDE + KEPT;

    // The tap through which a result reads an input; there is none unless 0 <= tap < KEPT.
    __device__ __forceinline__ static constexpr int tap(int result, int input) {
        return BACK ? result + (BEFORE - input) * STRIDE : input - result * STRIDE;
    }
};

// WIDTH channels as they lie in memory: V of them, or one. In words of 32 bits, which the compiler keeps together;
// elements of 16 bits each would be taken apart first and then widened.
template <int WIDTH>
struct Channels {
    Vector<uint32> words;
};
template <>
struct Channels<1> {
    T element;
};

__device__ __forceinline__ uint32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint32 bits_of(float16 x) { return x.bits * 0x10001u; }
__device__ __forceinline__ uint32 bits_of(bfloat16 x) { return x.bits * 0x10001u; }

__device__ __forceinline__ void widen(uint32 word, float* y, float) { y[0] = __uint_as_float(word); }
__device__ __forceinline__ void widen(uint32 word, float* y, bfloat16) {
    y[0] = __uint_as_float(word << 16);
    y[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void widen(uint32 word, float* y, float16) {
    y[0] = to_float(float16{static_cast<uint16>(word)});
    y[1] = to_float(float16{static_cast<uint16>(word >> 16)});
}

// same: not channels beside each other, but one for all.
template <int WIDTH>
__device__ __forceinline__ Channels<WIDTH> load_channels(const T* at, bool same = false) {
    if constexpr (WIDTH == 1) {
        return {*at};
    } else {
        if (!same) return {load16(reinterpret_cast<const uint32*>(at))};
        const uint32 word = bits_of(*at);
        return {{word, word, word, word}};
    }
}

template <int WIDTH>
__device__ __forceinline__ Floats<WIDTH> widened(const Channels<WIDTH>& x) {
    Floats<WIDTH> y;
    if constexpr (WIDTH == 1) {
        y.at[0] = to_float(x.element);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) widen(x.words.at[i], y.at + i * WIDTH / 4, T());
    }
    return y;
}
