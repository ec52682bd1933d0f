// What the losses share: how the gradient of a term becomes that of the mean.
#pragma once
#include "control.cuh"

// control[LOSS_SCALE] / control[LOSS_DENOMINATOR]; 0 where nothing counts.
__device__ __forceinline__ float gradient_factor(const double* control) {
    const double denominator = control[LOSS_DENOMINATOR];
    return denominator == 0.0 ? 0.0f : static_cast<float>(control[LOSS_SCALE]) / static_cast<float>(denominator);
}

// weight * value, where a weight of 0 takes no heed of an infinite value.
__device__ __forceinline__ float weighted(float weight, float value) {
    return weight == 0.0f ? 0.0f : weight * value;
}
