// The happens-before detector: conflicting accesses of two threads that no barrier orders end the launch.
#pragma once
#include <cstddef>

namespace emulator {

void detector_launch_begins();
void detector_launch_ends();
void detector_block_begins();
void detector_block_barrier();                             // orders all before it with all after it
void detector_warp_sync(unsigned warp, unsigned mask);     // the same for the lanes in mask
void detector_release(unsigned barrier, unsigned thread);  // what the thread did is before the named barrier,
void detector_acquire(unsigned barrier, unsigned thread);  // which is before what this thread does next
void detector_clear(unsigned barrier);

enum class Access { read, write, atomic };

// An access of the running thread. place: a return address in its code. aligned: whether the address has to be a
// multiple of `bytes`. whole: whether all bytes are meant; a structure may have padding.
void detector_access(Access kind, const void* address, std::size_t bytes, const void* place, bool aligned,
                     bool whole = true);

// cp.async: between its start and its wait nobody may touch the bytes.
void detector_copy_pending(char* shared, unsigned bytes, const void* place);
void detector_copy_landed(char* shared, unsigned bytes);

}  // namespace emulator
