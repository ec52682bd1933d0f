// Atomics on integers. One thread runs at a time, so plain code is atomic; the detector is told what it is.
#pragma once
#include "interface.hpp"

namespace emulator {

// The old value; the new one is update(old).
template <typename Type, typename Update>
__attribute__((no_sanitize("thread"))) inline Type exchange(Type* address, Update update) {
#ifdef BP_DETECTOR
    note_atomic(address, sizeof(Type), __builtin_return_address(0));
#endif
    const Type old = *address;
    *address = update(old);
    return old;
}

}  // namespace emulator

#define BP_ATOMICS(Type)                                                                        \
    inline Type atomicAdd(Type* address, Type value) {                                          \
        return emulator::exchange(address, [=](Type old) { return static_cast<Type>(old + value); }); \
    }                                                                                           \
    inline Type atomicMax(Type* address, Type value) {                                          \
        return emulator::exchange(address, [=](Type old) { return old > value ? old : value; });     \
    }                                                                                           \
    inline Type atomicMin(Type* address, Type value) {                                          \
        return emulator::exchange(address, [=](Type old) { return old < value ? old : value; });     \
    }                                                                                           \
    inline Type atomicOr(Type* address, Type value) {                                           \
        return emulator::exchange(address, [=](Type old) { return old | value; });              \
    }                                                                                           \
    inline Type atomicAnd(Type* address, Type value) {                                          \
        return emulator::exchange(address, [=](Type old) { return old & value; });              \
    }                                                                                           \
    inline Type atomicExch(Type* address, Type value) {                                         \
        return emulator::exchange(address, [=](Type) { return value; });                        \
    }                                                                                           \
    inline Type atomicCAS(Type* address, Type expected, Type value) {                           \
        return emulator::exchange(address, [=](Type old) { return old == expected ? value : old; }); \
    }
BP_ATOMICS(int)
BP_ATOMICS(unsigned)
BP_ATOMICS(unsigned long long)
#undef BP_ATOMICS

// An int would otherwise become a float's neighbour by conversion: `atomicAdd(pointer_to_float, 1)` must not compile.
float atomicAdd(float* address, float value) = delete;
double atomicAdd(double* address, double value) = delete;
