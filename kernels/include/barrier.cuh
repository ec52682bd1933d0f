// Barriers in shared memory that count arrivals and bytes (mbarrier; sm_90), so that a copy can be waited for.
//
// A barrier goes through phases 0, 1, 2, ... A phase is over when `count` arrivals have been made in it and as many
// bytes have landed as were announced in it; then the next one begins, with `count` arrivals missing again. A thread
// waits for a phase by its parity, and keeps track of it itself:
//
//     __shared__ Barrier full[STAGES];
//     if (threadIdx.x == 0) { barrier_init(full[0], 1); barrier_init_fence(); }
//     __syncthreads();
//     ...
//     barrier_arrive_expect(full[0], BYTES);   // one thread; then its loads, of BYTES together
//     barrier_wait(full[0], round & 1);        // who reads them
//
// Of a barrier in its phase 0, a wait for parity 1 returns at once: as if a phase before the first one were over. That
// is how the first round of a producer finds all stages empty.
#pragma once
#include "async.cuh"

// At the end of a list of parameters: on the emulator the caller's line, which its reports name.
#ifdef BP_EMULATOR
#undef BP_AGENTS
#define BP_AGENTS 1
#define BP_CALLER , BP_SITE
#define BP_CALLER_ONLY BP_SITE
#else
#define BP_CALLER
#define BP_CALLER_ONLY
#endif

// In shared memory. Only the functions below touch what it holds.
struct alignas(8) Barrier {
    uint64 state;
};

// Phase 0 begins: `count` arrivals are missing, 1 to 2^20 - 1. One thread, once; before anyone uses the barrier come
// barrier_init_fence() by this thread, and __syncthreads().
__device__ __forceinline__ void barrier_init(Barrier& barrier, uint32 count BP_CALLER) {
#ifdef BP_EMULATOR
    emulator::barrier_init(&barrier, count, {file, line});
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_addr(&barrier)), "r"(count) : "memory");
#endif
}

// After the last barrier_init of a thread: copies see the barriers too, not only threads.
__device__ __forceinline__ void barrier_init_fence() {
#ifdef BP_EMULATOR
    emulator::barrier_init_fence();
#else
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// One arrival. What this thread did before is seen by those who have waited for the phase.
__device__ __forceinline__ void barrier_arrive(Barrier& barrier BP_CALLER) {
#ifdef BP_EMULATOR
    emulator::barrier_arrive(&barrier, 0, {file, line});
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_addr(&barrier)) : "memory");
#endif
}

// One arrival, and the phase waits for `bytes` bytes more: those of loads that this thread starts next.
__device__ __forceinline__ void barrier_arrive_expect(Barrier& barrier, uint32 bytes BP_CALLER) {
#ifdef BP_EMULATOR
    emulator::barrier_arrive(&barrier, bytes, {file, line});
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_addr(&barrier)), "r"(bytes)
                 : "memory");
#endif
}

// Waits until the phase of this parity (0 or 1) is over: the running one, or the one before it, which is over already.
__device__ __forceinline__ void barrier_wait(Barrier& barrier, uint32 parity BP_CALLER) {
#ifdef BP_EMULATOR
    emulator::barrier_wait(&barrier, parity, {file, line});
#else
    asm volatile(
        "{\n\t"
        ".reg .pred over;\n"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n\t"
        "@!over bra again;\n\t"
        "}" ::"r"(shared_addr(&barrier)),
        "r"(parity)
        : "memory");
#endif
}
