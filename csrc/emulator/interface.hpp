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
};

// Ends the launch with a report about the running thread. printf's formats.
[[noreturn]] void fault(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

void* dynamic_shared();

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

}  // namespace emulator
