// Matrix product on Hopper's tensor cores, the fastest rung for 16-bit elements: TMA, mbarrier and wgmma.
//
//   wgmma_nt: C = A B^T   y = x W^T      A (m, k), B (n, k)
//   wgmma_nn: C = A B     dx = dy W      A (m, k), B (k, n)
//   wgmma_tn: C = A^T B   dW = dy^T x    A (k, m), B (k, n), and the sums of A's columns: db
//
// wgmma reads 16-bit factors in either major order, so the three ways are three sorts of boxes and no copy is made.
// Blocks are persistent: each takes one tile after the other, of all parts and products, and its loads run ahead from
// one tile into the next: wgmma_block.cuh, and for what happens within a tile wgmma_tile.cuh.
//
// What a slice of 64 of the depth costs with tiles of 128 x 256, by the machine code and the limits of an H100 or H200
// (not measured yet):
//
//   tensor cores    8 products of 64 x 256 x 16, 128 cycles each                              1024 cycles
//   shared memory   80 KB read by the products, 48 KB written by the copies, 128 bytes a cycle  1024
//   L2 cache        48 KB, so 48 bytes a cycle for each multiprocessor
//   schedulers      82 instructions of each consumer's warp, two of which share one             164
//                   41 to 90 of the thread that loads, by the way
//
// So the tensor cores are the limit, and shared memory is level with them; with tiles of 128 x 128 the L2 cache is: 64
// bytes a cycle. Results of 16 bits that leave in boxes take a warp about 600 instructions a tile and the shared memory
// 256 cycles for each consumer, less than the other one multiplies in the meantime (512 a slice, up to 4 slices).
#include "product.cuh"
#include "wgmma_block.cuh"

constexpr int THREADS = 384;  // a warpgroup that loads, and two that multiply
static_assert(THREADS == (1 + CONSUMERS) * WARPGROUP, "a warpgroup more than there are consumers");

using Shape = WgmmaShape<ROWS, COLUMNS, STAGES>;

// Loads what the product has of both factors.
template <Major MAJOR_A, Major MAJOR_B>
struct Factors {
    typedef Work Tile;

    const TensorMap& a;
    const TensorMap& b;
    const bool several_a, several_b;  // a matrix that all products have in common is a map of one

    __device__ __forceinline__ void prefetch() const {
        prefetch_tensor_map(a);
        prefetch_tensor_map(b);
    }
    __device__ __forceinline__ Tile tile(const Work& work, int) const { return work; }
    __device__ __forceinline__ void slice(Tile& tile, int slice, unsigned char* tile_a, unsigned char* tile_b,
                                          Barrier& barrier) const {
        load_panels<MAJOR_A, ROWS>(tile_a, a, barrier, slice * SLICE, tile.row, several_a ? tile.item : 0);
        load_panels<MAJOR_B, COLUMNS>(tile_b, b, barrier, slice * SLICE, tile.column, several_b ? tile.item : 0);
    }
};

template <Major MAJOR_A, Major MAJOR_B>
__device__ __forceinline__ void run(const TensorMap& a, const TensorMap& b, const TensorMap& c,
                                    const Epilogue<T>& epilogue, float* column_sums, const Product& product, int parts,
                                    bool boxes, Pipeline<Shape>& pipeline, unsigned char* tiles) {
    const WgmmaProduct of{product.m,       product.n,        product.k,
                          product.batch,   product.part,     parts,
                          product.c_batch, product.c_stride, product.m * product.n,
                          product.n,       0,                1,
                          product.batch * product.m * product.n};
    const Factors<MAJOR_A, MAJOR_B> factors{a, b, product.a_batch != 0, product.b_batch != 0};
    run_block<MAJOR_A, MAJOR_B>(factors, c, epilogue, column_sums, of, boxes, pipeline, tiles);
}

// parts: in how many parts of the depth each product is cut. boxes: whether the copy engine stores C, by map_c: where C
// is y, without beta, kept, residual, before and mask, after the identity or relu.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_nt(const __grid_constant__ TensorMap map_a,
                                                                  const __grid_constant__ TensorMap map_b,
                                                                  const __grid_constant__ TensorMap map_c,
                                                                  EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS, int parts,
                                                                  bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<Major::K, Major::K>(map_a, map_b, map_c, {EPILOGUE_ARGUMENTS}, nullptr, {PRODUCT_ARGUMENTS}, parts, boxes,
                            pipeline, tiles);
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_nn(const __grid_constant__ TensorMap map_a,
                                                                  const __grid_constant__ TensorMap map_b,
                                                                  const __grid_constant__ TensorMap map_c,
                                                                  EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS, int parts,
                                                                  bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<Major::K, Major::MN>(map_a, map_b, map_c, {EPILOGUE_ARGUMENTS}, nullptr, {PRODUCT_ARGUMENTS}, parts, boxes,
                             pipeline, tiles);
}

// column_sums (null: not wanted; not of several products): parts have theirs behind their part of C.
extern "C" __global__ __launch_bounds__(THREADS, 1) void wgmma_tn(const __grid_constant__ TensorMap map_a,
                                                                  const __grid_constant__ TensorMap map_b,
                                                                  const __grid_constant__ TensorMap map_c,
                                                                  EPILOGUE_PARAMETERS, float* column_sums,
                                                                  PRODUCT_PARAMETERS, int parts, bool boxes) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<Major::MN, Major::MN>(map_a, map_b, map_c, {EPILOGUE_ARGUMENTS}, column_sums, {PRODUCT_ARGUMENTS}, parts, boxes,
                              pipeline, tiles);
}
