// What every kernel of a convolution takes: images (N, H, W, C), weights (out, kh, kw, in / groups).
//
// h, w are sizes of the input and p, q of the output; top, left: rows and columns of padding before the image. tf32:
// whether factors that are floats are rounded to it. Where a product's depth is cut, parts are `part` long
// (product.cuh).
#pragma once
#include "epilogue.cuh"
#include "indexing.cuh"

#define CONVOLUTION_PARAMETERS                                                                                       \
    int64 images, int h, int w, int p, int q, int64 channels, int64 out, int kh, int kw, int groups, int stride_h,     \
        int stride_w, int top, int left, int dilation_h, int dilation_w, bool tf32
#define CONVOLUTION_ARGUMENTS                                                                                        \
    images, h, w, p, q, channels, out, kh, kw, groups, stride_h, stride_w, top, left, dilation_h, dilation_w

// The sizes as one object.
struct Convolution {
    int64 images;
    int h, w, p, q;
    int64 channels, out;
    int kh, kw, groups, stride_h, stride_w, top, left, dilation_h, dilation_w;
};
