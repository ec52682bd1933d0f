// The happens-before detector: conflicting accesses of two threads that no barrier orders end the launch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine.hpp"

namespace emulator {

void detector_launch_begins();
void detector_launch_ends();
void detector_block_begins();
void detector_block_barrier();                             // orders all before it with all after it
void detector_warp_sync(unsigned warp, unsigned mask);     // the same for the lanes in mask

// Up to which clock somebody has seen what each thread and agent did.
using Clocks = std::vector<std::uint32_t>;
void detector_release(Clocks& into, unsigned thread);        // what the thread did is before what `into` stands for,
void detector_acquire(const Clocks& from, unsigned thread);  // which is before what this thread does next
void detector_join(Clocks& into, const Clocks& from);
Clocks& detector_named_barrier(unsigned barrier);

enum class Access { read, write, atomic };

// An access of the running thread. place: a return address in its code. aligned: whether the address has to be a
// multiple of `bytes`. whole: whether all bytes are meant; a structure may have padding.
void detector_access(Access kind, const void* address, std::size_t bytes, const void* place, bool aligned,
                     bool whole = true);

// cp.async: between its start and its wait nobody may touch the bytes.
void detector_copy_pending(char* shared, unsigned bytes, const void* place);
void detector_copy_landed(char* shared, unsigned bytes);

// A moment in the life of the running thread, and whether another one is ordered after it.
struct Stamp {
    std::uint32_t epoch, clock;
    unsigned thread;
};
Stamp detector_stamp();
bool detector_follows(const Stamp& earlier);

// fence.proxy.async: what the running thread has stored is visible to the copy engine and the tensor cores.
void detector_fence();
void detector_global_fence();  // likewise what it has written to global memory

// What the copy engine does to global memory, on behalf of the running thread and past the ordinary path. Between a
// write and the thread's wait for it nobody may touch the bytes.
void detector_copy(Access kind, const void* global, std::size_t bytes, const char* name, const void* place);
void detector_copy_written(void* global, std::size_t bytes);

// Loads of the copy engine. Nobody touches the bytes before a thread has waited for the barrier's phase; then a thread
// may that is ordered after such a wait. phase: how many are over with it.
void detector_load_pending(char* shared, std::size_t bytes, unsigned barrier, const void* place);
void detector_load_seen(char* shared, std::size_t bytes, unsigned barrier, std::uint32_t phase);

// Agents: who reads or writes shared memory beside the threads.
constexpr unsigned agent_of_products(unsigned warpgroup) { return most_threads + warpgroup * warp_lanes; }
constexpr unsigned agent_of_stores(unsigned warp) {
    return most_threads + (most_warpgroups + warp / 4) * warp_lanes + warp % 4;
}
constexpr unsigned agent_of_barrier(unsigned barrier) {
    return most_threads + 2 * most_warpgroups * warp_lanes + barrier;
}
// From now on until `clock` is done, an agent reads these bytes. name: of what it does.
void detector_agent_reads(const char* shared, std::size_t bytes, unsigned agent, std::uint32_t clock, const char* name,
                          const void* place);
// It still does, after a barrier of the whole block.
void detector_agent_goes_on(const char* shared, std::size_t bytes, unsigned agent, std::uint32_t clock,
                            const void* place);
void detector_agent_done(unsigned agent, std::uint32_t clock, unsigned thread);  // as this thread knows
// What agents do is ordered after what all of these threads know of, until detector_alone().
void detector_together(unsigned first, unsigned count);
void detector_alone();

}  // namespace emulator
