// Runs the threads of a block, each until it waits or exits.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "detector.hpp"
#include "engine.hpp"

// Kernels see them as constants: the engine sets them before it resumes a thread.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Launch launch;

namespace {

void set_current(Thread& thread) {
    launch.current = &thread;
    threadIdx = thread.coordinates;
}

void run_unstarted();

// Ready threads come before unstarted ones, so a warp runs on to the barrier of the block before the next one starts.
Fiber* next_fiber() {
    const unsigned long long seed = launch.request.seed;
    if (seed && launch.loads_pending && random_below(4) == 0) land_one_load();
    if (seed) some_store_goes_on();
    // What the copy engine loads lands at the latest when nobody could go on without it.
    while (launch.loads_pending && launch.ready.size() == launch.first_ready &&
           launch.started == launch.thread_count && launch.exited < launch.thread_count)
        land_one_load();
    const std::size_t ready = launch.ready.size() - launch.first_ready;
    const bool unstarted = launch.started < launch.thread_count;
    if (ready > 0 && !(seed && unstarted && random_below(4) == 0)) {
        if (seed)
            std::swap(launch.ready[launch.first_ready], launch.ready[launch.first_ready + random_below(ready)]);
        Thread& thread = *launch.ready[launch.first_ready++];
        if (launch.first_ready == launch.ready.size()) {
            launch.ready.clear();
            launch.first_ready = 0;
        }
        set_current(thread);
        return thread.fiber;
    }
    return unstarted ? launch.fibers.take(run_unstarted) : &launch.scheduler;
}

void continue_with(Fiber* next) {
    Fiber* self = launch.running;
    if (next == self) return;  // a load that landed just now has let this very thread go on
    launch.running = next;
    switch_fiber(*self, *next);
}

// The body of a fiber. A thread that never waits costs a call here, and leaves the stack to the next one.
void run_unstarted() {
    const Kernel& kernel = *launch.request.kernel;
    while (launch.started < launch.thread_count) {
        Thread& thread = launch.threads[launch.order[launch.started++]];
        thread.state = State::running;
        set_current(thread);
        kernel.run(launch.request.arguments);
        // A thread that waited may have been followed by others, on other fibers; it has ended on its own.
        Thread& ended = *launch.current;
        ended.state = State::exited;
        ++launch.exited;
        thread_exited(ended);
    }
    launch.fibers.give_back(launch.running);
    continue_with(next_fiber());
    __builtin_unreachable();
}

[[noreturn]] void report_deadlock() {
    // The places where threads wait, each with how many do.
    struct Waiting {
        const char* name;
        Site site;
        unsigned count;
        const Thread* first;
        bool is_same(const Thread& thread) const {
            return site.line == thread.waiting_at.line && !std::strcmp(name, thread.waiting_for) &&
                   !std::strcmp(site.file, thread.waiting_at.file) &&
                   (name != barrier_wait_name || first->waiting_barrier == thread.waiting_barrier);
        }
    };
    std::vector<Waiting> places;
    for (unsigned i = 0; i < launch.thread_count; ++i) {
        const Thread& thread = launch.threads[i];
        if (thread.state != State::waiting) continue;
        bool known = false;
        for (Waiting& place : places)
            if (place.is_same(thread)) {
                ++place.count;
                known = true;
            }
        if (!known) places.push_back({thread.waiting_for, thread.waiting_at, 1, &thread});
    }
    char text[1400];
    int used = 0;
    for (const Waiting& place : places) {
        const uint3 at = place.first->coordinates;
        const auto rest = [&] { return sizeof text - static_cast<std::size_t>(used); };
        if (rest() > 1)
            used += std::snprintf(text + used, rest(), "%s%u thread%s in %s at %s:%d (the first: thread %u,%u,%u)",
                                  used ? "; " : "", place.count, place.count == 1 ? "" : "s", place.name,
                                  place.site.file, place.site.line, at.x, at.y, at.z);
        used = std::min(used, static_cast<int>(sizeof text) - 1);
        if (place.name == barrier_wait_name && rest() > 1)
            used += describe_barrier_wait(text + used, rest(), place.first->waiting_barrier);
        if (!std::strcmp(place.name, take_registers_name) && rest() > 1)
            used += describe_registers_wait(text + used, rest(), *place.first);
        used = std::min(used, static_cast<int>(sizeof text) - 1);
    }
    fail("deadlock: %u of %u threads have exited, the others wait for ever: %s", launch.exited, launch.thread_count,
         text);
}

}  // namespace

std::uint64_t random_below(std::uint64_t bound) {
    // splitmix64 (Steele, Lea, Flood 2014)
    std::uint64_t x = launch.random += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (x ^ x >> 31) % bound;
}

void suspend(const char* waiting_for, Site site) {
    Thread& self = *launch.current;
    self.state = State::waiting;
    self.waiting_for = waiting_for;
    self.waiting_at = site;
    self.fiber = launch.running;
    continue_with(next_fiber());
}

void resume(Thread& thread) {
    thread.state = State::running;
    launch.ready.push_back(&thread);
}

void run_block(unsigned long long block) {
    const unsigned* grid = launch.request.grid;
    blockIdx = {static_cast<unsigned>(block % grid[0]), static_cast<unsigned>(block / grid[0] % grid[1]),
                static_cast<unsigned>(block / grid[0] / grid[1])};
    const Kernel& kernel = *launch.request.kernel;
    // NaN in every floating-point type, so that a read before any write shows.
    std::memset(kernel.shared_begin, 0xff, static_cast<std::size_t>(kernel.shared_end - kernel.shared_begin));
    std::memset(launch.dynamic_base, 0xff, launch.request.shared);
    launch.started = launch.exited = 0;
    launch.ready.clear();
    launch.first_ready = 0;
    for (unsigned i = 0; i < launch.thread_count; ++i) {
        Thread& thread = launch.threads[i];
        thread.state = State::unstarted;
        if (thread.copy_groups || !thread.copies.empty()) {
            thread.copy_groups = 0;
            thread.copies.clear();
        }
        thread.store_groups = thread.product_groups = 0;
        thread.product_fence = thread.products_in_flight = false;
    }
    if (launch.request.seed)
        for (unsigned i = launch.thread_count; i > 1; --i)
            std::swap(launch.order[i - 1], launch.order[random_below(i)]);
    reset_collectives();
    reset_barriers();
    reset_copies();
    reset_products();
    if (kernel.detector) detector_block_begins();
    launch.running = &launch.scheduler;
    continue_with(next_fiber());
    launch.current = nullptr;
    if (launch.exited < launch.thread_count) report_deadlock();
    expect_all_landed();
    expect_all_seen();
    expect_steps_by_all();
}

bool is_shared(const void* address, std::size_t bytes) {
    const auto* begin = static_cast<const char*>(address);
    const Kernel& kernel = *launch.request.kernel;
    return (begin >= kernel.shared_begin && begin + bytes <= kernel.shared_end) ||
           (begin >= launch.dynamic_base && begin + bytes <= launch.dynamic_base + launch.request.shared);
}

constexpr std::uintptr_t window_bytes = 256 * 1024, tile_alignment = 1024;

// Dynamic shared memory ends at a page, and so at the end of the window; static shared memory lies at its beginning.
unsigned window_of(const void* address) {
    const auto* at = static_cast<const char*>(address);
    const Kernel& kernel = *launch.request.kernel;
    if (at >= kernel.shared_begin && at < kernel.shared_end)
        return static_cast<unsigned>(at - kernel.shared_begin +
                                     reinterpret_cast<std::uintptr_t>(kernel.shared_begin) % tile_alignment);
    return static_cast<unsigned>(at - (dynamic_shared_end() - window_bytes));
}

char* address_in_window(unsigned window) {
    const Kernel& kernel = *launch.request.kernel;
    char* address = dynamic_shared_end() - window_bytes + window;
    if (address >= launch.dynamic_base) return is_shared(address, 1) ? address : nullptr;
    address = kernel.shared_begin - reinterpret_cast<std::uintptr_t>(kernel.shared_begin) % tile_alignment + window;
    return is_shared(address, 1) ? address : nullptr;
}

void* dynamic_shared() { return launch.dynamic_base; }

void* dynamic_shared_tiles() {
    if (reinterpret_cast<std::uintptr_t>(launch.dynamic_base) % tile_alignment)
        fail("dynamic shared memory for tiles at a multiple of %u takes a size that is one, got %llu bytes",
             static_cast<unsigned>(tile_alignment), launch.request.shared);
    return launch.dynamic_base;
}

unsigned lane() { return launch.current->index % warp_lanes; }

unsigned active_mask() { return launch.warps[launch.current->index / warp_lanes].present; }

long long ticks() {
    static long long count = 0;
    return count += 100;
}

}  // namespace emulator
