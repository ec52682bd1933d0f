// The state of a launch, shared by the parts of the engine. One launch runs at a time, on the thread that asked for it.
#pragma once
#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fiber.hpp"
#include "interface.hpp"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

constexpr unsigned warp_lanes = 32;
constexpr unsigned most_threads = 1024;
constexpr unsigned named_barriers = 16;
constexpr unsigned warpgroup_threads = 128;
constexpr unsigned most_warpgroups = most_threads / warpgroup_threads;
constexpr unsigned most_barriers = 64;  // of a block; there could be more on a GPU

struct PendingCopy {
    char* destination;
    unsigned bytes;
    unsigned char data[16];
    unsigned group;
};

enum class State : std::uint8_t { unstarted, running, waiting, exited };

struct Thread {
    unsigned index;  // x fastest, as CUDA numbers the threads of a block
    uint3 coordinates;
    State state;
    Fiber* fiber;             // holds its stack while it waits
    const char* waiting_for;  // the collective, and where
    Site waiting_at;
    unsigned copy_groups;               // cp.async groups committed so far
    std::vector<PendingCopy> copies;  // oldest first
    unsigned waiting_barrier;           // its number, where the thread waits for one in shared memory
    unsigned store_groups;              // likewise of stores of the copy engine,
    unsigned product_groups;            // and of wgmma
    bool product_fence;                 // since the last wait
    bool products_in_flight;
};

// Lanes that have come to one warp collective, until all of its mask have.
struct Group {
    unsigned mask, arrived;
    const char* name;
    Complete complete;
    bool orders;
    Site site;
    void* operands[warp_lanes];
};

struct Warp {
    unsigned present;  // lanes that exist and have not exited
    std::vector<Group> groups;
};

struct BlockBarrier {
    unsigned arrived;
    Vote vote;
    Site site;
    int any, all, count;
    int result;  // of the barrier completed last
};

struct NamedBarrier {
    unsigned expected, arrived;
    std::vector<Thread*> waiting;
};

struct Request {
    const Kernel* kernel;
    void** arguments;
    unsigned grid[3], threads[3];
    unsigned long long shared;  // bytes of dynamic shared memory
    unsigned long long seed;    // 0: blocks and threads in natural order
    unsigned long long first_block, block_count;
    double timeout;  // seconds of processor time; 0: any
};

// What went wrong. In the reason, "{0}" and "{1}" stand for places[0] and places[1].
struct Place {
    char module[512];  // empty: not known
    unsigned long long offset;
};

struct Report {
    char reason[1536];
    unsigned block[3], thread[3];
    int in_thread;  // whether `thread` is meant; a deadlock concerns many
    unsigned long long address;
    int has_address;
    char file[512];  // where the source line is known already
    int line;
    int has_place;  // whether places[0] is where the thread stood
    Place places[2];
};

struct Launch {
    Request request;
    unsigned thread_count = 0, warp_count = 0;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> order;  // in which the threads of a block are started

    // The block that runs.
    Thread* current = nullptr;
    unsigned started = 0, exited = 0;
    std::vector<Thread*> ready;
    std::size_t first_ready = 0;
    BlockBarrier barrier{};
    NamedBarrier named[named_barriers];

    FiberPool fibers;
    Fiber scheduler;  // the stack of the caller
    Fiber* running = nullptr;
    std::uint64_t random = 0;

    char* dynamic_base = nullptr;  // of the running launch
    Report* report = nullptr;
    sigjmp_buf escape;
    bool active = false;
    volatile std::sig_atomic_t overdue = 0;  // the time is up
    bool copies_abandoned = false;  // cp.async was used: the next block finds copies that never landed
    std::size_t loads_pending = 0;  // of the copy engine, that have not landed
};

extern Launch launch;

inline bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)); }

// Scheduling (scheduler.cpp).
void run_block(unsigned long long block);
void suspend(const char* waiting_for, Site site);  // the running thread waits until resume()
void resume(Thread& thread);
std::uint64_t random_below(std::uint64_t bound);
bool is_shared(const void* address, std::size_t bytes);  // within the shared memory of the running block

// Where a byte of shared memory lies in the 18 bits of address that instructions see. Its lowest ten bits are those of
// the address here, so tiles of the 128-byte swizzle are the same on both.
unsigned window_of(const void* address);
char* address_in_window(unsigned window);  // nullptr: not in the block's shared memory

// Barriers in shared memory (barriers.cpp).
constexpr const char* barrier_wait_name = "barrier_wait";
void reset_barriers();
unsigned barrier_number(const void* barrier, Site site);  // a fault where none was initialised
void expect_fenced(unsigned barrier, Site site);          // for the copy engine to see it
unsigned barrier_phase(unsigned barrier);                 // how many are over
// A load of the running phase has landed.
void bytes_landed(unsigned barrier, unsigned phase, char* shared, std::size_t bytes, Site site);
int describe_barrier_wait(char* text, std::size_t size, unsigned barrier);  // as snprintf
void expect_all_seen();  // the loads, when the block has ended

// The copy engine (tensor_copies.cpp).
void reset_copies();
void land_one_load();
void some_store_goes_on();
void forget_stores();     // of a launch that went wrong
void write_all_stores();  // when the launch ends
void stores_go_on();  // after a barrier of the block, for the detector
void expect_all_landed();  // when the block has ended
void expect_stores_read(const Thread& thread);  // when it has ended

// Products of warpgroups (wgmma.cpp).
void reset_products();
void products_go_on();
void check_accumulators(const void* local, std::size_t bytes, const void* place);
void expect_products_done(const Thread& thread);  // when it has ended
void expect_steps_by_all();                        // when the block has
constexpr const char* take_registers_name = "take_registers";
int describe_registers_wait(char* text, std::size_t size, const Thread& thread);  // as snprintf

// Collectives that wait for threads which exit (collectives.cpp).
void reset_collectives();
void thread_exited(Thread& thread);

// Reports (faults.cpp).
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));  // of no single thread
[[noreturn]] void fail_at(std::uintptr_t place, const void* address, std::uintptr_t other, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
void locate(std::uintptr_t place, Place& result);
[[noreturn]] void time_is_up(std::uintptr_t place);
void install_signal_handlers();
void restore_signal_handlers();

// Memory (memory.cpp).
struct Range {
    std::uintptr_t begin = 0, end = 0;
    bool released = false;
};
// The allocation whose pages (guard pages included) hold the address, or held it; an end of 0 where there is none.
Range allocation_at(const void* address);
extern std::atomic<std::uint64_t> allocation_changes;  // grows with every allocation and release
char* dynamic_shared_end();
constexpr std::size_t most_dynamic_shared = 256 * 1024;

}  // namespace emulator
