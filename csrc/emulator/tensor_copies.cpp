// The copy engine (TMA): loads of boxes and pixel columns, which land late, and stores of boxes, which read late.
//
// A load takes its data from global memory when it is started, and brings it to shared memory at a moment that the
// scheduler chooses: at the latest when no thread could go on without it. A store reads its shared memory at the latest
// when its thread waits for that, and writes global memory at the latest when its thread waits for the whole of it, or
// else at the end of the launch.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "detector.hpp"
#include "engine.hpp"

namespace emulator {
namespace {

constexpr unsigned chunk = 16;  // the bytes that swizzling keeps together

// As bp/cuda/tensor_map.py encodes it for the emulator, and has checked it.
struct Map {
    std::uint64_t mark;
    std::uint64_t address;
    std::uint64_t strides[4];  // in bytes, of dimensions 1 to 4
    std::uint32_t last[5];     // sizes less one, the innermost first
    std::uint16_t box[5];      // elements in each dimension; channels and pixels where is_im2col
    std::uint8_t steps[5];     // between elements of the box
    std::int8_t lower[2], upper[2];  // where is_im2col: the corners, w and h
    std::uint8_t rank, element_bytes, swizzle_bytes, is_im2col, rounds_to_tf32;

    std::int64_t size(unsigned dimension) const { return std::int64_t(last[dimension]) + 1; }
    // Elements of the box along a dimension: with steps, those that are hit.
    unsigned count(unsigned dimension) const { return (box[dimension] + steps[dimension] - 1u) / steps[dimension]; }
};
static_assert(sizeof(Map) <= 128, "a TensorMap has 128 bytes");
constexpr std::uint64_t map_mark = 0x70616d7220736e74;

struct Load {
    char* shared;
    std::vector<char> data;  // in the order of the box
    unsigned swizzle_bytes, barrier, phase;
    Thread* thread;
    Site site;
};

struct Store {
    Map map;
    int at[5];
    const char* shared;
    std::size_t bytes;
    Thread* thread;
    unsigned group;
    bool is_read, is_written;
    std::vector<char> data;  // from the one to the other
    Site site;
    const void* place;
    bool of_earlier_block;
};

std::vector<Load> loads;
std::vector<Store> stores;     // nobody has waited until they had read
std::vector<Store> unwritten;  // somebody has, and nobody until they had written

// What a load through a map of tf32 makes of a float: 10 bits of mantissa, to the nearest, ties to even; NaN and
// infinity stay as they are. kernels/linear_wgmma_tf32.cu says what of this is known and what is assumed.
std::uint32_t rounded_to_tf32(std::uint32_t bits) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
    return (bits + 0xfffu + (bits >> 13 & 1)) & 0xffffe000u;
}

// Where in shared memory the chunk at this offset of a box lies: swizzling exchanges chunks by bits of the address
// itself.
std::uintptr_t swizzled(std::uintptr_t address, unsigned swizzle_bytes) {
    const unsigned bits = swizzle_bytes / chunk;  // 8, 4, 2; 0: none
    return bits ? address ^ (address >> 7 & (bits - 1)) << 4 : address;
}

Map map_at(const void* address, const char* name, Site site) {
    Map map;
    if (reinterpret_cast<std::uintptr_t>(address) % 64)
        fault(site, "%s: the tensor map at %p lies at no multiple of 64", name, address);
    std::memcpy(&map, address, sizeof map);
    if (map.mark != map_mark) fault(site, "%s: what was passed is no tensor map of the emulator", name);
    return map;
}

std::size_t box_bytes(const Map& map) {
    std::size_t elements = map.element_bytes;
    if (map.is_im2col) return elements * map.box[0] * map.box[1];
    for (unsigned i = 0; i < map.rank; ++i) elements *= map.count(i);
    return elements;
}

void expect_box(const void* shared, std::size_t bytes, const char* name, Site site) {
    if (reinterpret_cast<std::uintptr_t>(shared) % 128)
        fault(site, "%s: the box at %p of shared memory lies at no multiple of 128", name, shared);
    if (!is_shared(shared, bytes))
        fault(site, "%s: a box of %zu bytes at %p is not within the block's shared memory", name, bytes, shared);
}

// Calls row(part of the box, elements to skip in it, address, elements) for what of each row of the box lies in the
// array. `at` are the coordinates.
template <typename Row>
void for_rows(const Map& map, const int* at, Row row) {
    const std::size_t row_bytes = std::size_t(map.box[0]) * map.element_bytes;
    unsigned index[5] = {};
    for (std::size_t offset = 0;; offset += row_bytes) {
        std::uint64_t address = map.address;
        bool inside = true;
        for (unsigned i = 1; i < map.rank; ++i) {
            const std::int64_t x = at[i] + std::int64_t(index[i]) * map.steps[i];
            inside &= x >= 0 && x < map.size(i);
            address += static_cast<std::uint64_t>(x) * map.strides[i - 1];
        }
        const std::int64_t first = std::max<std::int64_t>(at[0], 0);
        const std::int64_t end = std::min<std::int64_t>(std::int64_t(at[0]) + map.box[0], map.size(0));
        if (inside && first < end)
            row(offset, static_cast<std::size_t>(first - at[0]),
                address + static_cast<std::uint64_t>(first) * map.element_bytes, static_cast<std::size_t>(end - first));
        unsigned i = 1;
        while (i < map.rank && ++index[i] == map.count(i)) index[i++] = 0;
        if (i >= map.rank) return;
    }
}

// The same for a column of pixels.
template <typename Row>
void for_pixels(const Map& map, const int* at, unsigned tap_w, unsigned tap_h, Row row) {
    const std::size_t row_bytes = std::size_t(map.box[0]) * map.element_bytes;
    std::int64_t x[2] = {at[1], at[2]}, n = at[3];  // w and h
    for (unsigned pixel = 0; pixel < map.box[1]; ++pixel) {
        const std::int64_t w = x[0] + tap_w, h = x[1] + tap_h;
        const std::int64_t first = std::max<std::int64_t>(at[0], 0);
        const std::int64_t end = std::min<std::int64_t>(std::int64_t(at[0]) + map.box[0], map.size(0));
        if (w >= 0 && w < map.size(1) && h >= 0 && h < map.size(2) && n >= 0 && n < map.size(3) && first < end)
            row(pixel * row_bytes, static_cast<std::size_t>(first - at[0]),
                map.address + static_cast<std::uint64_t>(w) * map.strides[0] +
                    static_cast<std::uint64_t>(h) * map.strides[1] + static_cast<std::uint64_t>(n) * map.strides[2] +
                    static_cast<std::uint64_t>(first) * map.element_bytes,
                static_cast<std::size_t>(end - first));
        for (unsigned i = 0; i < 2; ++i) {
            x[i] += map.steps[1 + i];
            if (x[i] < map.size(1 + i) + map.upper[i]) break;
            x[i] = map.lower[i];
            if (i == 1) ++n;
        }
    }
}

// `each` goes through the rows that lie in the array.
template <typename Each>
void load(void* shared, const Map& map, void* barrier, const char* name, const void* place, Site site, Each each) {
    const std::size_t bytes = box_bytes(map);
    expect_box(shared, bytes, name, site);
    const unsigned number = barrier_number(barrier, site);
    expect_fenced(number, site);
    Load load{static_cast<char*>(shared), std::vector<char>(bytes), map.swizzle_bytes, number, barrier_phase(number),
              launch.current, site};
    const bool detector = launch.request.kernel->detector;
    each([&](std::size_t offset, std::size_t skipped, std::uint64_t from, std::size_t count) {
        const void* source = reinterpret_cast<const void*>(from);
        if (detector) detector_copy(Access::read, source, count * map.element_bytes, "load", place);
        char* const to = &load.data[offset + skipped * map.element_bytes];
        std::memcpy(to, source, count * map.element_bytes);
        for (std::size_t i = 0; map.rounds_to_tf32 && i < count; ++i) {
            std::uint32_t bits;
            std::memcpy(&bits, to + i * sizeof bits, sizeof bits);
            bits = rounded_to_tf32(bits);
            std::memcpy(to + i * sizeof bits, &bits, sizeof bits);
        }
    });
    if (detector) detector_load_pending(load.shared, bytes, number, place);
    loads.push_back(std::move(load));
    ++launch.loads_pending;
}

void land(const Load& load) {
    const auto base = reinterpret_cast<std::uintptr_t>(load.shared);
    for (std::size_t at = 0; at < load.data.size(); at += chunk)
        std::memcpy(reinterpret_cast<void*>(swizzled(base + at, load.swizzle_bytes)), &load.data[at], chunk);
    bytes_landed(load.barrier, load.phase, load.shared, load.data.size(), load.site);
}

void read(Store& store) {
    if (store.is_read) return;
    store.is_read = true;
    store.data.resize(store.bytes);
    const auto base = reinterpret_cast<std::uintptr_t>(store.shared);
    for (std::size_t at = 0; at < store.bytes; at += chunk)
        std::memcpy(&store.data[at], reinterpret_cast<const void*>(swizzled(base + at, store.map.swizzle_bytes)),
                    chunk);
}

void write(Store& store) {
    if (store.is_written) return;
    store.is_written = true;
    for_rows(store.map, store.at, [&](std::size_t offset, std::size_t skipped, std::uint64_t to, std::size_t count) {
        std::memcpy(reinterpret_cast<void*>(to), &store.data[offset + skipped * store.map.element_bytes],
                    count * store.map.element_bytes);
    });
    std::vector<char>().swap(store.data);
}

unsigned warp_of(const Store& store) { return store.thread->index / warp_lanes; }

}  // namespace

void reset_copies() {
    loads.clear();
    stores.clear();
    launch.loads_pending = 0;
    unwritten.erase(std::remove_if(unwritten.begin(), unwritten.end(), [](const Store& s) { return s.is_written; }),
                    unwritten.end());
    for (Store& store : unwritten) store.of_earlier_block = true;
}

void forget_stores() { unwritten.clear(); }

void write_all_stores() {
    for (Store& store : unwritten) {
        launch.current = store.thread;  // for a report
        write(store);
    }
    launch.current = nullptr;
    unwritten.clear();
}

void land_one_load() {
    const std::size_t which = launch.request.seed ? random_below(loads.size()) : 0;
    const Load load = std::move(loads[which]);
    loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(which));
    --launch.loads_pending;
    launch.current = load.thread;  // for a report
    land(load);
}

// One reads, or one that has read writes; it stays until its thread has waited.
void some_store_goes_on() {
    const std::size_t count = stores.size() + unwritten.size();
    if (count == 0 || random_below(4) != 0) return;
    const std::size_t which = random_below(count);
    Store& store = which < stores.size() ? stores[which] : unwritten[which - stores.size()];
    if (store.is_read)
        write(store);
    else
        read(store);
}

void expect_all_landed() {
    if (!loads.empty())
        fault(loads[0].site, "the block has ended, and this load into its shared memory was not waited for");
}

void expect_stores_read(const Thread& thread) {
    for (const Store& store : stores)
        if (store.thread == &thread)
            fault(store.site, "the thread ends, and did not wait until this store had read the block's shared memory: "
                              "wait_stores_read<0>() is missing");
}

void stores_go_on() {
    for (const Store& store : stores)
        detector_agent_goes_on(store.shared, store.bytes, agent_of_stores(warp_of(store)), store.group + 1,
                               store.place);
}

void load_box(void* shared, const void* address, void* barrier, const int* at, int rank, Site site) {
    const Map map = map_at(address, "load_box", site);
    if (map.is_im2col) fault(site, "load_box: the map is one of pixels, for load_pixels");
    if (map.rank != rank) fault(site, "load_box: %d coordinates, and the map has %u dimensions", rank, map.rank);
    load(shared, map, barrier, "load_box", __builtin_return_address(0), site,
         [&](auto row) { for_rows(map, at, row); });
}

void load_pixels(void* shared, const void* address, void* barrier, const int* at, unsigned tap_w, unsigned tap_h,
                 Site site) {
    const Map map = map_at(address, "load_pixels", site);
    if (!map.is_im2col) fault(site, "load_pixels: the map is one of boxes, for load_box");
    if (tap_w > 255 || tap_h > 255) fault(site, "load_pixels: the tap (%u, %u) is beyond 255", tap_w, tap_h);
    for (unsigned i = 0; i < 2; ++i)
        if (at[1 + i] < map.lower[i] || at[1 + i] >= map.size(1 + i) + map.upper[i])
            fault(site, "load_pixels: %c = %d is not within the box of the map, %d to %lld", "wh"[i], at[1 + i],
                  map.lower[i], static_cast<long long>(map.size(1 + i) + map.upper[i] - 1));
    load(shared, map, barrier, "load_pixels", __builtin_return_address(0), site,
         [&](auto row) { for_pixels(map, at, tap_w, tap_h, row); });
}

void store_box(const void* address, const void* shared, const int* at, int rank, Site site) {
    const Map map = map_at(address, "store_box", site);
    if (map.is_im2col) fault(site, "store_box: the map is one of pixels, which cannot be stored");
    if (map.rounds_to_tf32) fault(site, "store_box: the map rounds what is loaded to tf32, and has no model of stores");
    if (map.rank != rank) fault(site, "store_box: %d coordinates, and the map has %u dimensions", rank, map.rank);
    Store store{};
    store.map = map;
    std::copy(at, at + rank, store.at);
    store.shared = static_cast<const char*>(shared);
    store.bytes = box_bytes(map);
    store.thread = launch.current;
    store.group = launch.current->store_groups;
    store.site = site;
    store.place = __builtin_return_address(0);
    expect_box(shared, store.bytes, "store_box", site);
    if (launch.request.kernel->detector) {
        detector_agent_reads(store.shared, store.bytes, agent_of_stores(warp_of(store)), store.group + 1, "store",
                             store.place);
        for_rows(map, at, [&](std::size_t, std::size_t, std::uint64_t to, std::size_t count) {
            detector_copy(Access::write, reinterpret_cast<void*>(to), count * map.element_bytes, "store", store.place);
        });
    }
    stores.push_back(std::move(store));
}

void commit_stores() { ++launch.current->store_groups; }

void wait_stores(unsigned groups_in_flight, bool until_written) {
    Thread& self = *launch.current;
    const auto goes_on = [&](const Store& store) {
        return store.of_earlier_block || store.thread != &self || store.group + groups_in_flight >= self.store_groups;
    };
    const auto waited_for = std::stable_partition(stores.begin(), stores.end(), goes_on);
    for (auto store = waited_for; store != stores.end(); ++store) {
        read(*store);
        unwritten.push_back(std::move(*store));
    }
    stores.erase(waited_for, stores.end());
    if (until_written) {
        const auto written = std::stable_partition(unwritten.begin(), unwritten.end(), goes_on);
        for (auto store = written; store != unwritten.end(); ++store) {
            write(*store);
            if (launch.request.kernel->detector)
                for_rows(store->map, store->at,
                         [&](std::size_t, std::size_t, std::uint64_t to, std::size_t count) {
                             detector_copy_written(reinterpret_cast<void*>(to), count * store->map.element_bytes);
                         });
        }
        unwritten.erase(written, unwritten.end());
    }
    if (launch.request.kernel->detector && self.store_groups > groups_in_flight)
        detector_agent_done(agent_of_stores(self.index / warp_lanes), self.store_groups - groups_in_flight, self.index);
}

void fence_async_proxy() {
    if (launch.request.kernel->detector) detector_fence();
}

void fence_async_proxy_global() {
    if (launch.request.kernel->detector) detector_global_fence();
}

void prefetch_tensor_map(const void* address, Site site) { map_at(address, "prefetch_tensor_map", site); }

}  // namespace emulator
