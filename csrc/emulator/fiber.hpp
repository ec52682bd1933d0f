// Fibers: stacks that one operating-system thread switches between, one for each CUDA thread that waits.
#pragma once
#include <cstddef>
#include <vector>

#if defined(__x86_64__) || defined(__aarch64__)
#define BP_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace emulator {

struct Fiber {
#ifdef BP_OWN_SWITCH
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    char* stack = nullptr;  // its lowest usable byte; a page that cannot be touched lies below
};

// Saves the running fiber in `from` and continues `to`.
void switch_fiber(Fiber& from, Fiber& to);

// The stacks, each with a guard page, in one range of addresses. They are made once and used again.
class FiberPool {
public:
    static constexpr std::size_t stack_bytes = 64 * 1024;

    ~FiberPool();
    // A fiber that will call entry() on its stack when switched to; entry must not return.
    Fiber* take(void (*entry)());
    void give_back(Fiber* fiber) { free_.push_back(fiber); }
    // Before a launch: all are free, whatever a fault left.
    void reset();
    bool contains(const void* address) const {
        return static_cast<std::size_t>(static_cast<const char*>(address) - begin_) < total_bytes_;
    }
    bool is_guard(const void* address) const;

private:
    void reserve();
    char* begin_ = nullptr;
    std::size_t total_bytes_ = 0, slot_bytes_ = 0;
    std::vector<Fiber> fibers_;
    std::vector<Fiber*> free_;
};

}  // namespace emulator
