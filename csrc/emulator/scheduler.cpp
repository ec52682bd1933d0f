// Runs the threads of a block, each until it waits or exits.
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
    const std::size_t ready = launch.ready.size() - launch.first_ready;
    const bool unstarted = launch.started < launch.thread_count;
    if (ready > 0 && !(launch.request.seed && unstarted && random_below(4) == 0)) {
        if (launch.request.seed)
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
    };
    std::vector<Waiting> places;
    for (unsigned i = 0; i < launch.thread_count; ++i) {
        const Thread& thread = launch.threads[i];
        if (thread.state != State::waiting) continue;
        bool known = false;
        for (Waiting& place : places)
            if (place.site.line == thread.waiting_at.line && !std::strcmp(place.name, thread.waiting_for) &&
                !std::strcmp(place.site.file, thread.waiting_at.file)) {
                ++place.count;
                known = true;
            }
        if (!known) places.push_back({thread.waiting_for, thread.waiting_at, 1, &thread});
    }
    char text[1024];
    int used = 0;
    for (const Waiting& place : places) {
        const uint3 at = place.first->coordinates;
        if (used < static_cast<int>(sizeof text) - 1)
            used += std::snprintf(text + used, sizeof text - static_cast<std::size_t>(used),
                                  "%s%u thread%s in %s at %s:%d (the first: thread %u,%u,%u)", used ? "; " : "",
                                  place.count, place.count == 1 ? "" : "s", place.name, place.site.file,
                                  place.site.line, at.x, at.y, at.z);
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
    }
    if (launch.request.seed)
        for (unsigned i = launch.thread_count; i > 1; --i)
            std::swap(launch.order[i - 1], launch.order[random_below(i)]);
    reset_collectives();
    if (kernel.detector) detector_block_begins();
    launch.running = &launch.scheduler;
    continue_with(next_fiber());
    launch.current = nullptr;
    if (launch.exited < launch.thread_count) report_deadlock();
}

bool is_shared(const void* address, std::size_t bytes) {
    const auto* begin = static_cast<const char*>(address);
    const Kernel& kernel = *launch.request.kernel;
    return (begin >= kernel.shared_begin && begin + bytes <= kernel.shared_end) ||
           (begin >= launch.dynamic_base && begin + bytes <= launch.dynamic_base + launch.request.shared);
}

void* dynamic_shared() { return launch.dynamic_base; }

unsigned lane() { return launch.current->index % warp_lanes; }

unsigned active_mask() { return launch.warps[launch.current->index / warp_lanes].present; }

long long ticks() {
    static long long count = 0;
    return count += 100;
}

}  // namespace emulator
