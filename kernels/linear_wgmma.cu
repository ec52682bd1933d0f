// Matrix product on Hopper's tensor cores, the fastest rung for 16-bit elements: TMA, mbarrier and wgmma.
//
//   wgmma_nt: C = A B^T   y = x W^T      A (m, k), B (n, k)
//   wgmma_nn: C = A B     dx = dy W      A (m, k), B (k, n)
//   wgmma_tn: C = A^T B   dW = dy^T x    A (k, m), B (k, n), and the sums of A's columns: db
//
// wgmma reads 16-bit factors in either major order, so the three ways are three sorts of boxes and no copy is made;
// floats it reads in one: linear_wgmma_tf32.cu.
// Blocks are persistent: each takes one tile after the other, of all parts and products, and its loads run ahead from
// one tile into the next: wgmma_block.cuh, and for what happens within a tile wgmma_tile.cuh.
//
// What a slice of 64 of the depth costs with tiles of 128 x 256, by the machine code and the limits of an H100 or H200
// (not measured yet):
//
//   tensor cores    8 products of 64 x 256 x 16, 128 cycles each                              1024 cycles
//   shared memory   80 KB read by the products, 48 KB written by the copies, 128 bytes a cycle  1024
//   L2 cache        48 KB, so 48 bytes a cycle for each multiprocessor
//   schedulers      80 instructions of each consumer's warp, two of which share one             160
//                   56 to 105 of the warp that loads, by the way
//
// So the tensor cores are the limit, and shared memory is level with them; with tiles of 128 x 128 the L2 cache is: 64
// bytes a cycle. What storing costs, and how much of it is hidden: wgmma_tile.cuh.
#include "product.cuh"
#include "wgmma_linear.cuh"

constexpr int THREADS = 384;  // a warpgroup that loads, and two that multiply
static_assert(THREADS == (1 + CONSUMERS) * WARPGROUP, "a warpgroup more than there are consumers");

using Shape = WgmmaShape<ROWS, COLUMNS, STAGES>;

// parts: in how many parts of the depth each product is cut. boxes: whether the copy engine stores C, by map_c: where C
// is y, without beta, kept, residual, before and mask, after the identity or relu.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_nt(const __grid_constant__ TensorMap map_a,
                                                                  const __grid_constant__ TensorMap map_b,
                                                                  const __grid_constant__ TensorMap map_c,
                                                                  EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS, int parts,
                                                                  bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<Multiply<T, Major::K, Major::K, Shape>, T>(map_a, map_b, map_c, {EPILOGUE_ARGUMENTS}, nullptr,
                                                   {PRODUCT_ARGUMENTS}, parts, boxes, pipeline, tiles);
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_nn(const __grid_constant__ TensorMap map_a,
                                                                  const __grid_constant__ TensorMap map_b,
                                                                  const __grid_constant__ TensorMap map_c,
                                                                  EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS, int parts,
                                                                  bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<Multiply<T, Major::K, Major::MN, Shape>, T>(map_a, map_b, map_c, {EPILOGUE_ARGUMENTS}, nullptr,
                                                    {PRODUCT_ARGUMENTS}, parts, boxes, pipeline, tiles);
}

// column_sums (null: not wanted; not of several products): parts have theirs behind their part of C.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_tn(const __grid_constant__ TensorMap map_a,
                                                                  const __grid_constant__ TensorMap map_b,
                                                                  const __grid_constant__ TensorMap map_c,
                                                                  EPILOGUE_PARAMETERS, float* column_sums,
                                                                  PRODUCT_PARAMETERS, int parts, bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<Multiply<T, Major::MN, Major::MN, Shape>, T>(map_a, map_b, map_c, {EPILOGUE_ARGUMENTS}, column_sums,
                                                     {PRODUCT_ARGUMENTS}, parts, boxes, pipeline, tiles);
}
