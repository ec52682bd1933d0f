// Matrix product of 8-bit factors on Hopper's tensor cores, C = scale A B^T: the last rung, twice the rate of 16 bits.
//
// A (m, k) and B (n, k) are the bytes that linear_fp8_quantize.cu made, both with the depth along their rows, which is
// all that wgmma takes of 8-bit elements. Inside, it keeps about 14 bits of a sum, too few for a long one: after each
// slice of 128 of the depth the sums go over to float32 registers and start anew. That is 64 additions a thread and
// slice beside four wgmma of 64 x 128 x 32; while one consumer adds, the other has the tensor cores. Source:
// DeepSeek-AI, DeepSeek-V3 Technical Report (2024), section 3.3.2.
#include "product.cuh"
#include "tile_order.cuh"
#include "wgmma_tile.cuh"

constexpr int THREADS = 384;  // a warpgroup that loads, and two that multiply
static_assert(THREADS == (1 + CONSUMERS) * WARPGROUP, "a warpgroup more than there are consumers");

constexpr int BYTES = 128;  // of a slice, as many elements of the depth
using Shape = WgmmaShape<ROWS, COLUMNS, STAGES>;

// total = the sum over `slices` slices; the 128 threads of a consumer call.
template <typename A, typename B>
__device__ __forceinline__ void multiply_promoted(Pipeline<Shape>& pipeline, unsigned char* tiles, int slices,
                                                  int consumer, Accumulators<Shape>& total) {
    constexpr int REGISTERS = Shape::WIDTH / 2;
    static_assert(Shape::BANDS == 1, "a consumer has two sets of sums in registers");
    const uint64 first_a = descriptor_k(tiles + Shape::row(consumer) / SPAN * PANEL);
    const uint64 first_b = descriptor_k(tiles + Shape::A_BYTES + Shape::column(consumer) / SPAN * PANEL);
    const bool speaks = threadIdx.x % WARP == 0;
    Place<Shape> at;
#pragma unroll
    for (int i = 0; i < REGISTERS; ++i) total.band[0][i] = 0.0f;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        float d[REGISTERS];
        barrier_wait(pipeline.full[at.stage], at.parity);
        const uint64 a = advanced(first_a, at.stage * Shape::STAGE_BYTES);
        const uint64 b = advanced(first_b, at.stage * Shape::STAGE_BYTES);
        warpgroup_fence();
#pragma unroll
        for (int step = 0; step < BYTES / 32; ++step)
            warpgroup_multiply<A, B>(d, advanced(a, 32 * step), advanced(b, 32 * step), step > 0);
        warpgroup_commit();
        warpgroup_wait<0>(d);
        if (speaks) barrier_arrive(pipeline.empty[at.stage]);
        at.advance();
#pragma unroll
        for (int i = 0; i < REGISTERS; ++i) total.band[0][i] += d[i];
    }
}

// One thread calls.
__device__ __forceinline__ void load(Pipeline<Shape>& pipeline, unsigned char* tiles, const TensorMap& a,
                                     const TensorMap& b, const TileOrder& tile, int begin, int slices) {
    Place<Shape> at;
    load_slices(pipeline, tiles, at, slices,
                [&](int slice, unsigned char* tile_a, unsigned char* tile_b, Barrier& barrier) {
                    const int depth = begin + slice * BYTES;
                    load_panels<Major::K, ROWS>(tile_a, a, barrier, depth, static_cast<int>(tile.row), 0);
                    load_panels<Major::K, COLUMNS>(tile_b, b, barrier, depth, static_cast<int>(tile.column), 0);
                });
}

template <typename A, typename B>
__device__ __forceinline__ void run(const TensorMap& a, const TensorMap& b, const float* scale_a, const float* scale_b,
                                    Epilogue<T> epilogue, const Product& product, Pipeline<Shape>& pipeline,
                                    unsigned char* tiles) {
    if (threadIdx.x == 0) {
        pipeline.begin(CONSUMER_WARPS);
        prefetch_tensor_map(a);
        prefetch_tensor_map(b);
    }
    __syncthreads();
    const TileOrder tile(product.m, product.n, ROWS, COLUMNS);
    const int slices = static_cast<int>((product.end() - product.begin() + BYTES - 1) / BYTES);
    const int warp = threadIdx.x / WARP;
    if (warp < WARPGROUP / WARP) {
        give_registers_back<LOADER_REGISTERS>();
        if (threadIdx.x == 0) load(pipeline, tiles, a, b, tile, static_cast<int>(product.begin()), slices);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        const int consumer = threadIdx.x / WARPGROUP - 1;
        Accumulators<Shape> total;
        multiply_promoted<A, B>(pipeline, tiles, slices, consumer, total);
        epilogue.alpha *= scale_a[0] * scale_b[0];
        const int64 row = tile.row + Shape::row(consumer) + threadIdx.x % WARPGROUP / WARP * LINES;
        const int64 column = tile.column + Shape::column(consumer), stride = product.stride();
        const Target target = {static_cast<int>(product.m - row), static_cast<int>(product.n - column),
                               column,                            product.place(row, column),
                               stride,                            product.logical(row, column),
                               product.n};
        float* const staging = reinterpret_cast<float*>(tiles + STAGES * Shape::STAGE_BYTES +
                                                        (warp - WARPGROUP / WARP) * STAGING);
        if (product.vectors(epilogue))
            store_rows<Epilogue<T>::V>(total, epilogue, target, staging);
        else
            store_rows<1>(total, epilogue, target, staging);
    }
}

// scale_a, scale_b: one number each, what the bytes are multiplied by. y = x W^T: both factors in e4m3.
extern "C" __global__ __launch_bounds__(THREADS, 1) void fp8_forward(const __grid_constant__ TensorMap map_a,
                                                                     const __grid_constant__ TensorMap map_b,
                                                                     const float* scale_a, const float* scale_b,
                                                                     EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<e4m3, e4m3>(map_a, map_b, scale_a, scale_b, {EPILOGUE_ARGUMENTS}, {PRODUCT_ARGUMENTS}, pipeline, tiles);
}

// dx = dy W and dW = dy^T x: A is of dy, in e5m2.
extern "C" __global__ __launch_bounds__(THREADS, 1) void fp8_backward(const __grid_constant__ TensorMap map_a,
                                                                      const __grid_constant__ TensorMap map_b,
                                                                      const float* scale_a, const float* scale_b,
                                                                      EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Shape> pipeline;
    run<e5m2, e4m3>(map_a, map_b, scale_a, scale_b, {EPILOGUE_ARGUMENTS}, {PRODUCT_ARGUMENTS}, pipeline, tiles);
}
