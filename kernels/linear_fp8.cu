// Matrix product of 8-bit factors on Hopper's tensor cores, C = scale A B^T: the last rung, twice the rate of 16 bits.
//
// A (m, k) and B (n, k) are the bytes that linear_fp8_quantize.cu made, both with the depth along their rows, which is
// all that wgmma takes of 8-bit elements. Inside, it keeps about 14 bits of a sum, too few for a long one: after each
// slice of 128 of the depth the sums go over to float32 registers and start anew. That is 64 additions a thread and
// slice beside four wgmma of 64 x 128 x 32; while one consumer adds, the other has the tensor cores. All else is as
// with 16 bits (linear_wgmma.cu), but for C, which threads store. Source: DeepSeek-AI, DeepSeek-V3 Technical Report
// (2024), section 3.3.2.
#include "product.cuh"
#include "wgmma_linear.cuh"

constexpr int THREADS = 384;  // a warpgroup that loads, and two that multiply
static_assert(THREADS == (1 + CONSUMERS) * WARPGROUP, "a warpgroup more than there are consumers");

using Tile = WgmmaShape<ROWS, COLUMNS, STAGES>;

// As Multiply (wgmma_tile.cuh), of factors in A and B; the sums of each slice are added to those before.
template <typename A, typename B>
struct MultiplyAndPromote {
    typedef Tile Shape;
    static constexpr Major MAJOR_A = Major::K, MAJOR_B = Major::K;
    static constexpr int DEPTH = SLICE_OF<uint8>;
    static_assert(Shape::BANDS == 1, "a consumer has two sets of sums in registers");

    Ring<Shape> ring;
    float of_slice[Shape::WIDTH / 2];

    __device__ __forceinline__ void start(int slices, Accumulators<Shape>& d) {
        const uint64 first_a = descriptor_k(ring.a()), first_b = descriptor_k(ring.b());
#pragma unroll
        for (int i = 0; i < Shape::WIDTH / 2; ++i) d.band[0][i] = 0.0f;
#pragma unroll 1
        for (int slice = 0; slice < slices; ++slice) {
            if (slice > 0) finish(d);
            ring.wait();
            const uint64 a = advanced(first_a, ring.offset()), b = advanced(first_b, ring.offset());
            warpgroup_fence();
#pragma unroll
            for (int step = 0; step < static_cast<int>(SLICE_BYTES / 32); ++step)
                warpgroup_multiply<A, B>(of_slice, advanced(a, 32 * step), advanced(b, 32 * step), step > 0);
            warpgroup_commit();
            ring.advance();
        }
    }

    __device__ __forceinline__ void finish(Accumulators<Shape>& d) {
        warpgroup_wait<0>(of_slice);
        ring.give_back();
#pragma unroll
        for (int i = 0; i < Shape::WIDTH / 2; ++i) d.band[0][i] += of_slice[i];
    }
};

// parts: in how many parts of the depth the product is cut.
template <typename A>
__device__ __forceinline__ void run_scaled(const TensorMap& a, const TensorMap& b, const float* scale_a,
                                           const float* scale_b, Epilogue<T> epilogue, const Product& product,
                                           int parts, Pipeline<Tile>& pipeline, unsigned char* tiles) {
    epilogue.alpha *= scale_a[0] * scale_b[0];
    // No box is stored, so there is no map of C.
    run<MultiplyAndPromote<A, e4m3>, T>(a, b, a, epilogue, nullptr, product, parts, false, pipeline, tiles);
}

// scale_a, scale_b: one number each, what the bytes are multiplied by. y = x W^T: both factors in e4m3.
extern "C" __global__ __launch_bounds__(THREADS, 1) void fp8_forward(const __grid_constant__ TensorMap map_a,
                                                                     const __grid_constant__ TensorMap map_b,
                                                                     const float* scale_a, const float* scale_b,
                                                                     EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS,
                                                                     int parts) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Tile> pipeline;
    run_scaled<e4m3>(map_a, map_b, scale_a, scale_b, {EPILOGUE_ARGUMENTS}, {PRODUCT_ARGUMENTS}, parts, pipeline, tiles);
}

// dx = dy W and dW = dy^T x: A is of dy, in e5m2.
extern "C" __global__ __launch_bounds__(THREADS, 1) void fp8_backward(const __grid_constant__ TensorMap map_a,
                                                                      const __grid_constant__ TensorMap map_b,
                                                                      const float* scale_a, const float* scale_b,
                                                                      EPILOGUE_PARAMETERS, PRODUCT_PARAMETERS,
                                                                      int parts) {
    DYNAMIC_SHARED_TILES(unsigned char, tiles);
    __shared__ Pipeline<Tile> pipeline;
    run_scaled<e5m2>(map_a, map_b, scale_a, scale_b, {EPILOGUE_ARGUMENTS}, {PRODUCT_ARGUMENTS}, parts, pipeline, tiles);
}
