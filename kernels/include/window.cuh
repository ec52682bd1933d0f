// Sliding windows along one axis of an image: output o looks at inputs o stride - padding + tap dilation.
#pragma once
#include "indexing.cuh"

struct Axis {
    int64 inputs, outputs, kernel, stride, padding, dilation;

    // Where tap 0 of output o lies; negative in the padding.
    __device__ __forceinline__ int64 origin(int64 output) const { return output * stride - padding; }
};

struct Range {
    int64 begin, end;

    __device__ __forceinline__ bool empty() const { return begin >= end; }
};

// The taps of an output that lie inside the image; there may be none where dilation steps over a small image. Tap 0
// never lies behind the image, since padding is at most half a window.
__device__ __forceinline__ Range taps_inside(const Axis& axis, int64 output) {
    const int64 origin = axis.origin(output);
    const int64 begin = origin < 0 ? divide_up(-origin, axis.dilation) : 0;
    return {begin, smaller(divide(axis.inputs - 1 - origin, axis.dilation).quotient + 1, axis.kernel)};
}

// The outputs whose windows span an input. With a dilation, some of them step over it.
__device__ __forceinline__ Range outputs_over(const Axis& axis, int64 input) {
    const int64 at = input + axis.padding, span = (axis.kernel - 1) * axis.dilation;
    const int64 begin = at > span ? divide_up(at - span, axis.stride) : 0;
    return {begin, smaller(divide(at, axis.stride).quotient + 1, axis.outputs)};
}
