// Accesses of 16 bytes: one instruction on a GPU, which demands an aligned address. A C++ compiler may split them into
// smaller ones that work at any address, so the alignment is checked here.
#pragma once
#include "interface.hpp"

namespace emulator {

template <typename Vector>
__attribute__((always_inline)) inline Vector load16(const void* address, BP_SITE) {
    static_assert(sizeof(Vector) == 16, "a load of 16 bytes");
    if (reinterpret_cast<unsigned long long>(address) & 15)
        fault({file, line}, "load16 from %p, which is no multiple of 16", address);
#ifdef BP_DETECTOR
    note_read(address, 16);
#endif
    Vector value;
    __builtin_memcpy(&value, address, 16);
    return value;
}

template <typename Vector>
__attribute__((always_inline)) inline void store16(void* address, const Vector& value, BP_SITE) {
    static_assert(sizeof(Vector) == 16, "a store of 16 bytes");
    if (reinterpret_cast<unsigned long long>(address) & 15)
        fault({file, line}, "store16 to %p, which is no multiple of 16", address);
#ifdef BP_DETECTOR
    note_write(address, 16);
#endif
    __builtin_memcpy(address, &value, 16);
}

}  // namespace emulator
