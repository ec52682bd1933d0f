// What kernels compiled for the detector call: the hooks of the compiler, and notes of the shim's own functions.
#include <cstring>

#include "detector.hpp"
#include "engine.hpp"

namespace emulator {

void note_read(const void* address, unsigned long long bytes) {
    detector_access(Access::read, address, bytes, __builtin_return_address(0), false);
}
void note_write(void* address, unsigned long long bytes) {
    detector_access(Access::write, address, bytes, __builtin_return_address(0), false);
}
void note_atomic(void* address, unsigned long long bytes, const void* place) {
    detector_access(Access::atomic, address, bytes, place, true);
}

}  // namespace emulator

using namespace emulator;

// The hooks that -fsanitize=thread puts before every access to memory; its runtime is not linked. Of 8 bytes and more
// it may be a structure that is copied.
#define BP_HOOK(name, kind, bytes, aligned)                                                  \
    extern "C" void __tsan_##name(void* address) {                                           \
        detector_access(Access::kind, address, bytes, __builtin_return_address(0), aligned, bytes < 8);      \
    }
#define BP_HOOKS(bytes)                                    \
    BP_HOOK(read##bytes, read, bytes, true)                \
    BP_HOOK(write##bytes, write, bytes, true)              \
    BP_HOOK(read_write##bytes, write, bytes, true)         \
    BP_HOOK(unaligned_read##bytes, read, bytes, false)     \
    BP_HOOK(unaligned_write##bytes, write, bytes, false)   \
    BP_HOOK(unaligned_read_write##bytes, write, bytes, false)
BP_HOOKS(1)
BP_HOOKS(2)
BP_HOOKS(4)
BP_HOOKS(8)
BP_HOOKS(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* address, unsigned long bytes) {
    detector_access(Access::read, address, bytes, __builtin_return_address(0), false, false);
}
void __tsan_write_range(void* address, unsigned long bytes) {
    detector_access(Access::write, address, bytes, __builtin_return_address(0), false);
}
void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
    detector_access(Access::read, from, bytes, __builtin_return_address(0), false, false);
    detector_access(Access::write, to, bytes, __builtin_return_address(0), false);
    return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
    detector_access(Access::read, from, bytes, __builtin_return_address(0), false, false);
    detector_access(Access::write, to, bytes, __builtin_return_address(0), false);
    return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
    detector_access(Access::write, to, bytes, __builtin_return_address(0), false);
    return std::memset(to, value, bytes);
}
}
