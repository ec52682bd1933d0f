// Included before every kernel file: CUDA's keywords and built-in functions, so that a C++ compiler takes it as it is.
//
// What is missing here is missing on purpose: a kernel that uses it does not compile. So it is with atomics on floats,
// whose result depends on timing.
#pragma once
#include "interface.hpp"

#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900  // all intrinsics of kernels/include have twins
#endif

// Whether copies and products of the unit go on by themselves; kernels/include/barrier.cuh says so.
#define BP_AGENTS 0

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static const
#define __grid_constant__
#define __restrict__ __restrict
// The variables of one kernel stand together in a section, whose name the unit defines before each kernel, so that the
// engine can poison them before every block.
#define __shared__ static __attribute__((section(BP_SHARED_SECTION)))

// Constant, because a thread sees no change of them; the engine sets them before it resumes a thread.
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "arithmetic.hpp"
#include "atomics.hpp"
#include "synchronization.hpp"
#include "vector_access.hpp"

extern "C" int printf(const char* format, ...) __attribute__((format(printf, 1, 2)));

#undef assert
#define assert(condition) \
    ((condition) ? (void)0 : emulator::fault({__FILE__, __LINE__}, "the assertion %s does not hold", #condition))

inline void __trap(BP_SITE) { emulator::fault({file, line}, "__trap() was called"); }
inline long long clock64() { return emulator::ticks(); }
