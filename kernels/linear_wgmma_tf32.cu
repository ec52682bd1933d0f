// Matrix product of floats on Hopper's tensor cores, which round them to tf32: the rung wgmma for what 32 bits allow.
//
//   wgmma_tf32_nt: C = A B^T   y = x W^T      A (m, k), B (n, k)
//
// wgmma reads 32-bit factors in one order only, the depth along their rows, so the products of the two gradients, of
// which a factor lies the other way, are left to other rungs. The copy engine rounds: the maps of A and B are of tf32
// (bp/cuda/tensor_map.py), and no thread touches an element between memory and the tensor cores. All else is as with
// 16 bits (linear_wgmma.cu), but for C, which is of floats and which threads store.
//
// That the copy engine converts floats under such a map is known from NVIDIA's own kernels (CUTLASS, the collectives of
// sm_90); how it rounds no document says. Assumed, after what Triton relies on and has tested on sm_120: to the
// nearest, ties to even, with NaN and infinity left alone. The rung mma rounds ties away from zero (cvt.rna, mma.cuh),
// so the two differ where a factor lies in the very middle between two values. wgmma reads the upper 19 bits: a NaN
// that has none of its mantissa there, which no arithmetic makes, would be infinity. tests/gpu/golden.py records what a
// GPU does.
//
// What a slice costs is the same as there, since it is as many bytes: with tiles of 128 x 256, for 32 of the depth, 8
// products of 64 x 256 x 8, 128 cycles each. So the tensor cores are the limit, at half the operations (not measured
// yet). A tile of C is 128 KB, 8192 stores of 16 bytes: about 2600 instructions of each warp of a consumer, of which
// two slices of the other one hide 1024 cycles (wgmma_tile.cuh).
#include "product.cuh"
#include "wgmma_linear.cuh"

constexpr int THREADS = 384;  // a warpgroup that loads, and two that multiply
static_assert(THREADS == (1 + CONSUMERS) * WARPGROUP, "a warpgroup more than there are consumers");

using Shape = WgmmaShape<ROWS, COLUMNS, STAGES>;

// parts: in how many parts of the depth each product is cut.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_tf32_nt(const __grid_constant__ TensorMap map_a,
                                                                       const __grid_constant__ TensorMap map_b,
                                                                       EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS,
                                                                       int parts) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    // No box is stored, so there is no map of C.
    run<Multiply<T, Major::K, Major::K, Shape>, T>(map_a, map_b, map_a, {EPILOGUE_ARGUMENTS}, nullptr,
                                                   {PRODUCT_ARGUMENTS}, parts, false, pipeline, tiles);
}
