// What the backward of every normalisation has in common: the gradient of one element, from sums over its set.
#pragma once
#include "types.cuh"

// dx = rstd (g - mean(g) - xhat mean(g xhat)) with g = dy gamma; the means are over the elements that were normalised
// together. Zeros in the last three members give the gradient where mean and rstd were constants, dx = rstd g.
struct NormGradient {
    float mean, rstd;
    float rest;  // mean of x - mean: what float32 could not hold of the mean
    float mean_g;
    float mean_g_xhat;

    // sums: of g, g (x - mean) and x - mean. centred: 0 where the forward took no mean away.
    __device__ __forceinline__ void finish(const float (&sums)[3], int64 count, int centred) {
        const float inverse_count = 1.0f / count;
        rest = centred ? sums[2] * inverse_count : 0.0f;
        mean_g = centred ? sums[0] * inverse_count : 0.0f;
        mean_g_xhat = (sums[1] - rest * sums[0]) * rstd * inverse_count;
    }

    __device__ __forceinline__ float xhat(float x) const { return fmaf(x - mean, rstd, -rest * rstd); }

    // g, if it is a product, by __fmul_rn: contracted into the difference, a set of one element would have a gradient.
    __device__ __forceinline__ float gradient(float g, float normalised) const {
        return rstd * fmaf(-mean_g_xhat, normalised, g - mean_g);
    }
};
