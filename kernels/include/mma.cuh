// Matrix instructions of a warp: ldmatrix and mma.sync. The whole warp calls them together. On sm_75 there are ldmatrix
// and the product of float16; sm_80 and later have all.
//
// Fragments are named arrays of registers in the layouts of the PTX ISA. For lane l, with g = l / 4 and t = l % 4:
//   m16n8k16, 16-bit elements, two in a register, the lower half first:
//     a[0] row g, columns 2t 2t+1;  a[1] row g+8;  a[2] row g, columns 2t+8 2t+9;  a[3] row g+8 of these
//     b[0] rows 2t 2t+1 of column g;  b[1] rows 2t+8 2t+9
//   m16n8k8, tf32:  a[0] (g, t)  a[1] (g+8, t)  a[2] (g, t+4)  a[3] (g+8, t+4);  b[0] (t, g)  b[1] (t+4, g)
//   d, both:  d[0] (g, 2t)  d[1] (g, 2t+1)  d[2] (g+8, 2t)  d[3] (g+8, 2t+1)
#pragma once
#include "async.cuh"
#include "vector.cuh"

// Loads MATRICES (1, 2 or 4) matrices of 8 x 8 elements of 16 bits from shared memory. Lane 8m + r passes the address
// of row r of matrix m, a multiple of 16; lanes from 8 * MATRICES on pass any. registers[m] receives elements 2t and
// 2t+1 of row g of matrix m, or, TRANSPOSED, of its column g.
template <int MATRICES, bool TRANSPOSED = false, typename Place = const void*>
__device__ __forceinline__ void load_matrix(uint32 (&registers)[MATRICES], Place row) {
    static_assert(MATRICES == 1 || MATRICES == 2 || MATRICES == 4, "ldmatrix loads 1, 2 or 4 matrices");
#ifdef BP_EMULATOR
    emulator::load_matrix(row, registers, MATRICES, TRANSPOSED, {__FILE__, __LINE__});
#else
    const uint32 address = shared_addr(row);
    if constexpr (MATRICES == 1 && !TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                     : "=r"(registers[0])
                     : "r"(address)
                     : "memory");
    else if constexpr (MATRICES == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(registers[0])
                     : "r"(address)
                     : "memory");
    else if constexpr (MATRICES == 2 && !TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(registers[0]), "=r"(registers[1])
                     : "r"(address)
                     : "memory");
    else if constexpr (MATRICES == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(registers[0]), "=r"(registers[1])
                     : "r"(address)
                     : "memory");
    else if constexpr (!TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
#endif
}

template <int MATRICES, typename Place>
__device__ __forceinline__ void load_matrix_transposed(uint32 (&registers)[MATRICES], Place row) {
    load_matrix<MATRICES, true>(registers, row);
}

// A float of shared memory, for fragments that ldmatrix cannot make.
__device__ __forceinline__ float load_shared(SharedPlace place) {
#ifdef BP_EMULATOR
    return *reinterpret_cast<const float*>(place);
#else
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(place) : "memory");
    return x;
#endif
}

// 16 bytes to a multiple of 16, as store16.
template <typename Type>
__device__ __forceinline__ void store16_shared(SharedPlace place, const Vector<Type>& value) {
#ifdef BP_EMULATOR
    store16(reinterpret_cast<Type*>(place), value);
#else
    union {
        uint4 words;
        Vector<Type> elements;
    } x;
    x.elements = value;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(place), "r"(x.words.x), "r"(x.words.y),
                 "r"(x.words.z), "r"(x.words.w)
                 : "memory");
#endif
}

// d += a b, one 16 x 8 tile over a depth of 16 elements of the 16-bit type Type. Sums are in float.
template <typename Type>
__device__ __forceinline__ void multiply_accumulate(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]);

#ifdef BP_EMULATOR

template <>
inline void multiply_accumulate<float16>(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    emulator::multiply_accumulate(emulator::Element::float16, d, a, b, {__FILE__, __LINE__});
}

template <>
inline void multiply_accumulate<bfloat16>(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    emulator::multiply_accumulate(emulator::Element::bfloat16, d, a, b, {__FILE__, __LINE__});
}

#else

template <>
__device__ __forceinline__ void multiply_accumulate<float16>(float (&d)[4], const uint32 (&a)[4],
                                                              const uint32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // m16n8k8 of the lower and of the upper half of the depth: its fragments are halves of these.
#pragma unroll
    for (int half = 0; half < 2; ++half)
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}

template <>
__device__ __forceinline__ void multiply_accumulate<bfloat16>(float (&d)[4], const uint32 (&a)[4],
                                                              const uint32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

// A float rounded to tf32 (10 bits of mantissa), to the nearest, ties away from zero: the only rounding that cvt has on
// sm_80. mma itself would cut the bits off.
__device__ __forceinline__ uint32 to_tf32(float x) {
#ifdef BP_EMULATOR
    const uint32 bits = __float_as_uint(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#else
    uint32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#endif
}

// d += a b, one 16 x 8 tile over a depth of 8 elements of tf32.
__device__ __forceinline__ void multiply_accumulate_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
#ifdef BP_EMULATOR
    emulator::multiply_accumulate(emulator::Element::tf32, d, a, b, {__FILE__, __LINE__});
#else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
