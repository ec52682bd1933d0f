// The C ABI of a launch: runs a range of blocks of one kernel.
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

#include "detector.hpp"
#include "engine.hpp"

namespace emulator {
namespace {

std::mutex one_at_a_time;

void prepare(const Request& request) {
    launch.request = request;
    const unsigned* size = request.threads;
    const unsigned count = size[0] * size[1] * size[2];
    blockDim.x = size[0], blockDim.y = size[1], blockDim.z = size[2];
    gridDim.x = request.grid[0], gridDim.y = request.grid[1], gridDim.z = request.grid[2];
    launch.threads.resize(most_threads);
    launch.warps.resize(most_threads / warp_lanes);
    launch.order.resize(most_threads);
    launch.thread_count = count;
    launch.warp_count = (count + warp_lanes - 1) / warp_lanes;
    for (unsigned i = 0; i < count; ++i) {
        launch.threads[i].index = i;
        launch.threads[i].coordinates = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
        launch.order[i] = i;
    }
    launch.current = nullptr;
    launch.random = request.seed;
    launch.fibers.reset();
    if (!dynamic_shared_end()) throw std::bad_alloc();
    launch.dynamic_base = dynamic_shared_end() - (request.shared + 15) / 16 * 16;
}

unsigned long long greatest_common_divisor(unsigned long long a, unsigned long long b) {
    while (b) {
        const unsigned long long rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// In an order by the seed: block first + (offset + i * step) % count, where step and count have no common divisor.
void run_blocks(const Request& request) {
    unsigned long long step = 1, offset = 0;
    const unsigned long long count = request.block_count;
    if (request.seed) {
        offset = random_below(count);
        do step = 1 + random_below(count);
        while (greatest_common_divisor(step, count) != 1);
    }
    unsigned long long block = offset;
    for (unsigned long long i = 0; i < count; ++i) {
        run_block(request.first_block + block);
        block = static_cast<unsigned long long>((static_cast<unsigned __int128>(block) + step) % count);
    }
}

}  // namespace
}  // namespace emulator

using namespace emulator;

// 0: done; 1: the report says why not. The caller has checked the sizes against CUDA's limits.
extern "C" int bp_launch(const Request* request, Report* report) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (request->block_count == 0) return 0;
    launch.report = report;
    try {
        prepare(*request);
        if (request->kernel->detector) detector_launch_begins();
    } catch (const std::bad_alloc&) {
        *report = {};
        std::snprintf(report->reason, sizeof report->reason, "no memory for the stacks of its threads");
        return 1;
    }
    install_signal_handlers();
    const bool failed = sigsetjmp(launch.escape, 1) != 0;  // comes back here with 1 from a fault
    if (!failed) {
        launch.active = true;
        run_blocks(launch.request);
        write_all_stores();
    }
    forget_stores();
    launch.active = false;
    launch.copies_abandoned |= failed;
    detector_launch_ends();
    launch.current = nullptr;
    restore_signal_handlers();
    return failed;
}
