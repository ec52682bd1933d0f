// Labels: integers of any type, read as int64, and which class they name.
#pragma once
#include "types.cuh"

// Label i. type: the bytes of a label, negated where it is unsigned. What only a uint64 holds becomes the largest
// int64.
__device__ __forceinline__ int64 read_label(const void* labels, int64 i, int type) {
    if (type == 8) return static_cast<const int64*>(labels)[i];
    if (type == 4) return static_cast<const int*>(labels)[i];
    if (type == 2) return static_cast<const short*>(labels)[i];
    if (type == 1) return static_cast<const int8*>(labels)[i];
    if (type == -1) return static_cast<const uint8*>(labels)[i];
    if (type == -2) return static_cast<const uint16*>(labels)[i];
    if (type == -4) return static_cast<const uint32*>(labels)[i];
    constexpr uint64 most = ~0ull >> 1;
    const uint64 label = static_cast<const uint64*>(labels)[i];
    return static_cast<int64>(label < most ? label : most);
}

// The host has checked the labels that it knows; one outside the classes becomes a loss of NaN, not a stray access.
__device__ __forceinline__ bool names_class(int64 label, int64 classes) { return label >= 0 && label < classes; }

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fffffffu); }

// class_weight: by class, or null for 1. NaN for a label outside the classes.
__device__ __forceinline__ float weight_of(int64 label, int64 classes, const float* class_weight) {
    if (!names_class(label, classes)) return not_a_number();
    return class_weight ? class_weight[label] : 1.0f;
}
