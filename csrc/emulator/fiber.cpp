#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

#ifdef BP_OWN_SWITCH

#ifdef __APPLE__
#define BP_SYMBOL "_bp_switch_stacks"
#define BP_TYPE
#else
#define BP_SYMBOL "bp_switch_stacks"
#define BP_TYPE ".type " BP_SYMBOL ", %function\n"
#endif

extern "C" void bp_switch_stacks(void** save, void* restore);

// Only what a called function must preserve is saved: the compiler has saved the rest around the call.
#ifdef __x86_64__
asm(".text\n.globl " BP_SYMBOL "\n" BP_TYPE BP_SYMBOL ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");
#else
asm(".text\n.globl " BP_SYMBOL "\n" BP_TYPE ".p2align 2\n" BP_SYMBOL ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#endif

#endif  // BP_OWN_SWITCH

namespace emulator {
namespace {

constexpr std::size_t most_fibers = 1024 + 1;  // the threads of a block, and one that starts the next thread

#ifdef BP_OWN_SWITCH

// A stack that looks as if entry() were about to be called by a function whose caller is unknown.
void prepare(Fiber& fiber, std::size_t bytes, void (*entry)()) {
    auto* top = reinterpret_cast<std::uintptr_t*>(fiber.stack + bytes);
#ifdef __x86_64__
    *--top = 0;                                        // the return address of entry: no caller; the ABI's alignment
    *--top = reinterpret_cast<std::uintptr_t>(entry);  // taken by ret
    for (int i = 0; i < 6; ++i) *--top = 0;
#else
    top -= 20;
    for (int i = 0; i < 20; ++i) top[i] = 0;
    top[11] = reinterpret_cast<std::uintptr_t>(entry);  // x30, taken by ret
#endif
    fiber.stack_pointer = top;
}

#else

void prepare(Fiber& fiber, std::size_t bytes, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

#endif

}  // namespace

void switch_fiber(Fiber& from, Fiber& to) {
#ifdef BP_OWN_SWITCH
    bp_switch_stacks(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
}

void FiberPool::reserve() {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    slot_bytes_ = page + stack_bytes;
    void* memory = mmap(nullptr, slot_bytes_ * most_fibers, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<char*>(memory);
    total_bytes_ = slot_bytes_ * most_fibers;
    fibers_.resize(most_fibers);
    for (std::size_t i = 0; i < most_fibers; ++i) {
        char* guard = begin_ + i * slot_bytes_;
        if (mprotect(guard, page, PROT_NONE) != 0) throw std::bad_alloc();
        fibers_[i].stack = guard + page;
    }
}

FiberPool::~FiberPool() {
    if (begin_) munmap(begin_, total_bytes_);
}

Fiber* FiberPool::take(void (*entry)()) {
    Fiber* fiber = free_.back();
    free_.pop_back();
    prepare(*fiber, stack_bytes, entry);
    return fiber;
}

void FiberPool::reset() {
    if (!begin_) reserve();
    free_.clear();
    for (std::size_t i = fibers_.size(); i-- > 0;) free_.push_back(&fibers_[i]);
}

bool FiberPool::is_guard(const void* address) const {
    const auto offset = static_cast<std::size_t>(static_cast<const char*>(address) - begin_);
    return offset < total_bytes_ && offset % slot_bytes_ < slot_bytes_ - stack_bytes;
}

}  // namespace emulator
