// Vector clocks over shadow memory, in the manner of FastTrack (Flanagan and Freund, 2009).
//
// A barrier of the whole block orders everything: it starts a new epoch, and accesses of different epochs of one block
// are never in conflict. Only within an epoch do clocks matter: each thread has its own, which advances when the thread
// publishes what it did (__syncwarp, a named barrier, an mbarrier), and `known[t][u]`, the clock of u up to which t has
// seen u's accesses. Epochs are never used twice, so whatever an older epoch left in the shadow is out of date by
// itself.
//
// What the copy engine and the tensor cores do by themselves is done by further threads, the agents, which only exist
// here. Each barrier has one, which writes what the loads bring that complete on it; its clock is the phase. Each
// warpgroup has one that reads the factors of its products, and each warp one that reads what its stores copy; their
// clocks count groups. A thread gets to know of an agent's clock by waiting for the phase or the group, so an access
// that is not ordered after such a wait is a race like any other.
#include "detector.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <unordered_map>

#include "engine.hpp"

namespace emulator {
namespace {

constexpr std::uint32_t pending = ~0u;  // the epoch of bytes that a copy will write
constexpr std::size_t shadow_page = 4096;
constexpr std::size_t most_pages = 8192;  // of shadow kept from launch to launch

// How global memory was written: by the copy engine, whose writes are not there before its thread has waited for them.
enum class Path : std::uint8_t { ordinary, asynchronous, asynchronous_unwaited };

struct Writer {
    std::uint32_t epoch, clock;
    std::int32_t place;  // relative to the kernel's entry
    std::uint16_t thread;
    bool atomic;
    Path path;
};

// The reads of one epoch: those lanes of one warp, or (spread) an entry for each warp in the table.
struct Readers {
    std::uint32_t epoch, clock, lanes;
    std::int32_t place;
    std::uint16_t warp;
    bool spread;
    std::uint32_t table;
    std::uint32_t other_block;  // an epoch of an earlier block that read it too
    std::int32_t other_place;
};

struct Cell {
    Writer writer;
    Readers readers;
};

struct WarpReaders {
    std::uint32_t lanes, clock;
    std::int32_t place;
};

// Memory with a cell for each 1 << shift bytes: 4, until an access comes that is smaller or lies otherwise.
struct Region {
    std::uintptr_t begin = 0;
    std::size_t bytes = 0;
    unsigned shift = 2;
    std::vector<Cell> cells;
    bool shared = false;
    // Of a page of global memory: which part of it belongs to an array.
    std::uintptr_t valid_begin = 0, valid_end = 0;  // 0: of none
    bool released = false;
    std::uint64_t changes = ~std::uint64_t(0);

    void place(std::uintptr_t at, std::size_t size) {
        if (begin == at && bytes == size) return;
        begin = at, bytes = size, shift = 2;
        cells.assign((size + 3) / 4, Cell{});
    }
    bool contains(std::uintptr_t at) const { return at - begin < bytes; }
    void refine(unsigned finer) {
        std::vector<Cell> parts(cells.size() << (shift - finer));
        for (std::size_t i = 0; i < parts.size(); ++i) parts[i] = cells[i >> (shift - finer)];
        cells.swap(parts);
        shift = finer;
    }
};

// Who does it: a thread or an agent, and its clock.
struct Actor {
    unsigned index;
    std::uint32_t clock;
};

struct Event {
    Access kind;
    std::uintptr_t address, place;
    bool whole;  // all bytes are meant: none is the padding of a structure
    const char* name;
    bool asynchronous = false;  // by the copy engine or a tensor core, past the ordinary path
};

// That a thread made what it had stored visible to them.
struct Fence {
    std::uint32_t epoch, clock;
    std::uint32_t block;  // the first epoch of its block
};

std::uint32_t epoch = 1, first_of_block = 1, first_of_launch = 1;
std::uint32_t named_barrier_epoch = 0;  // the last one in which a named barrier was used
bool active = false;
bool synchronized_by_atomic = false;  // the block has done one in global memory: it may know of other blocks' work
Region static_shared, dynamic_shared_region;
std::unordered_map<std::uintptr_t, std::unique_ptr<Region>> pages;
Region* recent_pages[256];

std::vector<std::uint32_t> clocks, known, known_epoch;
unsigned columns = 0;  // of a row of `known`: threads, and agents where the kernel may have any
Clocks published[named_barriers];
std::vector<WarpReaders> tables;
std::vector<Fence> fences[most_threads];         // of the block, for shared memory
std::vector<Fence> global_fences[most_threads];  // of the launch, for global memory
// While a warpgroup does something together: what all of its threads know. Else that of the running thread counts.
const std::uint32_t* known_together = nullptr;

// The agents are numbered like threads, in warps of their own, since readers are remembered by warp.
unsigned column_of(unsigned index) {
    if (index < most_threads) return index;
    const unsigned agent = index - most_threads, warp = agent / warp_lanes, lane = agent % warp_lanes;
    if (warp < most_warpgroups) return launch.thread_count + warp;                                 // of products
    if (warp < 2 * most_warpgroups) return launch.thread_count + most_warpgroups + 4 * (warp - most_warpgroups) + lane;
    return launch.thread_count + 5 * most_warpgroups + agent - 2 * most_warpgroups * warp_lanes;  // of barriers
}
constexpr unsigned agent_columns = 5 * most_warpgroups + most_barriers;
constexpr unsigned agent_warps = 2 * most_warpgroups;  // those that read

unsigned slot_of(unsigned warp) {
    return warp < most_threads / warp_lanes ? warp : launch.warp_count + warp - most_threads / warp_lanes;
}
unsigned warp_of_slot(unsigned slot) {
    return slot < launch.warp_count ? slot : most_threads / warp_lanes + slot - launch.warp_count;
}
unsigned slots() { return launch.warp_count + (columns > launch.thread_count ? agent_warps : 0); }

std::int32_t relative(std::uintptr_t place) {
    return static_cast<std::int32_t>(place - reinterpret_cast<std::uintptr_t>(launch.request.kernel->run));
}
std::uintptr_t absolute(std::int32_t place) {
    const auto entry = reinterpret_cast<std::uintptr_t>(launch.request.kernel->run);
    return entry + static_cast<std::uintptr_t>(std::intptr_t(place));
}

std::uint32_t* known_by(unsigned thread) {
    std::uint32_t* row = &known[std::size_t(thread) * columns];
    if (known_epoch[thread] != epoch) {
        std::memset(row, 0, columns * sizeof *row);
        known_epoch[thread] = epoch;
    }
    return row;
}

bool ordered(unsigned earlier, std::uint32_t clock) {
    if (known_together) return known_together[column_of(earlier)] >= clock;
    const unsigned self = launch.current->index;
    return earlier == self ||
           (known_epoch[self] == epoch && known[std::size_t(self) * columns + column_of(earlier)] >= clock);
}

// A lane in `lanes` whose read is not ordered before the running thread; -1: all are.
int unordered_reader(unsigned warp, std::uint32_t lanes, std::uint32_t clock) {
    for (; lanes; lanes &= lanes - 1) {
        const unsigned reader = warp * warp_lanes + static_cast<unsigned>(__builtin_ctz(lanes));
        if (!ordered(reader, clock)) return static_cast<int>(reader);
    }
    return -1;
}

struct Name {
    char text[64];
};

// index: of a thread or an agent, -1 for one of another block.
Name name_of(int index) {
    Name name{"another block"};
    if (index >= static_cast<int>(most_threads)) {
        const unsigned agent = static_cast<unsigned>(index) - most_threads, warp = agent / warp_lanes;
        const char* const kinds[] = {"a product of warpgroup %u", "a store of warpgroup %u", "a load of barrier %u"};
        const unsigned kind = std::min(warp / most_warpgroups, 2u);
        const unsigned first = kind * most_warpgroups;
        std::snprintf(name.text, sizeof name.text, kinds[kind], kind < 2 ? warp - first : agent - first * warp_lanes);
    } else if (index >= 0) {
        const uint3 at = launch.threads[static_cast<unsigned>(index)].coordinates;
        std::snprintf(name.text, sizeof name.text, "thread %u,%u,%u", at.x, at.y, at.z);
    }
    return name;
}

[[noreturn]] void conflict(const Region& region, const Event& event, const char* before, int other,
                           std::int32_t place) {
    fail_at(event.place, reinterpret_cast<void*>(event.address), absolute(place),
            other >= 0 ? "race on %s memory: this %s is not ordered after the %s by %s at {1}"
                       : "two blocks on one address of %s memory: this %s, and a %s by %s at {1}",
            region.shared ? "shared" : "global", event.name, before, name_of(other).text);
}

bool of_other_block(std::uint32_t then) { return then >= first_of_launch && then < first_of_block; }

// Whether the writer made its store visible past the ordinary path, and that is ordered before the event.
bool is_fenced(const Writer& writer) {
    const std::vector<Fence>& all = fences[writer.thread];
    const auto fence = std::lower_bound(all.begin(), all.end(), writer.clock,
                                        [](const Fence& f, std::uint32_t clock) { return f.clock < clock; });
    return fence != all.end() && (fence->epoch < epoch || ordered(writer.thread, fence->clock));
}

// The same of a write to global memory, which may be that of an earlier block.
bool is_globally_fenced(const Writer& writer) {
    const std::vector<Fence>& all = global_fences[writer.thread];
    const auto fence = std::lower_bound(all.begin(), all.end(), writer, [](const Fence& f, const Writer& w) {
        return f.epoch < w.epoch || (f.epoch == w.epoch && f.clock < w.clock);
    });
    return fence != all.end() && fence->block <= writer.epoch &&
           (fence->epoch < epoch || ordered(writer.thread, fence->clock));
}

// Of a write to global memory by the launch that runs.
void check_path(const Writer& writer, const Event& event) {
    const int thread = writer.epoch < first_of_block ? -1 : writer.thread;
    if (writer.path == Path::asynchronous_unwaited)
        fail_at(event.place, reinterpret_cast<void*>(event.address), absolute(writer.place),
                "missing wait: these bytes of global memory are the target of the store at {1}, and its thread has not "
                "waited until it had written them (wait_stores_read waits until it has read shared memory); else they "
                "are there when the kernel has ended");
    if (event.asynchronous && writer.path == Path::ordinary && !is_globally_fenced(writer))
        fail_at(event.place, reinterpret_cast<void*>(event.address), absolute(writer.place),
                "missing fence.proxy.async for global memory: this %s goes past the ordinary path, and %s, which wrote "
                "these bytes at {1} in the same kernel, did not execute it after that (fence_async_proxy() is for "
                "shared memory)",
                event.name, name_of(thread).text);
}

void check_writer(const Region& region, const Cell& cell, const Event& event) {
    const Writer& writer = cell.writer;
    if (writer.epoch == pending)
        fail_at(event.place, reinterpret_cast<void*>(event.address), absolute(writer.place),
                writer.thread < most_threads
                    ? "missing wait: these bytes of shared memory are the target of the cp.async at {1}, which nobody "
                      "has waited for"
                    : "missing wait: these bytes of shared memory are the target of the load at {1}, and no thread "
                      "has waited for the phase of its barrier");
    if (writer.epoch == epoch) {
        if (!ordered(writer.thread, writer.clock) && !(writer.atomic && event.kind == Access::atomic))
            conflict(region, event, writer.atomic ? "atomic" : "write", writer.thread, writer.place);
    } else if (writer.epoch < first_of_block) {
        if (region.shared) {
            if (event.kind != Access::write && event.whole)
                fail_at(event.place, reinterpret_cast<void*>(event.address), 0,
                        "uninitialised shared memory: no thread of this block has written it yet; a write is missing, "
                        "or a barrier between a later write and this read");
        } else if (of_other_block(writer.epoch)) {
            const bool both_write = event.kind == Access::write && !writer.atomic;
            if (both_write || !synchronized_by_atomic)
                conflict(region, event, writer.atomic ? "atomic" : "write", -1, writer.place);
        }
    }
    if (event.asynchronous && region.shared && writer.epoch >= first_of_block && writer.thread < most_threads &&
        !is_fenced(writer))
        fail_at(event.place, reinterpret_cast<void*>(event.address), absolute(writer.place),
                "missing fence_async_proxy(): this %s goes past the ordinary path, and %s, which stored these bytes at "
                "{1}, did not call it between that and the barrier",
                event.name, name_of(writer.thread).text);
    if (!region.shared && writer.epoch >= first_of_launch) check_path(writer, event);
}

void check_readers(const Region& region, const Cell& cell, const Event& event) {
    const Readers& readers = cell.readers;
    if (readers.epoch == epoch) {
        int other = -1;
        std::int32_t place = readers.place;
        if (!readers.spread) {
            other = unordered_reader(readers.warp, readers.lanes, readers.clock);
        } else {
            for (unsigned slot = 0; slot < slots() && other < 0; ++slot) {
                const WarpReaders& entry = tables[readers.table + slot];
                other = unordered_reader(warp_of_slot(slot), entry.lanes, entry.clock);
                place = entry.place;
            }
        }
        if (other >= 0) conflict(region, event, "read", other, place);
    }
    if (!region.shared && !synchronized_by_atomic) {
        if (of_other_block(readers.epoch)) conflict(region, event, "read", -1, readers.place);
        if (of_other_block(readers.other_block)) conflict(region, event, "read", -1, readers.other_place);
    }
}

// Adds a lane to the readers of its warp. Readers that are ordered before this read need no longer be remembered. Where
// clocks differ the least stands for all: a race may then go unseen, but none is invented.
template <typename Entry>
void add_lane(Entry& entry, unsigned warp, unsigned lane, std::uint32_t clock, std::int32_t place) {
    const std::uint32_t bit = 1u << lane;
    if (entry.lanes == 0 || (entry.clock != clock && unordered_reader(warp, entry.lanes, entry.clock) < 0)) {
        entry.lanes = bit;
        entry.clock = clock;
    } else {
        entry.lanes |= bit;
        entry.clock = std::min(entry.clock, clock);
    }
    entry.place = place;
}

void remember_reader(Cell& cell, Actor self, std::int32_t place) {
    const unsigned warp = self.index / warp_lanes, lane = self.index % warp_lanes;
    const std::uint32_t clock = self.clock;
    Readers& readers = cell.readers;
    if (readers.epoch != epoch) {
        if (of_other_block(readers.epoch)) {
            readers.other_block = readers.epoch;
            readers.other_place = readers.place;
        }
        readers.epoch = epoch, readers.clock = clock, readers.lanes = 1u << lane, readers.place = place;
        readers.warp = static_cast<std::uint16_t>(warp), readers.spread = false;
        return;
    }
    if (!readers.spread && readers.warp != warp) {
        readers.spread = true;
        readers.table = static_cast<std::uint32_t>(tables.size());
        tables.resize(tables.size() + slots(), WarpReaders{});
        tables[readers.table + slot_of(readers.warp)] = {readers.lanes, readers.clock, readers.place};
    }
    if (readers.spread)
        add_lane(tables[readers.table + slot_of(warp)], warp, lane, clock, place);
    else
        add_lane(readers, warp, lane, clock, place);
}

template <typename Body>
void for_cells(Region& region, std::uintptr_t address, std::size_t bytes, Body body) {
    const unsigned lowest = static_cast<unsigned>(__builtin_ctzll(address | bytes | 4));
    if (lowest < region.shift) region.refine(lowest);
    const std::size_t offset = address - region.begin, last = (offset + bytes - 1) >> region.shift;
    for (std::size_t i = offset >> region.shift; i <= last; ++i) body(region.cells[i]);
}

void check(Region& region, std::size_t bytes, Event event, Actor actor) {
    if (!event.whole) {
        // The padding of a structure is read with it and never written: one byte that was written is enough.
        event.whole = true;
        for_cells(region, event.address, bytes,
                  [&](const Cell& cell) { event.whole &= cell.writer.epoch < first_of_block; });
    }
    const std::int32_t place = relative(event.place);
    for_cells(region, event.address, bytes, [&](Cell& cell) {
        check_writer(region, cell, event);
        if (event.kind == Access::read) {
            remember_reader(cell, actor, place);
        } else {
            check_readers(region, cell, event);
            cell.writer = {epoch, actor.clock, place, static_cast<std::uint16_t>(actor.index),
                           event.kind == Access::atomic,
                           event.asynchronous ? Path::asynchronous_unwaited : Path::ordinary};
        }
    });
}

Actor running_thread() { return {launch.current->index, clocks[launch.current->index]}; }

Region& page_of(std::uintptr_t address) {
    const std::uintptr_t base = address / shadow_page * shadow_page;
    Region*& recent = recent_pages[address / shadow_page % 256];
    if (!recent || recent->begin != base) {
        std::unique_ptr<Region>& slot = pages[base];
        if (!slot) slot = std::make_unique<Region>();
        slot->place(base, shadow_page);
        recent = slot.get();
    }
    const std::uint64_t changes = allocation_changes.load(std::memory_order_relaxed);
    if (recent->changes != changes) {
        recent->changes = changes;
        const Range array = allocation_at(reinterpret_cast<void*>(address));
        recent->valid_begin = array.begin;
        recent->valid_end = array.end;
        recent->released = array.released;
    }
    return *recent;
}

void global_access(std::size_t bytes, const Event& event) {
    for (std::size_t done = 0; done < bytes;) {
        const std::uintptr_t at = event.address + done;
        Region& page = page_of(at);
        const std::size_t part = std::min(bytes - done, page.begin + shadow_page - at);
        const char* const kind = event.kind == Access::read ? "read" : "write";
        if (page.released)
            fail_at(event.place, reinterpret_cast<void*>(event.address), 0,
                    "%s of released memory: an array of %llu bytes was here", kind,
                    static_cast<unsigned long long>(page.valid_end - page.valid_begin));
        if (!page.valid_end) {
            // Constants of the unit are read in no array either.
            const char* const shared_end = dynamic_shared_end();
            const auto* address = reinterpret_cast<const char*>(at);
            const bool by_shared = address >= shared_end - most_dynamic_shared && address < shared_end;
            if (by_shared || event.kind != Access::read)
                fail_at(event.place, reinterpret_cast<void*>(event.address), 0,
                        "out-of-bounds %s of %zu bytes: in no array, %s", kind, bytes,
                        by_shared ? "but beside the dynamic shared memory" : "nor in the block's shared memory");
        } else if (at < page.valid_begin || at + part > page.valid_end)
            fail_at(event.place, reinterpret_cast<void*>(event.address), 0,
                    "out-of-bounds %s of %zu bytes, %lld bytes %s an array of %llu bytes",
                    kind, bytes,
                    at < page.valid_begin ? static_cast<long long>(page.valid_begin - event.address)
                                          : static_cast<long long>(event.address + bytes - page.valid_end),
                    at < page.valid_begin ? "before" : "past the end of",
                    static_cast<unsigned long long>(page.valid_end - page.valid_begin));
        Event of_part = event;
        of_part.address = at;
        check(page, part, of_part, running_thread());
        done += part;
    }
}

Region* shared_region(std::uintptr_t address) {
    if (static_shared.contains(address)) return &static_shared;
    if (dynamic_shared_region.contains(address)) return &dynamic_shared_region;
    return nullptr;
}

void join(std::uint32_t* into, const std::uint32_t* from, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) into[i] = std::max(into[i], from[i]);
}

void new_epoch() {
    ++epoch;
    tables.clear();
}

}  // namespace

void detector_launch_begins() {
    if (epoch > 1u << 31 || pages.size() > most_pages) {
        pages.clear();
        std::memset(recent_pages, 0, sizeof recent_pages);
        static_shared = dynamic_shared_region = Region{};
        epoch = 1;
        named_barrier_epoch = 0;
    }
    const Kernel& kernel = *launch.request.kernel;
    const std::size_t count = launch.thread_count;
    static_shared.place(reinterpret_cast<std::uintptr_t>(kernel.shared_begin),
                        static_cast<std::size_t>(kernel.shared_end - kernel.shared_begin));
    dynamic_shared_region.place(reinterpret_cast<std::uintptr_t>(launch.dynamic_base), launch.request.shared);
    static_shared.shared = dynamic_shared_region.shared = true;
    clocks.assign(count, 1);
    columns = launch.thread_count + (kernel.agents ? agent_columns : 0);
    known.resize(count * columns);
    known_epoch.assign(count, 0);
    first_of_launch = epoch + 1;
    for (std::vector<Fence>& all : global_fences) all.clear();
    active = true;
}

void detector_block_begins() {
    new_epoch();
    first_of_block = epoch;
    synchronized_by_atomic = false;
    std::fill(clocks.begin(), clocks.end(), 1u);
    for (Clocks& row : published) row.clear();
    for (unsigned thread = 0; thread < launch.thread_count; ++thread) fences[thread].clear();
    // Copies that the previous block never waited for.
    for (Region* region : {&static_shared, &dynamic_shared_region})
        if (region->shared && launch.copies_abandoned)
            for (Cell& cell : region->cells)
                if (cell.writer.epoch == pending) cell.writer.epoch = 0;
    launch.copies_abandoned = false;
}

void detector_block_barrier() { new_epoch(); }

void detector_warp_sync(unsigned warp, unsigned mask) {
    const unsigned first = warp * warp_lanes;
    // Of other warps a lane knows something only where a barrier of a part of the block told it.
    const bool told = named_barrier_epoch == epoch;
    const unsigned begin = told ? 0 : first;
    const unsigned count = told ? columns : std::min(warp_lanes, launch.thread_count - first);
    static std::vector<std::uint32_t> joined;
    joined.assign(count, 0);
    for (unsigned lanes = mask; lanes; lanes &= lanes - 1) {
        const unsigned thread = first + static_cast<unsigned>(__builtin_ctz(lanes));
        join(joined.data(), known_by(thread) + begin, count);
        joined[thread - begin] = std::max(joined[thread - begin], clocks[thread]++);
    }
    for (unsigned lanes = mask; lanes; lanes &= lanes - 1)
        std::memcpy(known_by(first + static_cast<unsigned>(__builtin_ctz(lanes))) + begin, joined.data(),
                    count * sizeof joined[0]);
}

void detector_release(Clocks& into, unsigned thread) {
    named_barrier_epoch = epoch;
    into.resize(columns);
    join(into.data(), known_by(thread), columns);
    into[thread] = std::max(into[thread], clocks[thread]++);
}

void detector_acquire(const Clocks& from, unsigned thread) {
    named_barrier_epoch = epoch;
    join(known_by(thread), from.data(), from.size());
}

Clocks& detector_named_barrier(unsigned barrier) { return published[barrier]; }

void detector_join(Clocks& into, const Clocks& from) {
    into.resize(std::max(into.size(), from.size()));
    join(into.data(), from.data(), from.size());
}

void detector_access(Access kind, const void* pointer, std::size_t bytes, const void* place, bool aligned,
                     bool whole) {
    if (!active || !launch.current || bytes == 0) return;
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    if (launch.fibers.contains(pointer)) {  // local variables
        if (launch.current->products_in_flight) check_accumulators(pointer, bytes, place);
        return;
    }
    constexpr const char* names[] = {"read", "write", "atomic"};
    const Event event{kind, address, reinterpret_cast<std::uintptr_t>(place), whole, names[static_cast<int>(kind)]};
    if (launch.overdue) time_is_up(event.place - 1);
    if (aligned && address & (bytes - 1))
        fail_at(event.place, pointer, 0, "misaligned %s of %zu bytes: the address is no multiple of it",
                kind == Access::read ? "read" : "write", bytes);
    if (Region* region = shared_region(address)) {
        if (address + bytes > region->begin + region->bytes)
            fail_at(event.place, pointer, 0, "out-of-bounds access of %zu bytes past the end of shared memory", bytes);
        check(*region, bytes, event, running_thread());
    } else {
        if (kind == Access::atomic) synchronized_by_atomic = true;
        global_access(bytes, event);
    }
}

void detector_copy_pending(char* shared, unsigned bytes, const void* place) {
    detector_access(Access::write, shared, bytes, place, true);
    if (Region* region = shared_region(reinterpret_cast<std::uintptr_t>(shared)))
        for_cells(*region, reinterpret_cast<std::uintptr_t>(shared), bytes,
                  [](Cell& cell) { cell.writer.epoch = pending; });
}

void detector_copy_landed(char* shared, unsigned bytes) {
    const unsigned self = launch.current->index;
    if (Region* region = shared_region(reinterpret_cast<std::uintptr_t>(shared)))
        for_cells(*region, reinterpret_cast<std::uintptr_t>(shared), bytes, [=](Cell& cell) {
            cell.writer.epoch = epoch;
            cell.writer.clock = clocks[self];
        });
}

Stamp detector_stamp() { return {epoch, clocks[launch.current->index], launch.current->index}; }

bool detector_follows(const Stamp& earlier) {
    return earlier.epoch < epoch || ordered(earlier.thread, earlier.clock);
}

void detector_fence() {
    const unsigned self = launch.current->index;
    fences[self].push_back({epoch, clocks[self]++, first_of_block});
}

void detector_global_fence() {
    const unsigned self = launch.current->index;
    global_fences[self].push_back({epoch, clocks[self]++, first_of_block});
}

void detector_copy(Access kind, const void* global, std::size_t bytes, const char* name, const void* place) {
    const auto at = reinterpret_cast<std::uintptr_t>(place);
    if (launch.overdue) time_is_up(at - 1);
    global_access(bytes, {kind, reinterpret_cast<std::uintptr_t>(global), at, true, name, true});
}

void detector_copy_written(void* global, std::size_t bytes) {
    const Actor self = running_thread();
    for (std::uintptr_t at = reinterpret_cast<std::uintptr_t>(global), end = at + bytes; at < end;) {
        Region& page = page_of(at);
        const std::size_t part = std::min<std::size_t>(end - at, page.begin + shadow_page - at);
        for_cells(page, at, part, [=](Cell& cell) {
            cell.writer.epoch = epoch;
            cell.writer.clock = self.clock;
            cell.writer.path = Path::asynchronous;
        });
        at += part;
    }
}

void detector_load_pending(char* shared, std::size_t bytes, unsigned barrier, const void* place) {
    Region& region = *shared_region(reinterpret_cast<std::uintptr_t>(shared));
    const auto at = reinterpret_cast<std::uintptr_t>(shared);
    check(region, bytes, {Access::write, at, reinterpret_cast<std::uintptr_t>(place), true, "load", true},
          running_thread());
    for_cells(region, at, bytes, [=](Cell& cell) {
        cell.writer.epoch = pending;
        cell.writer.thread = static_cast<std::uint16_t>(agent_of_barrier(barrier));
    });
}

void detector_load_seen(char* shared, std::size_t bytes, unsigned barrier, std::uint32_t phase) {
    for_cells(*shared_region(reinterpret_cast<std::uintptr_t>(shared)), reinterpret_cast<std::uintptr_t>(shared), bytes,
              [=](Cell& cell) {
                  cell.writer.epoch = epoch;
                  cell.writer.clock = phase;
                  cell.writer.thread = static_cast<std::uint16_t>(agent_of_barrier(barrier));
              });
}

void detector_agent_reads(const char* shared, std::size_t bytes, unsigned agent, std::uint32_t clock, const char* name,
                          const void* place) {
    const auto at = reinterpret_cast<std::uintptr_t>(shared);
    check(*shared_region(at), bytes, {Access::read, at, reinterpret_cast<std::uintptr_t>(place), true, name, true},
          {agent, clock});
}

void detector_agent_goes_on(const char* shared, std::size_t bytes, unsigned agent, std::uint32_t clock,
                            const void* place) {
    const std::int32_t where = relative(reinterpret_cast<std::uintptr_t>(place));
    for_cells(*shared_region(reinterpret_cast<std::uintptr_t>(shared)), reinterpret_cast<std::uintptr_t>(shared), bytes,
              [=](Cell& cell) { remember_reader(cell, {agent, clock}, where); });
}

void detector_agent_done(unsigned agent, std::uint32_t clock, unsigned thread) {
    named_barrier_epoch = epoch;
    std::uint32_t& knows = known_by(thread)[column_of(agent)];
    knows = std::max(knows, clock);
}

void detector_together(unsigned first, unsigned count) {
    static std::vector<std::uint32_t> least;
    least.assign(columns, ~0u);
    for (unsigned thread = first; thread < first + count; ++thread) {
        const std::uint32_t* row = known_by(thread);
        const std::uint32_t own = least[thread];
        for (unsigned i = 0; i < columns; ++i) least[i] = std::min(least[i], row[i]);
        least[thread] = own;  // a thread knows what it did itself
    }
    known_together = least.data();
}

void detector_alone() { known_together = nullptr; }

void detector_launch_ends() {
    active = false;
    known_together = nullptr;
}

}  // namespace emulator
