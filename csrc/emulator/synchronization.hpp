// Barriers, shuffles and votes, in the names of CUDA.
#pragma once
#include "interface.hpp"

inline void __syncthreads(BP_SITE) { emulator::block_barrier(emulator::Vote::none, 0, {file, line}); }
inline int __syncthreads_or(int predicate, BP_SITE) {
    return emulator::block_barrier(emulator::Vote::any, predicate, {file, line});
}
inline int __syncthreads_and(int predicate, BP_SITE) {
    return emulator::block_barrier(emulator::Vote::all, predicate, {file, line});
}
inline int __syncthreads_count(int predicate, BP_SITE) {
    return emulator::block_barrier(emulator::Vote::count, predicate, {file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, BP_SITE) {
    emulator::warp_collective(mask, "__syncwarp", nullptr, nullptr, true, {file, line});
}

// The engine runs one thread at a time and in order, so a fence has nothing to do. It does not order accesses for the
// detector either: a fence without an atomic or a barrier orders nothing between two threads.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

inline unsigned __activemask() { return emulator::active_mask(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, BP_SITE) {
    return emulator::ballot(mask, predicate != 0, "__ballot_sync", {file, line});
}
inline int __any_sync(unsigned mask, int predicate, BP_SITE) {
    return emulator::ballot(mask, predicate != 0, "__any_sync", {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, BP_SITE) {
    return emulator::ballot(mask, predicate != 0, "__all_sync", {file, line}) == mask;
}

namespace emulator {

// Which lane a shuffle reads; its own where the source would leave the segment of `width` lanes (PTX, shfl.sync).
inline unsigned source_index(int index, int width) {
    return (lane() & ~(width - 1u)) | (static_cast<unsigned>(index) & (width - 1u));
}
inline unsigned source_up(unsigned delta, int width) {
    const unsigned segment = lane() & ~(width - 1u);
    return lane() >= segment + delta ? lane() - delta : lane();
}
inline unsigned source_down(unsigned delta, int width) {
    const unsigned end = (lane() & ~(width - 1u)) + width;
    return delta < end - lane() ? lane() + delta : lane();
}
inline unsigned source_xor(int mask, int width) {
    const unsigned end = (lane() & ~(width - 1u)) + width, source = lane() ^ static_cast<unsigned>(mask);
    return source < end ? source : lane();
}

template <typename Type>
inline Type shuffle_value(unsigned mask, Type value, unsigned source, const char* name, Site site) {
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(Type));
    bits = shuffle(mask, bits, source, name, site);
    __builtin_memcpy(&value, &bits, sizeof(Type));
    return value;
}

}  // namespace emulator

#define BP_SHUFFLE(Type, name, Argument, argument, source)                                    \
    inline Type name(unsigned mask, Type value, Argument argument, int width = 32, BP_SITE) { \
        const unsigned from = emulator::source(argument, width);                              \
        return emulator::shuffle_value(mask, value, from, #name, {file, line});               \
    }
#define BP_SHUFFLES(Type)                                            \
    BP_SHUFFLE(Type, __shfl_sync, int, index, source_index)          \
    BP_SHUFFLE(Type, __shfl_up_sync, unsigned, delta, source_up)     \
    BP_SHUFFLE(Type, __shfl_down_sync, unsigned, delta, source_down) \
    BP_SHUFFLE(Type, __shfl_xor_sync, int, lanes, source_xor)
BP_SHUFFLES(int)
BP_SHUFFLES(unsigned)
BP_SHUFFLES(long long)
BP_SHUFFLES(unsigned long long)
BP_SHUFFLES(float)
BP_SHUFFLES(double)
#undef BP_SHUFFLES
#undef BP_SHUFFLE

#define BP_REDUCTION(Type, name, reduction)                                          \
    inline Type __reduce_##name##_sync(unsigned mask, Type value, BP_SITE) {         \
        return emulator::reduce(mask, value, emulator::Reduction::reduction, {file, line}); \
    }
BP_REDUCTION(int, add, add)
BP_REDUCTION(int, min, min)
BP_REDUCTION(int, max, max)
BP_REDUCTION(unsigned, add, add)
BP_REDUCTION(unsigned, min, min)
BP_REDUCTION(unsigned, max, max)
BP_REDUCTION(unsigned, and, bitwise_and)
BP_REDUCTION(unsigned, or, bitwise_or)
BP_REDUCTION(unsigned, xor, bitwise_xor)
#undef BP_REDUCTION
