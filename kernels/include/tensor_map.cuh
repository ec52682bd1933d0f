// Copies of boxes between an array in global memory and shared memory, by the copy engine of a multiprocessor (TMA;
// sm_90): one thread starts each, elements beyond the array read as zero and are not written.
//
// What an array and its boxes look like is in a TensorMap, which the host encodes (bp/cuda/tensor_map.py) and a kernel
// takes by value, as `const __grid_constant__ TensorMap map`: the engine reads it where the argument lies, so no copy
// of it may be made. Coordinates count elements, the innermost dimension first, from the array's first element; they
// may be negative or beyond its end. A box lies in shared memory without gaps, the innermost dimension first. With the
// 128-byte swizzle its rows have 128 bytes, and bits 4 to 6 of each byte's address in shared memory are replaced by
// their exclusive or with bits 7 to 9: so a tile begins at a multiple of 1024 (DYNAMIC_SHARED_TILES).
//
// The copy engine, like wgmma, reads and writes shared memory past the ordinary path. What threads have stored there
// themselves it sees only after fence_async_proxy() by each of them and a barrier after that.
#pragma once
#include "barrier.cuh"

struct alignas(64) TensorMap {
    unsigned char bytes[128];
};

// Starts to load the box at these coordinates (2 to 5) to `shared`, a multiple of 128. The bytes of the whole box,
// those beyond the array included, are counted by the barrier as they land. Until its phase is over nobody touches
// them.
//
//     load_box(tile, map, full[stage], {k, row});
template <int RANK>
__device__ __forceinline__ void load_box(void* shared, const TensorMap& map, Barrier& barrier,
                                         const int (&at)[RANK] BP_CALLER) {
    static_assert(RANK >= 2 && RANK <= 5, "boxes have 2 to 5 dimensions");
#ifdef BP_EMULATOR
    emulator::load_box(shared, &map, &barrier, at, RANK, {file, line});
#else
    const uint32 to = shared_addr(shared), counted = shared_addr(&barrier);
    const uint64 from = reinterpret_cast<uint64>(&map);
    if constexpr (RANK == 2)
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
                "r"(to),
            "l"(from), "r"(counted), "r"(at[0]), "r"(at[1])
            : "memory");
    else if constexpr (RANK == 3)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
            "l"(from), "r"(counted), "r"(at[0]), "r"(at[1]), "r"(at[2])
            : "memory");
    else if constexpr (RANK == 4)
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
            "l"(from), "r"(counted), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
            "l"(from), "r"(counted), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
            : "memory");
#endif
}

// Starts to load a column of pixels of an image array (N, H, W, C), as a convolution reads them at one tap of its
// kernel: `pixels_per_column` rows of `channels_per_pixel` elements. `at` is {channel, w, h, n} of the first one, where
// w and h run over the box of the map (from lower_corner on in steps of the strides, up to dim - 1 + upper_corner; then
// w starts again and h goes on, then n), and the pixel read is the one `tap_w` to the right and `tap_h` below (0 to
// 255).
__device__ __forceinline__ void load_pixels(void* shared, const TensorMap& map, Barrier& barrier, const int (&at)[4],
                                            uint16 tap_w, uint16 tap_h BP_CALLER) {
#ifdef BP_EMULATOR
    emulator::load_pixels(shared, &map, &barrier, at, tap_w, tap_h, {file, line});
#else
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_addr(shared)),
        "l"(reinterpret_cast<uint64>(&map)), "r"(shared_addr(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]),
        "r"(at[3]), "h"(tap_w), "h"(tap_h)
        : "memory");
#endif
}

// Starts to store the box at `shared`, a multiple of 128, to these coordinates. It may be read until
// wait_stores_read says that it was.
template <int RANK>
__device__ __forceinline__ void store_box(const TensorMap& map, const void* shared, const int (&at)[RANK] BP_CALLER) {
    static_assert(RANK >= 2 && RANK <= 5, "boxes have 2 to 5 dimensions");
#ifdef BP_EMULATOR
    emulator::store_box(&map, shared, at, RANK, {file, line});
#else
    const uint32 from = shared_addr(shared);
    const uint64 to = reinterpret_cast<uint64>(&map);
    if constexpr (RANK == 2)
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(to), "r"(from),
                     "r"(at[0]), "r"(at[1])
                     : "memory");
    else if constexpr (RANK == 3)
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(to),
                     "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2])
                     : "memory");
    else if constexpr (RANK == 4)
        asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(to),
                     "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];"
                     :
                     : "l"(to), "r"(from), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
                     : "memory");
#endif
}

// The stores that this thread started since its last commit become a group.
__device__ __forceinline__ void commit_stores() {
#ifdef BP_EMULATOR
    emulator::commit_stores();
#else
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Waits until all but the youngest IN_FLIGHT of this thread's groups have read their shared memory, which may then be
// written again. With 0, before the thread ends.
template <int IN_FLIGHT>
__device__ __forceinline__ void wait_stores_read() {
#ifdef BP_EMULATOR
    emulator::wait_stores(IN_FLIGHT);
#else
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(IN_FLIGHT) : "memory");
#endif
}

// What this thread has stored to shared memory is seen by copies and matrix products that start after the next barrier.
__device__ __forceinline__ void fence_async_proxy() {
#ifdef BP_EMULATOR
    emulator::fence_async_proxy();
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Brings the map itself near, before its first use.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map BP_CALLER) {
#ifdef BP_EMULATOR
    emulator::prefetch_tensor_map(&map, {file, line});
#else
    asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64>(&map)) : "memory");
#endif
}
