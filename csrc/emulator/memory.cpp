// Device memory: each array ends at a page that cannot be touched, and has canary bytes around it.
//
// Memory of a released array stays for a while, known as such and filled with 0xff: what still points there reads NaN.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
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
constexpr std::size_t most_canary = 4096;  // on one side: all that lies before an array in its first page
constexpr std::size_t alignment = 16;
constexpr std::size_t most_kept_bytes = std::size_t(256) << 20;

struct Mapping {
    std::size_t pages;    // without the guard page at each end
    std::uintptr_t begin, end;  // of the array
    bool sparse;
    bool released;
};

struct Arrays {
    std::mutex mutex;
    std::map<std::uintptr_t, Mapping> mappings;           // by the address of the first page, a guard
    std::multimap<std::size_t, std::uintptr_t> released;  // of them, those to use again, by pages
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
    const std::size_t before = slack < most_canary ? slack : most_canary;
    return {{reinterpret_cast<unsigned char*>(mapping.begin - before), reinterpret_cast<unsigned char*>(mapping.end)},
            {before, pages_end - mapping.end}};
}

// Canary bytes as they lie from this address on.
const unsigned char* pattern(const void* address) {
    static const auto bytes = [] {
        std::array<unsigned char, most_canary + 1> all;
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = canary[i & 1];
        return all;
    }();
    return bytes.data() + (reinterpret_cast<std::uintptr_t>(address) & 1);
}

void write_canaries(const Canaries& around) {
    for (int side = 0; side < 2; ++side)
        std::memcpy(around.begin[side], pattern(around.begin[side]), around.bytes[side]);
}

// The first byte that differs, or 0.
std::uintptr_t damaged(const Canaries& around) {
    for (int side = 0; side < 2; ++side) {
        const unsigned char *found = around.begin[side], *expected = pattern(found);
        if (std::memcmp(found, expected, around.bytes[side]) == 0) continue;
        while (*found == *expected) ++found, ++expected;
        return reinterpret_cast<std::uintptr_t>(found);
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
    if (next == all.mappings.begin()) return {};
    --next;
    const Mapping& mapping = next->second;
    if (at >= next->first + (mapping.pages + 2) * page_bytes()) return {};
    return {mapping.begin, mapping.end, mapping.released};
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

// What a damaged canary says; `pointer` 0: all are whole; `address` 0: the array itself was released.
struct Damage {
    unsigned long long pointer, bytes, address;
};

namespace {

Damage damage_of(std::uintptr_t first, const Mapping& mapping) {
    if (mapping.released) {
        std::memset(reinterpret_cast<void*>(mapping.begin), 0xff, mapping.end - mapping.begin);  // for the next one
        return {mapping.begin, mapping.end - mapping.begin, 0};
    }
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
    const bool used_before = kept != all.released.end();
    if (used_before) {
        first = kept->second;
        all.released.erase(kept);
        all.released_bytes -= pages * page;
    } else {
        first = reinterpret_cast<std::uintptr_t>(map_pages(pages));
        if (!first) return 0;
    }
    const std::uintptr_t begin = first + (pages + 1) * page - rounded;
    const Mapping mapping{pages, begin, begin + bytes, kind == 2, false};
    // What was used before holds 0xff by now, new pages hold zeros.
    if (used_before != (kind == 0)) std::memset(reinterpret_cast<void*>(begin), kind == 0 ? 0xff : 0, bytes);
    write_canaries(canaries(first, mapping));
    all.mappings[first] = mapping;
    ++allocation_changes;
    return begin;
}

extern "C" Damage bp_free(unsigned long long pointer) {
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    auto found = all.mappings.upper_bound(pointer);
    --found;
    const std::uintptr_t first = found->first;
    Mapping& mapping = found->second;
    const Damage damage = damage_of(first, mapping);
    ++allocation_changes;
    const std::size_t bytes = mapping.pages * page_bytes();
    if (mapping.sparse || all.released_bytes + bytes > most_kept_bytes) {
        munmap(reinterpret_cast<void*>(first), bytes + 2 * page_bytes());
        all.mappings.erase(found);
    } else {
        std::memset(reinterpret_cast<void*>(first + page_bytes()), 0xff, bytes);
        mapping.released = true;
        all.released.emplace(mapping.pages, first);
        all.released_bytes += bytes;
    }
    return damage;
}

extern "C" Damage bp_check_canaries() {
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (const auto& [first, mapping] : all.mappings) {
        if (mapping.released) continue;
        const Damage damage = damage_of(first, mapping);
        if (damage.pointer) return damage;
    }
    return {0, 0, 0};
}

// Of the array that holds the address, or held it; whole where there is none.
extern "C" Damage bp_check_array(unsigned long long pointer) {
    Arrays& all = arrays();
    const std::lock_guard<std::mutex> lock(all.mutex);
    auto found = all.mappings.upper_bound(pointer);
    if (found == all.mappings.begin()) return {0, 0, 0};
    --found;
    const bool inside = pointer < found->first + (found->second.pages + 2) * page_bytes();
    return inside ? damage_of(found->first, found->second) : Damage{0, 0, 0};
}
