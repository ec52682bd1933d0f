// What a compiled unit of kernels asks of the engine. A unit sees this header, the engine implements it.
//
// No system header is included: a kernel that uses a function the GPU does not have must fail to compile here too.
#pragma once
#include "builtin_types.hpp"

// Every collective takes the place of its call as last arguments, so that a report can name it. Lines identify a
// collective better than machine addresses do: compilers copy a call into both arms of a branch.
#define BP_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emulator {

struct Site {
    const char* file;
    int line;
};

// What the engine knows of a kernel; a unit defines one `bp_kernel_NAME` for each.
struct Kernel {
    void (*run)(void** arguments);  // one thread; arguments[i] points to the value of parameter i
    char* shared_begin;             // its static shared memory
    char* shared_end;
    int detector;  // whether the unit's accesses are hooked
    int agents;    // whether it may start copies and products that go on by themselves
};

// Ends the launch with a report about the running thread. printf's formats.
[[noreturn]] void fault(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

void* dynamic_shared();
void* dynamic_shared_tiles();  // the same; a fault where it is at no multiple of 1024

enum class Vote { none, any, all, count };

// __syncthreads and its variants. The result of the vote; 0 for Vote::none.
int block_barrier(Vote vote, int predicate, Site site);

// bar.sync and bar.arrive: threads is the number of threads, arriving ones included, that complete the barrier.
void named_barrier_sync(unsigned barrier, unsigned threads, Site site);
void named_barrier_arrive(unsigned barrier, unsigned threads, Site site);

// Waits until all lanes of mask have come to the same collective. The last one calls complete(mask, operands), which
// may read and write the operand of every lane in mask. orders: whether it orders memory accesses, as __syncwarp does.
typedef void (*Complete)(unsigned mask, void* const* operands);
void warp_collective(unsigned mask, const char* name, void* operand, Complete complete, bool orders, Site site);

unsigned lane();
unsigned active_mask();
unsigned long long shuffle(unsigned mask, unsigned long long bits, unsigned source, const char* name, Site site);
unsigned ballot(unsigned mask, bool predicate, const char* name, Site site);

enum class Reduction { add, min, max, bitwise_and, bitwise_or, bitwise_xor };
int reduce(unsigned mask, int value, Reduction reduction, Site site);
unsigned reduce(unsigned mask, unsigned value, Reduction reduction, Site site);

long long ticks();

// For accesses that the compiler's hooks do not see, or not as one: the detector checks all bytes at once.
void note_read(const void* address, unsigned long long bytes);
void note_write(void* address, unsigned long long bytes);
void note_atomic(void* address, unsigned long long bytes, const void* place);

// cp.async: the bytes are taken from global memory now, and are in shared memory when this thread has waited for them.
// The first `valid` bytes come from source, the others are zero.
void async_copy(void* shared, const void* source, unsigned bytes, unsigned valid, Site site);
void async_commit();
void async_wait(unsigned groups_in_flight);

// ldmatrix .x1/.x2/.x4: row is this lane's row address; matrices 1, 2 or 4; registers gets one word a matrix.
void load_matrix(const void* row, unsigned* registers, unsigned matrices, bool transposed, Site site);

enum class Element { float16, bfloat16, tf32 };
// mma.sync m16n8k16 (16-bit elements) or m16n8k8 (tf32): d = a b + d for the fragments of this lane.
void multiply_accumulate(Element element, float* d, const unsigned* a, const unsigned* b, Site site);

// mbarrier: `barrier` is its 8 bytes of shared memory.
void barrier_init(void* barrier, unsigned count, Site site);
void barrier_init_fence();
void barrier_arrive(void* barrier, unsigned bytes, Site site);  // bytes: how many more the phase waits for
void barrier_wait(void* barrier, unsigned parity, Site site);

// cp.async.bulk.tensor: map is a TensorMap, `at` has `rank` coordinates.
void load_box(void* shared, const void* map, void* barrier, const int* at, int rank, Site site);
void load_pixels(void* shared, const void* map, void* barrier, const int* at, unsigned tap_w, unsigned tap_h,
                 Site site);
void store_box(const void* map, const void* shared, const int* at, int rank, Site site);
void commit_stores();
// Until they have read shared memory; until_written: until they have written global memory too, which is seen by this
// thread then, and by those that are ordered after it.
void wait_stores(unsigned groups_in_flight, bool until_written = false);
void fence_async_proxy();         // for what this thread has stored to shared memory
void fence_async_proxy_global();  // likewise to global memory
void prefetch_tensor_map(const void* map, Site site);

// wgmma: what a descriptor holds of a tile's address; the four instructions; setmaxnreg.
enum class Factor { float16, bfloat16, tf32, e4m3, e5m2 };
unsigned tile_address(const void* tile, Site site);
void warpgroup_fence(Site site);
void warpgroup_multiply(Factor a, Factor b, bool a_is_mn_major, bool b_is_mn_major, float* d, unsigned registers,
                        unsigned long long descriptor_a, unsigned long long descriptor_b, bool accumulate, Site site);
void warpgroup_commit(Site site);
void warpgroup_wait(unsigned groups_in_flight, Site site);
void give_registers_back(unsigned registers, Site site);
void take_registers(unsigned registers, Site site);

}  // namespace emulator
