// What every kernel of a matrix product takes: `batch` products C (m, n) = A B of depth k.
//
// *_stride: from a row of the matrix, as it lies in memory, to the next; *_batch: from one matrix to the next. The
// depth is cut into parts of `part` steps, one for each blockIdx.y; where there are several, each writes its sums to a
// place of its own in `wide`, and linear_parts.cu adds them. blockIdx.z counts the products. tf32: whether
// factors that are floats are rounded to it.
#pragma once
#include "epilogue.cuh"
#include "indexing.cuh"

#define PRODUCT_PARAMETERS                                                                                            \
    int64 m, int64 n, int64 k, int64 batch, int64 a_stride, int64 b_stride, int64 c_stride, int64 a_batch,            \
        int64 b_batch, int64 c_batch, int64 part, bool tf32
#define PRODUCT_ARGUMENTS m, n, k, batch, a_stride, b_stride, c_stride, a_batch, b_batch, c_batch, part, tf32

struct Product {
    int64 m, n, k, batch, a_stride, b_stride, c_stride, a_batch, b_batch, c_batch, part;
    bool tf32;

    // The part of the depth that this block has.
    __device__ __forceinline__ int64 begin() const { return blockIdx.y * part; }
    __device__ __forceinline__ int64 end() const { return smaller(begin() + part, k); }
    __device__ __forceinline__ bool in_parts() const { return gridDim.y > 1; }

    // Where an element of C lies: in y or wide, whose rows may have gaps, or in the place of this block's part; sums:
    // how many follow the elements of a part (linear_parts.cu).
    __device__ __forceinline__ int64 place(int64 row, int64 column, int64 sums = 0) const {
        if (in_parts()) return blockIdx.y * (batch * m * n + sums) + logical(row, column);
        return blockIdx.z * c_batch + row * c_stride + column;
    }
    // In arrays without gaps.
    __device__ __forceinline__ int64 logical(int64 row, int64 column) const {
        return (blockIdx.z * m + row) * n + column;
    }
    // From a row to the next where `place` is.
    __device__ __forceinline__ int64 stride() const { return in_parts() ? n : c_stride; }

    // Whether 16 bytes may be stored at a time there: rows, and products or parts, begin at multiples of that.
    template <typename Type>
    __device__ __forceinline__ bool vectors(const Epilogue<Type>& epilogue, int64 sums = 0) const {
        return epilogue.vectors(n, stride()) && (in_parts() ? sums % 4 == 0 : c_batch % Vector<Type>::size == 0);
    }
};
