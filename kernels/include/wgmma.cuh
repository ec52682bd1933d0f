// Matrix products of a warpgroup (wgmma; sm_90a): 128 threads, d += a b for a tile of 64 rows, with both factors in
// shared memory.
//
// A warpgroup is four consecutive warps, the first a multiple of 4. All its threads call the functions here together.
// A product is started and later waited for:
//
//     warpgroup_fence();                                                  // d was written by ordinary code
//     for (int k = 0; k < 64; k += 16)                                    // 16 elements of 16 bits: 32 bytes
//         warpgroup_multiply<bfloat16>(d, advanced(a, 2 * k), advanced(b, 2 * k), accumulate || k > 0);
//     warpgroup_commit();
//     warpgroup_wait<0>(d);                                               // now d is there, and a and b may be reused
//
// Until the wait the factors are not written and d is not touched. d is a local array of N / 2 floats of each thread;
// element i of thread t of the warpgroup is
//     row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2
//
// Factors lie as load_box leaves boxes of 128-byte rows with the 128-byte swizzle, in groups of 8 rows (1024 bytes):
//   Major::K   a row of the box is a row of a (or a column of b): 64, 32 or 128 elements along the depth, of 2, 4 or 1
//              bytes. The next group of 8 rows follows 1024 bytes on.
//   Major::MN  (16-bit elements) a row of the box is one step of the depth: 64 elements along the rows of a (or columns
//              of b). 8 steps are a group; the next group follows 1024 bytes on, the next 64 elements `panel` bytes on.
//
// Sums are in float, in an order that NVIDIA does not state; the hardware aligns the products of one instruction to the
// largest and cuts off what is below, and for 8-bit elements keeps fewer bits still. The emulator rounds after each
// addition instead, so that only sums which are exact are the same on both.
#pragma once
#include "barrier.cuh"

enum class Major { K, MN };

// Names of element types that arrays do not have: tf32 lies in memory as float, the 8-bit floats as bytes.
struct tf32;
struct e4m3;
struct e5m2;

// Descriptors. `tile` is a multiple of 1024, panel of 16.
__device__ __forceinline__ uint64 tile_descriptor(const void* tile, uint32 panel BP_CALLER) {
#ifdef BP_EMULATOR
    const uint32 address = emulator::tile_address(tile, {file, line});
#else
    const uint32 address = shared_addr(tile);
#endif
    // From bit 0 the address, from 16 the distance of panels, from 32 that of groups, all by 16; from 62 the swizzle.
    return 1ull << 62 | uint64(1024 >> 4) << 32 | uint64(panel >> 4) << 16 | ((address & 0x3ffff) >> 4);
}

// Of a tile in Major::K.
__device__ __forceinline__ uint64 descriptor_k(const void* tile BP_CALLER) {
#ifdef BP_EMULATOR
    return tile_descriptor(tile, 16, file, line);
#else
    return tile_descriptor(tile, 16);  // a panel is as deep as one instruction reads, so there is no next one
#endif
}

// Of a tile in Major::MN whose panels of 64 elements lie `panel` bytes apart.
__device__ __forceinline__ uint64 descriptor_mn(const void* tile, uint32 panel BP_CALLER) {
#ifdef BP_EMULATOR
    return tile_descriptor(tile, panel, file, line);
#else
    return tile_descriptor(tile, panel);
#endif
}

// The descriptor of the same tile `bytes` further on, a multiple of 16: 32 for the next depth of an instruction in
// Major::K, 2048 for that in Major::MN, 8192 for the next 64 rows in Major::K.
__device__ __forceinline__ uint64 advanced(uint64 descriptor, uint32 bytes) { return descriptor + (bytes >> 4); }

// Before the first product that adds to an array d which other code has written, or read, since the last wait.
__device__ __forceinline__ void warpgroup_fence(BP_CALLER_ONLY) {
#ifdef BP_EMULATOR
    emulator::warpgroup_fence({file, line});
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// The products started since the last commit become a group.
__device__ __forceinline__ void warpgroup_commit(BP_CALLER_ONLY) {
#ifdef BP_EMULATOR
    emulator::warpgroup_commit({file, line});
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Keeps a compiler from moving what it does with d across this point.
template <int REGISTERS>
__device__ __forceinline__ void pin(float (&d)[REGISTERS]) {
#ifndef BP_EMULATOR
#pragma unroll
    for (int i = 0; i < REGISTERS; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

// Waits until all but the youngest IN_FLIGHT groups are done.
template <int IN_FLIGHT>
__device__ __forceinline__ void warpgroup_wait(BP_CALLER_ONLY) {
#ifdef BP_EMULATOR
    emulator::warpgroup_wait(IN_FLIGHT, {file, line});
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(IN_FLIGHT) : "memory");
#endif
}

// The same; then d, an array that is done by now, can be used.
template <int IN_FLIGHT, int REGISTERS>
__device__ __forceinline__ void warpgroup_wait(float (&d)[REGISTERS] BP_CALLER) {
#ifdef BP_EMULATOR
    emulator::warpgroup_wait(IN_FLIGHT, {file, line});
#else
    warpgroup_wait<IN_FLIGHT>();
    pin(d);
#endif
}

// The threads of this warpgroup have REGISTERS registers each from here on (24 to 256, a multiple of 8): a warpgroup
// that needs few gives some back, and one that needs many waits until there are enough. The kernel's launch bounds name
// one block per multiprocessor, without which this has no effect.
template <int REGISTERS>
__device__ __forceinline__ void give_registers_back(BP_CALLER_ONLY) {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "24 to 256 registers, in steps of 8");
#ifdef BP_EMULATOR
    emulator::give_registers_back(REGISTERS, {file, line});
#else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers(BP_CALLER_ONLY) {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "24 to 256 registers, in steps of 8");
#ifdef BP_EMULATOR
    emulator::take_registers(REGISTERS, {file, line});
#else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

#ifdef BP_EMULATOR

template <typename Type>
struct WarpgroupFactor;
template <>
struct WarpgroupFactor<float16> {
    static constexpr emulator::Factor value = emulator::Factor::float16;
};
template <>
struct WarpgroupFactor<bfloat16> {
    static constexpr emulator::Factor value = emulator::Factor::bfloat16;
};
template <>
struct WarpgroupFactor<tf32> {
    static constexpr emulator::Factor value = emulator::Factor::tf32;
};
template <>
struct WarpgroupFactor<e4m3> {
    static constexpr emulator::Factor value = emulator::Factor::e4m3;
};
template <>
struct WarpgroupFactor<e5m2> {
    static constexpr emulator::Factor value = emulator::Factor::e5m2;
};

#else

template <typename A, typename B>
struct WarpgroupPair {
    static constexpr bool is_known = false;
};

// The text of an instruction names its registers by number: first those of d, then the descriptors, whether d is added
// to, and for 16-bit elements the major orders.
#define BP_REGISTERS_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BP_REGISTERS_32 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BP_REGISTERS_64 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BP_REGISTERS_96 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define BP_REGISTER_LIST_32 BP_REGISTERS_0
#define BP_REGISTER_LIST_64 BP_REGISTERS_0 ", " BP_REGISTERS_32
#define BP_REGISTER_LIST_128 BP_REGISTER_LIST_64 ", " BP_REGISTERS_64 ", " BP_REGISTERS_96
#define BP_OUT_8(i)                                                                                              \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define BP_OUT_32(i) BP_OUT_8(i), BP_OUT_8(i + 8), BP_OUT_8(i + 16), BP_OUT_8(i + 24)
#define BP_OUTPUTS_32 BP_OUT_32(0)
#define BP_OUTPUTS_64 BP_OUT_32(0), BP_OUT_32(32)
#define BP_OUTPUTS_128 BP_OUTPUTS_64, BP_OUT_32(64), BP_OUT_32(96)

// n: columns, count: registers; a, b, keep, major_a, major_b: the numbers of what follows them.
#define BP_WGMMA_16(n, count, types, a, b, keep, major_a, major_b)                                                    \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #keep ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n "k16." \
                 types " {" BP_REGISTER_LIST_##count "}, %" #a ", %" #b ", p, 1, 1, %" #major_a ", %" #major_b        \
                 ";\n\t}"                                                                                             \
                 : BP_OUTPUTS_##count                                                                                 \
                 : "l"(descriptor_a), "l"(descriptor_b), "r"(int(accumulate)), "n"(int(MAJOR_A)), "n"(int(MAJOR_B)))
#define BP_WGMMA_K(n, count, depth_and_types, a, b, keep)                                                        \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #keep ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n   \
                 depth_and_types " {" BP_REGISTER_LIST_##count "}, %" #a ", %" #b ", p, 1, 1;\n\t}"              \
                 : BP_OUTPUTS_##count                                                                            \
                 : "l"(descriptor_a), "l"(descriptor_b), "r"(int(accumulate)))

#define BP_MULTIPLY_16(Type, types)                                                                           \
    template <>                                                                                               \
    struct WarpgroupPair<Type, Type> {                                                                        \
        static constexpr bool is_known = true;                                                                \
        static constexpr bool any_major = true;                                                               \
        template <Major MAJOR_A, Major MAJOR_B, int REGISTERS>                                                \
        static __device__ __forceinline__ void multiply(float (&d)[REGISTERS], uint64 descriptor_a,           \
                                                        uint64 descriptor_b, bool accumulate) {               \
            if constexpr (REGISTERS == 32)                                                                    \
                BP_WGMMA_16(64, 32, types, 32, 33, 34, 35, 36);                                               \
            else if constexpr (REGISTERS == 64)                                                               \
                BP_WGMMA_16(128, 64, types, 64, 65, 66, 67, 68);                                              \
            else                                                                                              \
                BP_WGMMA_16(256, 128, types, 128, 129, 130, 131, 132);                                        \
        }                                                                                                     \
    };
#define BP_MULTIPLY_K(A, B, depth_and_types)                                                                  \
    template <>                                                                                               \
    struct WarpgroupPair<A, B> {                                                                              \
        static constexpr bool is_known = true;                                                                \
        static constexpr bool any_major = false;                                                              \
        template <Major MAJOR_A, Major MAJOR_B, int REGISTERS>                                                \
        static __device__ __forceinline__ void multiply(float (&d)[REGISTERS], uint64 descriptor_a,           \
                                                        uint64 descriptor_b, bool accumulate) {               \
            if constexpr (REGISTERS == 32)                                                                    \
                BP_WGMMA_K(64, 32, depth_and_types, 32, 33, 34);                                              \
            else if constexpr (REGISTERS == 64)                                                               \
                BP_WGMMA_K(128, 64, depth_and_types, 64, 65, 66);                                             \
            else                                                                                              \
                BP_WGMMA_K(256, 128, depth_and_types, 128, 129, 130);                                         \
        }                                                                                                     \
    };
BP_MULTIPLY_16(float16, "f32.f16.f16")
BP_MULTIPLY_16(bfloat16, "f32.bf16.bf16")
BP_MULTIPLY_K(tf32, tf32, "k8.f32.tf32.tf32")
BP_MULTIPLY_K(e4m3, e4m3, "k32.f32.e4m3.e4m3")
BP_MULTIPLY_K(e4m3, e5m2, "k32.f32.e4m3.e5m2")
BP_MULTIPLY_K(e5m2, e4m3, "k32.f32.e5m2.e4m3")
BP_MULTIPLY_K(e5m2, e5m2, "k32.f32.e5m2.e5m2")

#undef BP_MULTIPLY_K
#undef BP_MULTIPLY_16
#undef BP_WGMMA_K
#undef BP_WGMMA_16
#undef BP_OUTPUTS_128
#undef BP_OUTPUTS_64
#undef BP_OUTPUTS_32
#undef BP_OUT_32
#undef BP_OUT_8
#undef BP_REGISTER_LIST_128
#undef BP_REGISTER_LIST_64
#undef BP_REGISTER_LIST_32
#undef BP_REGISTERS_96
#undef BP_REGISTERS_64
#undef BP_REGISTERS_32
#undef BP_REGISTERS_0

#endif  // BP_EMULATOR

// Starts d = a b, or d += a b where `accumulate`, for 64 rows and N = 2 REGISTERS columns (64, 128 or 256), over a
// depth of 32 bytes: 16 elements of float16 or bfloat16, 8 of tf32, 32 of e4m3 and e5m2, which may be mixed. Only the
// first two may lie in Major::MN.
template <typename A, typename B = A, Major MAJOR_A = Major::K, Major MAJOR_B = Major::K, int REGISTERS>
__device__ __forceinline__ void warpgroup_multiply(float (&d)[REGISTERS], uint64 a, uint64 b, bool accumulate
                                                       BP_CALLER) {
    static_assert(REGISTERS == 32 || REGISTERS == 64 || REGISTERS == 128, "a tile has 64, 128 or 256 columns");
#ifdef BP_EMULATOR
    emulator::warpgroup_multiply(WarpgroupFactor<A>::value, WarpgroupFactor<B>::value, MAJOR_A == Major::MN,
                                 MAJOR_B == Major::MN, d, REGISTERS, a, b, accumulate, {file, line});
#else
    static_assert(WarpgroupPair<A, B>::is_known, "no product of these two element types");
    static_assert(WarpgroupPair<A, B>::any_major || (MAJOR_A == Major::K && MAJOR_B == Major::K),
                  "only 16-bit elements may lie in Major::MN");
    WarpgroupPair<A, B>::template multiply<MAJOR_A, MAJOR_B>(d, a, b, accumulate);
#endif
}
