// mbarrier: barriers in shared memory that count arrivals and bytes, as the PTX ISA describes them ("mbarrier").
//
// The object itself lies here; its 8 bytes of shared memory hold its number, so that one which was never initialised,
// or overwritten, is known as such. For the detector an arrival publishes what the thread did, and a wait learns what
// was published up to the phase.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>

#include "detector.hpp"
#include "engine.hpp"

namespace emulator {
namespace {

constexpr std::uint64_t mark = 0x6d62617272696572;  // beside the number, in the 8 bytes
constexpr unsigned most_count = (1u << 20) - 1, most_bytes = (1u << 20) - 1;  // bytes: of a phase, either way

struct LandedLoad {
    char* shared;
    std::size_t bytes;
    Site site;
};

struct Barrier {
    char* address;
    unsigned count;
    Site site;            // where it was initialised
    unsigned initialiser;
    Stamp initialised;
    bool fenced;          // the copy engine sees it
    unsigned phase;       // how many are over
    unsigned missing;     // arrivals in the running one
    long long bytes;      // announced and not landed; less than 0: landed before they were announced
    long long announced;  // in the running phase: all of them may be pending at once
    std::vector<Thread*> waiting;
    std::vector<LandedLoad> unseen;  // landed, and no thread has waited for them
    Clocks arrived, over;            // what was done before the arrivals of this phase, and of those before it
};

std::vector<Barrier> barriers;  // of the block that runs

bool has_detector() { return launch.request.kernel->detector; }

// "at 1024 (kernels/gemm.cu:31)": where in shared memory, and which line initialised it.
std::string name_of(const Barrier& barrier) {
    char text[320];
    std::snprintf(text, sizeof text, "the barrier at %u of shared memory (initialised at %s:%d)",
                  window_of(barrier.address), barrier.site.file, barrier.site.line);
    return text;
}

// What `thread` knows once it has waited for the phase that was completed last.
void learn(Barrier& barrier, const Thread& thread) {
    if (!has_detector()) return;
    const auto number = static_cast<unsigned>(&barrier - barriers.data());
    detector_acquire(barrier.over, thread.index);
    detector_agent_done(agent_of_barrier(number), barrier.phase, thread.index);
}

// The loads of the completed phases may be read from here on.
void show_loads(Barrier& barrier) {
    if (has_detector())
        for (const LandedLoad& load : barrier.unseen)
            detector_load_seen(load.shared, load.bytes, static_cast<unsigned>(&barrier - barriers.data()),
                               barrier.phase);
    barrier.unseen.clear();
}

void end_phase_if_over(Barrier& barrier) {
    if (barrier.missing != 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.missing = barrier.count;
    barrier.announced = 0;
    if (has_detector()) detector_join(barrier.over, barrier.arrived);
    barrier.arrived.clear();
    if (!barrier.waiting.empty()) show_loads(barrier);
    for (Thread* thread : barrier.waiting) {
        learn(barrier, *thread);
        resume(*thread);
    }
    barrier.waiting.clear();
}

}  // namespace

void reset_barriers() { barriers.clear(); }

unsigned barrier_number(const void* address, Site site) {
    std::uint64_t state;
    if (!is_shared(address, 8)) fault(site, "a barrier at %p, which is not in the block's shared memory", address);
    std::memcpy(&state, address, sizeof state);
    const std::uint64_t number = state ^ mark;
    if (number >= barriers.size() || barriers[number].address != address) {
        for (const Barrier& barrier : barriers)
            if (barrier.address == address)
                fault(site, "%s was overwritten: it holds %016" PRIx64, name_of(barrier).c_str(), state);
        fault(site, "the barrier at %u of shared memory was not initialised", window_of(address));
    }
    const Barrier& barrier = barriers[number];
    if (has_detector() && !detector_follows(barrier.initialised))
        fault(site, "%s is used by a thread that is not ordered after its initialisation: __syncthreads() is missing",
              name_of(barrier).c_str());
    return static_cast<unsigned>(number);
}

void expect_fenced(unsigned number, Site site) {
    if (!barriers[number].fenced)
        fault(site, "%s counts a load, and barrier_init_fence() was not called after it was initialised",
              name_of(barriers[number]).c_str());
}

unsigned barrier_phase(unsigned number) { return barriers[number].phase; }

void bytes_landed(unsigned number, unsigned phase, char* shared, std::size_t bytes, Site site) {
    Barrier& barrier = barriers[number];
    const std::string name = name_of(barrier);
    if (barrier.phase != phase)
        fault(site, "%s: phase %u was over before the %zu bytes of this load had landed: fewer were announced than are "
                    "loaded", name.c_str(), phase, bytes);
    barrier.bytes -= static_cast<long long>(bytes);
    barrier.unseen.push_back({shared, bytes, site});
    if (barrier.bytes < -static_cast<long long>(most_bytes))
        fault(site, "%s: in phase %u %lld bytes have landed that were not announced; a barrier counts to %u",
              name.c_str(), phase, -barrier.bytes, most_bytes);
    if (barrier.missing == 0 && barrier.bytes < 0)
        fault(site, "%s: in phase %u more bytes have landed than were announced: %lld", name.c_str(), phase,
              -barrier.bytes);
    end_phase_if_over(barrier);
}

int describe_barrier_wait(char* text, std::size_t size, unsigned number) {
    const Barrier& barrier = barriers[number];
    return std::snprintf(text, size, " for phase %u of %s, in which %u of %u arrivals and %lld bytes are missing",
                         barrier.phase, name_of(barrier).c_str(), barrier.missing, barrier.count, barrier.bytes);
}

void expect_all_seen() {
    for (const Barrier& barrier : barriers)
        if (!barrier.unseen.empty())
            fault(barrier.unseen[0].site, "the block has ended, and no thread has waited for this load");
}

void barrier_init(void* address, unsigned count, Site site) {
    if (!is_shared(address, 8)) fault(site, "a barrier at %p, which is not in the block's shared memory", address);
    if (reinterpret_cast<std::uintptr_t>(address) % 8)
        fault(site, "a barrier at %p, which is no multiple of 8", address);
    if (count == 0 || count > most_count)
        fault(site, "a barrier of %u arrivals: 1 to %u are possible", count, most_count);
    for (const Barrier& barrier : barriers)
        if (barrier.address == address) fault(site, "%s is initialised again", name_of(barrier).c_str());
    if (barriers.size() == most_barriers) fault(site, "more than %u barriers in a block have no model", most_barriers);
    if (has_detector()) detector_access(Access::write, address, 8, __builtin_return_address(0), true);
    const std::uint64_t state = mark ^ barriers.size();
    std::memcpy(address, &state, sizeof state);
    Barrier barrier{};
    barrier.address = static_cast<char*>(address);
    barrier.count = barrier.missing = count;
    barrier.site = site;
    barrier.initialiser = launch.current->index;
    if (has_detector()) barrier.initialised = detector_stamp();
    barriers.push_back(barrier);
}

void barrier_init_fence() {
    for (Barrier& barrier : barriers) barrier.fenced |= barrier.initialiser == launch.current->index;
}

void barrier_arrive(void* address, unsigned bytes, Site site) {
    Barrier& barrier = barriers[barrier_number(address, site)];
    if (barrier.missing == 0)
        fault(site, "%s: an arrival beyond its count of %u, in phase %u, which waits for %lld bytes alone",
              name_of(barrier).c_str(), barrier.count, barrier.phase, barrier.bytes);
    barrier.bytes += bytes;
    barrier.announced += bytes;
    if (barrier.announced > most_bytes)
        fault(site, "%s: in phase %u %lld bytes are announced with these %u; a barrier counts to %u",
              name_of(barrier).c_str(), barrier.phase, barrier.announced, bytes, most_bytes);
    --barrier.missing;
    if (barrier.missing == 0 && barrier.bytes < 0)
        fault(site, "%s: in phase %u more bytes have landed than were announced: %lld", name_of(barrier).c_str(),
              barrier.phase, -barrier.bytes);
    if (has_detector()) detector_release(barrier.arrived, launch.current->index);
    end_phase_if_over(barrier);
}

void barrier_wait(void* address, unsigned parity, Site site) {
    const unsigned number = barrier_number(address, site);
    Barrier& barrier = barriers[number];
    if (parity > 1) fault(site, "a wait for parity %u: it is 0 or 1", parity);
    Thread& self = *launch.current;
    if ((barrier.phase & 1) == parity) {
        barrier.waiting.push_back(&self);
        self.waiting_barrier = number;
        suspend(barrier_wait_name, site);
        return;
    }
    show_loads(barrier);
    learn(barrier, self);
}

}  // namespace emulator
