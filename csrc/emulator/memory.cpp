// Device memory: each array ends at a page that cannot be touched, and has canary bytes around it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>

#include "engine.hpp"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace emulator {

std::atomic<std::uint64_t> allocation_changes{0};

namespace {

// NaN in every floating-point type where it is read, and different from the poison of unwritten memory.
constexpr unsigned char canary[2] = {0xfd, 0xff};
constexpr std::size_t most_canary_before = 64;
constexpr std::size_t alignment = 16;
constexpr std::size_t most_kept_bytes = std::size_t(256) << 20;

struct Mapping {
    std::size_t pages;    // without the guard page at each end
    std::uintptr_t begin, end;  // of the array
    bool sparse;
};

struct Arrays {
    std::mutex mutex;
    std::map<std::uintptr_t, Mapping> mappings;                // by the address of the first page, a guard
    std::multimap<std::size_t, std::uintptr_t> released;  // mappings to use again, by pages
    std::size_t released_bytes = 0;
};

Arrays& arrays() {
    static Arrays* const instance = new Arrays;  // outlives arrays that the interpreter frees at exit
    return *instance;
}

std::size_t page_bytes() {
    static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

// A guard page, the pages, a guard page. nullptr where there is no memory.
char* map_pages(std::size_t pages) {
    const std::size_t page = page_bytes();
    void* memory = mmap(nullptr, (pages + 2) * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    char* first = static_cast<char*>(memory);
    if (pages && mprotect(first + page, pages * page, PROT_READ | PROT_WRITE) != 0) {
        munmap(memory, (pages + 2) * page);
        return nullptr;
    }
    return first;
}

struct Canaries {
    unsigned char* begin[2];
    std::size_t bytes[2];
};

// The bytes before the array (some of them) and after it.
Canaries canaries(std::uintptr_t first, const Mapping& mapping) {
    const std::uintptr_t pages_begin = first + page_bytes(), pages_end = pages_begin + mapping.pages * page_bytes();
    const std::size_t slack = mapping.begin - pages_begin;
    const std::size_t before = slack < most_canary_before ? slack : most_canary_before;
    return {{reinterpret_cast<unsigned char*>(mapping.begin - before), reinterpret_cast<unsigned char*>(mapping.end)},
            {before, pages_end - mapping.end}};
}

void write_canaries(const Canaries& around) {
    for (int side = 0; side < 2; ++side)
        for (std::size_t i = 0; i < around.bytes[side]; ++i)
            around.begin[side][i] = canary[reinterpret_cast<std::uintptr_t>(around.begin[side] + i) & 1];
}

// The first byte that differs, or 0.
std::uintptr_t damaged(const Canaries& around) {
    for (int side = 0; side < 2; ++side)
        for (std::size_t i = 0; i < around.bytes[side]; ++i) {
            const auto address = reinterpret_cast<std::uintptr_t>(around.begin[side] + i);
            if (around.begin[side][i] != canary[address & 1]) return address;
        }
    return 0;
}

char* dynamic_end = nullptr;

}  // namespace

Range allocation_at(const void* address) {
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    auto next = all.mappings.upper_bound(at);
    if (next == all.mappings.begin()) return {0, 0};
    --next;
    if (at >= next->first + (next->second.pages + 2) * page_bytes()) return {0, 0};
    return {next->second.begin, next->second.end};
}

// The dynamic shared memory of every launch ends here, at a guard page.
char* dynamic_shared_end() {
    if (!dynamic_end) {
        const std::size_t pages = most_dynamic_shared / page_bytes();
        if (char* first = map_pages(pages)) dynamic_end = first + (pages + 1) * page_bytes();
    }
    return dynamic_end;
}

}  // namespace emulator

using namespace emulator;

// What a damaged canary says; `pointer` 0: all are whole.
struct Damage {
    unsigned long long pointer, bytes, address;
};

namespace {

Damage damage_of(std::uintptr_t first, const Mapping& mapping) {
    const Canaries around = canaries(first, mapping);
    const std::uintptr_t address = damaged(around);
    if (!address) return {0, 0, 0};
    write_canaries(around);  // reported once
    return {mapping.begin, mapping.end - mapping.begin, address};
}

}  // namespace

// kind 0: filled with 0xff (NaN in every floating-point type); 1: zeros; 2: zeros that take memory only where written.
// The start is a multiple of 16. 0 where there is no memory.
extern "C" unsigned long long bp_allocate(unsigned long long bytes, int kind) {
    const std::size_t page = page_bytes(), rounded = (bytes + alignment - 1) / alignment * alignment;
    const std::size_t pages = (rounded + page - 1) / page;
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    std::uintptr_t first = 0;
    const auto kept = kind == 2 ? all.released.end() : all.released.find(pages);
    if (kept != all.released.end()) {
        first = kept->second;
        all.released.erase(kept);
        all.released_bytes -= pages * page;
    } else {
        first = reinterpret_cast<std::uintptr_t>(map_pages(pages));
        if (!first) return 0;
    }
    const std::uintptr_t begin = first + (pages + 1) * page - rounded;
    const Mapping mapping{pages, begin, begin + bytes, kind == 2};
    if (kind != 2) std::memset(reinterpret_cast<void*>(begin), kind == 0 ? 0xff : 0, bytes);
    write_canaries(canaries(first, mapping));
    all.mappings.emplace(first, mapping);
    ++allocation_changes;
    return begin;
}

extern "C" Damage bp_free(unsigned long long pointer) {
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    auto found = all.mappings.upper_bound(pointer);
    --found;
    const std::uintptr_t first = found->first;
    const Mapping mapping = found->second;
    const Damage damage = damage_of(first, mapping);
    all.mappings.erase(found);
    ++allocation_changes;
    const std::size_t bytes = mapping.pages * page_bytes();
    if (mapping.sparse || all.released_bytes + bytes > most_kept_bytes) {
        munmap(reinterpret_cast<void*>(first), bytes + 2 * page_bytes());
    } else {
        all.released.emplace(mapping.pages, first);
        all.released_bytes += bytes;
    }
    return damage;
}

extern "C" Damage bp_check_canaries() {
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (const auto& [first, mapping] : all.mappings) {
        const Damage damage = damage_of(first, mapping);
        if (damage.pointer) return damage;
    }
    return {0, 0, 0};
}

// Of the array that holds the address; whole where there is none.
extern "C" Damage bp_check_array(unsigned long long pointer) {
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    auto found = all.mappings.upper_bound(pointer);
    if (found == all.mappings.begin()) return {0, 0, 0};
    --found;
    const bool inside = pointer < found->first + (found->second.pages + 2) * page_bytes();
    return inside ? damage_of(found->first, found->second) : Damage{0, 0, 0};
}
