// What happens to an element of a matrix product before it is stored: bias, activation, accumulation, rounding.
#pragma once
#include "activation.cuh"

// The numbers are those of ACTIVATIONS in bp/cuda/linear.py.
enum Activation { NO_ACTIVATION = 0, RELU = 1, GELU_TANH = 2, SILU = 3 };

template <typename Type>
__device__ __forceinline__ float activate(int activation, float x) {
    if (activation == RELU) return relu(x);
    if (activation == GELU_TANH) return gelu_tanh<Type>(x);
    if (activation == SILU) return silu<Type>(x);
    return x;
}

// Stores one element after the other. bias: one for each column, or null. before: takes the value that the activation
// is applied to, where backward needs it, or null. y, wide: the result in Type or in float; the other one is null.
template <typename Type>
struct Epilogue {
    const Type* bias;
    Type* before;
    Type* y;
    float* wide;
    bool accumulate;
    int activation;

    // index: of the element in memory; column: the one whose bias it takes.
    __device__ __forceinline__ void store(int64 index, int64 column, float sum) const {
        if (bias != nullptr) sum += to_float(bias[column]);
        if (before != nullptr) before[index] = convert<Type>(sum);
        sum = activate<Type>(activation, sum);
        if (wide != nullptr)
            wide[index] = accumulate ? wide[index] + sum : sum;
        else
            y[index] = convert<Type>(accumulate ? to_float(y[index]) + sum : sum);
    }
};
