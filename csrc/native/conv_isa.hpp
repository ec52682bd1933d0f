// The convolution kernels of csrc/native/conv_kernel.hpp for every instruction set of this machine's family, and the
// choice among them when the module loads.
#pragma once

#include <cstdint>

#if defined(__GNUC__)
#define FORCE_INLINE static inline __attribute__((always_inline))
#define PREFETCH_NEXT_BLOCK(address) __builtin_prefetch(address, 0, 2)
#define PREFETCH_TO_WRITE(address) __builtin_prefetch(address, 1)
#else
#define FORCE_INLINE static inline
#define PREFETCH_NEXT_BLOCK(address)
#define PREFETCH_TO_WRITE(address)
#endif
// Sums live in registers only if the loops over them are gone before registers are given out.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 32")
#else
#define UNROLL
#endif
// GCC reads a vector that is used often from the stack again and again, and a pointer from a vector of pointers, unless
// it is told that they changed in a register.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define BP_CONV_X86
#define KEEP_IN_REGISTER(vector) asm("" : "+v"(vector))
#define KEEP_SCALAR(pointer) asm("" : "+r"(pointer))
#else
#define KEEP_IN_REGISTER(vector)
#define KEEP_SCALAR(pointer)
#endif

namespace bp {
namespace conv {
namespace {

struct Pixels {  // of one block: where each is read, and where it is written
    const float* in;
    const int64_t* in_offsets;
    const int64_t* out_offsets;
    int64_t count;
    const char* ahead = nullptr;  // input of the next block, which gather_rows fetches into the cache meanwhile
    int64_t ahead_bytes = 0;      // of it for each of these pixels
};
struct Runs {  // contiguous floats under a kernel window, relative to its pixel
    const int64_t* offsets;
    int64_t count, length;
};
struct Panel {  // packed weights of some output channels
    const float* weight;
    const float* bias;  // or null
    int64_t columns;    // output channels that exist; the rest of the vectors is padding
    int vectors;
    bool depthwise;
};
struct Kernels {
    int lanes, rows;
    void (*gather)(const Pixels&, const Runs&, const Panel&, float*);
    void (*dot)(const Pixels&, const Runs&, const Panel&, float*);
    void (*outer)(const Pixels&, const float*, const int64_t*, int64_t, int, bool, float*);
    // For windows three pixels wide and rows of `width` pixels; false where they have nothing better than the above.
    bool (*gather_rows)(const Pixels&, int64_t, const Runs&, const Panel&, float*);
    bool (*outer_rows)(const Pixels&, const float*, int64_t, const Runs&, int, float*);
    void (*column_sums)(const Pixels&, const float*, int, float*);
    void (*copy_row)(float*, int64_t, const float*, int64_t, int64_t);
    void (*copy_pixels)(float*, const float*, const int64_t*, int64_t, int64_t, int);
};

#ifdef BP_CONV_X86
namespace avx512 {
#define LANES 16
#define WIDE 12
#define NARROW 10
#define OUTER_NARROW 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#include "conv_kernel.hpp"
}  // namespace avx512
namespace avx2 {
#define LANES 8
#define WIDE 6
#define NARROW 10
#define OUTER_NARROW 12
#define TARGET __attribute__((target("avx2,fma")))
#include "conv_kernel.hpp"
}  // namespace avx2
#endif
namespace baseline {
#if defined(__GNUC__)
#define LANES 4
#else
#define LANES 1
#endif
#define WIDE 6
#define NARROW 8
#define OUTER_NARROW 12
#define TARGET
#include "conv_kernel.hpp"
}  // namespace baseline

const Kernels& choose_kernels() {
#ifdef BP_CONV_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
        return avx512::kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels;
#endif
    return baseline::kernels;
}
const Kernels& isa = choose_kernels();

}  // namespace
}  // namespace conv
}  // namespace bp
