// Dynamic shared memory: its size is an argument of the launch, not of the compilation.
#pragma once

// Declares `type* name`, the first element of the block's dynamic shared memory, at a multiple of 16 bytes.
// Once in a kernel body; several arrays are parts of this one.
#ifdef BP_EMULATOR
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator::dynamic_shared())
#else
#define DYNAMIC_SHARED(type, name)                            \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type* const name = reinterpret_cast<type*>(name##_bytes)
#endif

// The same at a multiple of 1024 bytes, from which the 128-byte swizzle of tensor_map.cuh and wgmma.cuh counts.
// `shared` of the launch is a multiple of 1024 too: the emulator ends it at a page that cannot be touched.
#ifdef BP_EMULATOR
#define DYNAMIC_SHARED_TILES(type, name) type* const name = static_cast<type*>(emulator::dynamic_shared_tiles())
#else
#define DYNAMIC_SHARED_TILES(type, name)                            \
    extern __shared__ __align__(1024) unsigned char name##_bytes[]; \
    type* const name = reinterpret_cast<type*>(name##_bytes)
#endif
