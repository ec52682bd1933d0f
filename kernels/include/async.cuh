// Copies from global to shared memory past the registers (cp.async), and barriers of a part of a block.
#pragma once
#include "types.cuh"

// A place in shared memory that is counted in bytes, in one register: what a pointer has two for. copy_async,
// load_matrix and load_shared take either.
#ifdef BP_EMULATOR

typedef unsigned char* SharedPlace;

inline SharedPlace shared_place(unsigned char* shared) { return shared; }

#else

typedef uint32 SharedPlace;

// The address of shared memory as PTX instructions take it.
__device__ __forceinline__ uint32 shared_addr(const void* shared) {
    return static_cast<uint32>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ uint32 shared_addr(SharedPlace place) { return place; }

__device__ __forceinline__ SharedPlace shared_place(unsigned char* shared) { return shared_addr(shared); }

#endif

// Starts a copy of BYTES (4, 8 or 16; both addresses multiples of it). The data must not be touched before the
// copy's group has been waited for, and not by other threads before a barrier after that. Of the source, the first
// `valid` bytes are read (0: none, and the address may be anything); the rest of the destination becomes zero.
template <int BYTES, typename Place>
__device__ __forceinline__ void copy_async(Place shared, const void* global, uint32 valid = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
#ifdef BP_EMULATOR
    emulator::async_copy(shared, global, BYTES, valid, {__FILE__, __LINE__});
#else
    // .cg goes past the first-level cache, and exists for 16 bytes only.
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_addr(shared)), "l"(global), "r"(valid)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_addr(shared)), "l"(global),
                     "n"(BYTES), "r"(valid)
                     : "memory");
#endif
}

// The copies that this thread started since its last commit become a group.
__device__ __forceinline__ void commit_copies() {
#ifdef BP_EMULATOR
    emulator::async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most IN_FLIGHT of this thread's youngest groups are unfinished. A barrier must follow before other
// threads read what was copied.
template <int IN_FLIGHT>
__device__ __forceinline__ void wait_copies() {
#ifdef BP_EMULATOR
    emulator::async_wait(IN_FLIGHT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(IN_FLIGHT) : "memory");
#endif
}

// Barriers 1 to 15 of a block (0 is that of __syncthreads). `threads` is how many take part, a multiple of 32.
// Whole warps call them.
__device__ __forceinline__ void named_barrier_sync(uint32 barrier, uint32 threads) {
#ifdef BP_EMULATOR
    emulator::named_barrier_sync(barrier, threads, {__FILE__, __LINE__});
#else
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#endif
}

// Arrives without waiting: what this thread did before is seen by those who wait there.
__device__ __forceinline__ void named_barrier_arrive(uint32 barrier, uint32 threads) {
#ifdef BP_EMULATOR
    emulator::named_barrier_arrive(barrier, threads, {__FILE__, __LINE__});
#else
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#endif
}
