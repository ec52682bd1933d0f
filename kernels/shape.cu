// Strided copies: bytes moved between arrays of other strides, whatever they mean, in the widest words that fit.
#include "indexing.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

template <typename Word>
__device__ __forceinline__ void move_word(const uint8* from, uint8* to) {
    *reinterpret_cast<Word*>(to) = *reinterpret_cast<const Word*>(from);
}

template <>
__device__ __forceinline__ void move_word<uint4>(const uint8* from, uint8* to) {
    store16(to, load16(from));
}

template <typename Word>
__device__ __forceinline__ void move_rows(const uint8* x, uint8* y, int64 rows, int64 bytes, int64 source_step,
                                          int64 destination_step) {
    constexpr int64 SIZE = sizeof(Word);
    const int64 words = bytes / SIZE;
    grid_stride(rows * words, [&](int64 item) {
        const Quotient part = divide(item, words);
        move_word<Word>(x + part.quotient * source_step + part.remainder * SIZE,
                        y + part.quotient * destination_step + part.remainder * SIZE);
    });
}

// Rows of `bytes` bytes, whose beginnings lie a step apart: what concatenation and splitting along any axis are. The
// offsets, of row 0, and the steps are in bytes.
extern "C" __global__ __launch_bounds__(THREADS) void copy_rows(const void* source, void* destination, int64 rows,
                                                                int64 bytes, int64 source_offset, int64 source_step,
                                                                int64 destination_offset, int64 destination_step) {
    const uint8* x = static_cast<const uint8*>(source) + source_offset;
    uint8* y = static_cast<uint8*>(destination) + destination_offset;
    // The lowest set bit is the widest word that all addresses and lengths are multiples of.
    const uint64 all = reinterpret_cast<uint64>(x) | reinterpret_cast<uint64>(y) |
                       static_cast<uint64>(bytes | source_step | destination_step);
    if (all % 16 == 0)
        move_rows<uint4>(x, y, rows, bytes, source_step, destination_step);
    else if (all % 8 == 0)
        move_rows<uint64>(x, y, rows, bytes, source_step, destination_step);
    else if (all % 4 == 0)
        move_rows<uint32>(x, y, rows, bytes, source_step, destination_step);
    else if (all % 2 == 0)
        move_rows<uint16>(x, y, rows, bytes, source_step, destination_step);
    else
        move_rows<uint8>(x, y, rows, bytes, source_step, destination_step);
}

template <typename Word>
__device__ __forceinline__ void gather_words(const uint8* x, uint8* y, const int64 (&sizes)[6],
                                             const int64 (&steps)[6]) {
    int64 n = 1;
#pragma unroll
    for (int axis = 0; axis < 6; ++axis) n *= sizes[axis];
    grid_stride(n, [&](int64 item) {
        int64 rest = item, from = 0;
#pragma unroll
        for (int axis = 5; axis > 0; --axis) {
            if (sizes[axis] == 1) continue;
            const Quotient part = divide(rest, sizes[axis]);
            from += part.remainder * steps[axis];
            rest = part.quotient;
        }
        move_word<Word>(x + from + rest * steps[0], y + item * static_cast<int64>(sizeof(Word)));
    });
}

// A contiguous array from a strided one of up to six axes, of which the last is contiguous in both: in words of `width`
// bytes (1, 2, 4, 8, 16). sizes: of the axes of the result, the last in words; steps: bytes from one to the next in the
// source, a multiple of width.
extern "C" __global__ __launch_bounds__(THREADS) void copy_strided(
    const void* source, void* destination, int width, int64 size0, int64 size1, int64 size2, int64 size3, int64 size4,
    int64 size5, int64 step0, int64 step1, int64 step2, int64 step3, int64 step4) {
    const uint8* x = static_cast<const uint8*>(source);
    uint8* y = static_cast<uint8*>(destination);
    // A view may begin between the words that its sizes would permit.
    const uint64 addresses = reinterpret_cast<uint64>(x) | reinterpret_cast<uint64>(y);
    while (addresses % width != 0) {
        width /= 2;
        size5 *= 2;
    }
    const int64 sizes[6] = {size0, size1, size2, size3, size4, size5};
    const int64 steps[6] = {step0, step1, step2, step3, step4, width};
    if (width == 16) gather_words<uint4>(x, y, sizes, steps);
    if (width == 8) gather_words<uint64>(x, y, sizes, steps);
    if (width == 4) gather_words<uint32>(x, y, sizes, steps);
    if (width == 2) gather_words<uint16>(x, y, sizes, steps);
    if (width == 1) gather_words<uint8>(x, y, sizes, steps);
}
