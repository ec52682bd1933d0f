// Help for kernels that need their registers for data.
#pragma once

// x, but the compiler does not know it: what is computed from it is computed again, instead of being kept in registers
// from the last time on.
__device__ __forceinline__ int forgotten(int x) {
#ifndef BP_EMULATOR
    asm volatile("" : "+r"(x));
#endif
    return x;
}
