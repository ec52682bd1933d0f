// Barriers of a block, and collectives of a warp.
#include <algorithm>
#include <cstring>

#include "detector.hpp"
#include "engine.hpp"

namespace emulator {
namespace {

constexpr const char* block_barrier_name = "__syncthreads";

// When all threads that have not exited have arrived.
void release_block_if_complete() {
    BlockBarrier& barrier = launch.barrier;
    if (barrier.arrived == 0 || barrier.arrived + launch.exited < launch.thread_count) return;
    barrier.result = barrier.vote == Vote::any ? barrier.any : barrier.vote == Vote::all ? barrier.all : barrier.count;
    barrier.arrived = 0;
    if (launch.request.kernel->detector) {
        detector_block_barrier();
        products_go_on();
        stores_go_on();
    }
    for (unsigned i = 0; i < launch.thread_count; ++i) {
        Thread& thread = launch.threads[i];
        if (thread.state == State::waiting && thread.waiting_for == block_barrier_name) resume(thread);
    }
}

void check_named(unsigned barrier, unsigned threads, Site site) {
    if (barrier >= named_barriers) fault(site, "barrier %u: there are only %u", barrier, named_barriers);
    if (threads == 0 || threads % warp_lanes)
        fault(site, "barrier %u of %u threads: not a multiple of 32", barrier, threads);
    const unsigned expected = launch.named[barrier].expected;
    if (expected && expected != threads)
        fault(site, "barrier %u is said to have %u threads here, and %u elsewhere", barrier, threads, expected);
}

void arrive_named(unsigned id, unsigned threads, bool wait) {
    NamedBarrier& barrier = launch.named[id];
    const bool detector = launch.request.kernel->detector;
    barrier.expected = threads;
    ++barrier.arrived;
    Clocks& clocks = detector_named_barrier(id);
    if (detector) detector_release(clocks, launch.current->index);
    if (wait) barrier.waiting.push_back(launch.current);
    if (barrier.arrived < threads) return;
    for (Thread* thread : barrier.waiting) {
        if (detector) detector_acquire(clocks, thread->index);
        if (thread != launch.current) resume(*thread);
    }
    clocks.clear();
    barrier.waiting.clear();
    barrier.expected = barrier.arrived = 0;
}

struct ShuffleOperand {
    unsigned long long bits, result;
    unsigned source;
};

void complete_shuffle(unsigned mask, void* const* operands) {
    for (unsigned i = 0; i < warp_lanes; ++i)
        if (mask >> i & 1) {
            auto* operand = static_cast<ShuffleOperand*>(operands[i]);
            operand->result = static_cast<ShuffleOperand*>(operands[operand->source])->bits;
        }
}

struct BallotOperand {
    bool predicate;
    unsigned result;
};

void complete_ballot(unsigned mask, void* const* operands) {
    unsigned result = 0;
    for (unsigned i = 0; i < warp_lanes; ++i)
        if (mask >> i & 1 && static_cast<BallotOperand*>(operands[i])->predicate) result |= 1u << i;
    for (unsigned i = 0; i < warp_lanes; ++i)
        if (mask >> i & 1) static_cast<BallotOperand*>(operands[i])->result = result;
}

template <typename Type>
struct ReduceOperand {
    Type value;
    Reduction reduction;
    Type result;
};

template <typename Type>
Type combine(Reduction reduction, Type a, Type b) {
    switch (reduction) {
        case Reduction::add: return static_cast<Type>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
        case Reduction::min: return std::min(a, b);
        case Reduction::max: return std::max(a, b);
        case Reduction::bitwise_and: return a & b;
        case Reduction::bitwise_or: return a | b;
        case Reduction::bitwise_xor: return a ^ b;
    }
    return a;
}

template <typename Type>
void complete_reduce(unsigned mask, void* const* operands) {
    bool first = true;
    Type total{};
    for (unsigned i = 0; i < warp_lanes; ++i)
        if (mask >> i & 1) {
            auto* operand = static_cast<ReduceOperand<Type>*>(operands[i]);
            total = first ? operand->value : combine(operand->reduction, total, operand->value);
            first = false;
        }
    for (unsigned i = 0; i < warp_lanes; ++i)
        if (mask >> i & 1) static_cast<ReduceOperand<Type>*>(operands[i])->result = total;
}

const char* name_of(Reduction reduction) {
    constexpr const char* names[] = {"__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                     "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
    return names[static_cast<int>(reduction)];
}

template <typename Type>
Type reduce_value(unsigned mask, Type value, Reduction reduction, Site site) {
    ReduceOperand<Type> operand{value, reduction, Type{}};
    warp_collective(mask, name_of(reduction), &operand, complete_reduce<Type>, false, site);
    return operand.result;
}

}  // namespace

void reset_collectives() {
    launch.barrier = {};
    for (NamedBarrier& barrier : launch.named) {
        barrier.expected = barrier.arrived = 0;
        barrier.waiting.clear();
    }
    for (unsigned i = 0; i < launch.warp_count; ++i) {
        const unsigned lanes = std::min(warp_lanes, launch.thread_count - i * warp_lanes);
        launch.warps[i].present = lanes == warp_lanes ? ~0u : (1u << lanes) - 1;
        launch.warps[i].groups.clear();
    }
}

// Exited threads count as arrived at __syncthreads, as on GPUs since Volta; a warp collective must not name them.
void thread_exited(Thread& thread) {
    Warp& warp = launch.warps[thread.index / warp_lanes];
    const unsigned bit = 1u << thread.index % warp_lanes;
    warp.present &= ~bit;
    for (const Group& group : warp.groups)
        if (group.mask & bit)
            fault(group.site, "this thread exited, and %s with mask %08x waits for it", group.name, group.mask);
    expect_stores_read(thread);
    expect_products_done(thread);
    release_block_if_complete();
}

int block_barrier(Vote vote, int predicate, Site site) {
    BlockBarrier& barrier = launch.barrier;
    if (barrier.arrived == 0) {
        barrier.vote = vote;
        barrier.site = site;
        barrier.any = barrier.count = 0;
        barrier.all = 1;
    } else if (!same(barrier.site, site) || barrier.vote != vote) {
        fault(site, "divergent __syncthreads: other threads of the block are in the one at %s:%d", barrier.site.file,
              barrier.site.line);
    }
    barrier.any |= predicate != 0;
    barrier.all &= predicate != 0;
    barrier.count += predicate != 0;
    ++barrier.arrived;
    const bool last = barrier.arrived + launch.exited == launch.thread_count;
    if (last)
        release_block_if_complete();
    else
        suspend(block_barrier_name, site);
    return barrier.result;
}

void named_barrier_sync(unsigned barrier, unsigned threads, Site site) {
    check_named(barrier, threads, site);
    const bool last = launch.named[barrier].arrived + 1 == threads;
    arrive_named(barrier, threads, true);
    if (!last) suspend("named barrier", site);
}

void named_barrier_arrive(unsigned barrier, unsigned threads, Site site) {
    check_named(barrier, threads, site);
    arrive_named(barrier, threads, false);
}

void warp_collective(unsigned mask, const char* name, void* operand, Complete complete, bool orders, Site site) {
    const unsigned index = launch.current->index, bit = 1u << index % warp_lanes;
    Warp& warp = launch.warps[index / warp_lanes];
    if (!(mask & bit)) fault(site, "%s with mask %08x by lane %u, which is not in it", name, mask, index % warp_lanes);
    if (mask & ~warp.present)
        fault(site, "%s with mask %08x names lanes that have exited or do not exist: %08x", name, mask,
              mask & ~warp.present);

    Group* group = nullptr;
    for (Group& candidate : warp.groups) {
        if (candidate.mask == mask && candidate.complete == complete && !std::strcmp(candidate.name, name) &&
            same(candidate.site, site))
            group = &candidate;
        else if (candidate.mask & bit)
            fault(site, "divergent %s with mask %08x: lanes %08x wait for this one in %s with mask %08x at %s:%d",
                  name, mask, candidate.arrived, candidate.name, candidate.mask, candidate.site.file,
                  candidate.site.line);
    }
    if (!group) {
        warp.groups.push_back({mask, 0, name, complete, orders, site, {}});
        group = &warp.groups.back();
    }
    group->arrived |= bit;
    group->operands[index % warp_lanes] = operand;
    if (group->arrived != mask) {
        suspend(name, site);
        return;
    }
    const Group done = *group;
    *group = warp.groups.back();
    warp.groups.pop_back();
    if (done.complete) done.complete(done.mask, done.operands);
    if (done.orders && launch.request.kernel->detector) detector_warp_sync(index / warp_lanes, done.mask);
    const unsigned first = index / warp_lanes * warp_lanes;
    for (unsigned i = 0; i < warp_lanes; ++i)
        if (mask >> i & 1 && first + i != index) resume(launch.threads[first + i]);
}

unsigned long long shuffle(unsigned mask, unsigned long long bits, unsigned source, const char* name, Site site) {
    if (source >= warp_lanes || !(mask >> source & 1))
        fault(site, "%s reads lane %u, which its mask %08x does not name", name, source, mask);
    ShuffleOperand operand{bits, 0, source};
    warp_collective(mask, name, &operand, complete_shuffle, false, site);
    return operand.result;
}

unsigned ballot(unsigned mask, bool predicate, const char* name, Site site) {
    BallotOperand operand{predicate, 0};
    warp_collective(mask, name, &operand, complete_ballot, false, site);
    return operand.result;
}

int reduce(unsigned mask, int value, Reduction reduction, Site site) {
    return reduce_value(mask, value, reduction, site);
}
unsigned reduce(unsigned mask, unsigned value, Reduction reduction, Site site) {
    return reduce_value(mask, value, reduction, site);
}

}  // namespace emulator
