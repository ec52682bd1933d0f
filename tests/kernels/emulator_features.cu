// What the emulator offers to kernels, each thing once, to be compared with NumPy.
#include "mma.cuh"
#include "reduce.cuh"
#include "shared.cuh"
#include "vector.cuh"

extern "C" __global__ __launch_bounds__(256) void half_to_float(const float16* x, float* y, int64 n) {
    grid_stride(n, [&](int64 i) { y[i] = to_float(x[i]); });
}

extern "C" __global__ __launch_bounds__(256) void bfloat_to_float(const bfloat16* x, float* y, int64 n) {
    grid_stride(n, [&](int64 i) { y[i] = to_float(x[i]); });
}

extern "C" __global__ __launch_bounds__(256) void float_to_half(const float* x, float16* y, int64 n) {
    grid_stride(n, [&](int64 i) { y[i] = to_float16(x[i]); });
}

extern "C" __global__ __launch_bounds__(256) void float_to_bfloat(const float* x, bfloat16* y, int64 n) {
    grid_stride(n, [&](int64 i) { y[i] = to_bfloat16(x[i]); });
}

// y: 4 rows of 32: the four shuffles of lane numbers + 100.
extern "C" __global__ __launch_bounds__(32) void shuffles(int* y, int index, uint32 delta, int lanes, int width) {
    const int value = threadIdx.x + 100;
    y[threadIdx.x] = __shfl_sync(0xffffffffu, value, index, width);
    y[32 + threadIdx.x] = __shfl_up_sync(0xffffffffu, value, delta, width);
    y[64 + threadIdx.x] = __shfl_down_sync(0xffffffffu, value, delta, width);
    y[96 + threadIdx.x] = __shfl_xor_sync(0xffffffffu, value, lanes, width);
}

extern "C" __global__ __launch_bounds__(32) void wide_shuffles(double* d, int64* l, float* f) {
    const int i = threadIdx.x;
    d[i] = __shfl_xor_sync(0xffffffffu, 1.0 / (1 + i), 31);
    l[i] = __shfl_xor_sync(0xffffffffu, static_cast<int64>(i) << 40, 31);
    f[i] = __shfl_xor_sync(0xffffffffu, 1.0f / (1 + i), 31);
}

// The even and the odd lanes are two groups.
extern "C" __global__ __launch_bounds__(32) void votes(const int* x, uint32* y) {
    const int i = threadIdx.x;
    const uint32 mask = i % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
    y[i] = __ballot_sync(mask, x[i] > 0);
    y[32 + i] = __any_sync(mask, x[i] > 0);
    y[64 + i] = __all_sync(mask, x[i] > 0);
    y[96 + i] = __reduce_add_sync(mask, x[i]);
    y[128 + i] = __reduce_max_sync(mask, x[i]);
    y[160 + i] = __reduce_xor_sync(mask, static_cast<uint32>(x[i]));
}

extern "C" __global__ __launch_bounds__(128) void block_votes(const int* x, int* y) {
    const int positive = x[threadIdx.x] > 0;
    y[threadIdx.x] = __syncthreads_count(positive);
    y[128 + threadIdx.x] = __syncthreads_or(positive);
    y[256 + threadIdx.x] = __syncthreads_and(positive);
}

extern "C" __global__ __launch_bounds__(256) void row_sums(const float* x, float* y, int64 columns) {
    __shared__ float scratch[WARP];
    float total = 0.0f, largest = Max::neutral;
    for (int64 i = threadIdx.x; i < columns; i += blockDim.x) {
        total += x[blockIdx.x * columns + i];
        largest = Max()(largest, x[blockIdx.x * columns + i]);
    }
    total = block_reduce(total, scratch, Sum());
    largest = block_reduce(largest, scratch, Max());
    if (threadIdx.x == 0) {
        y[2 * blockIdx.x] = total;
        y[2 * blockIdx.x + 1] = largest;
    }
}

extern "C" __global__ __launch_bounds__(64) void integers(const uint32* x, uint32* y, int n) {
    const int i = threadIdx.x;
    if (i >= n) return;
    y[i] = __popc(x[i]);
    y[n + i] = __clz(static_cast<int>(x[i]));
    y[2 * n + i] = __ffs(static_cast<int>(x[i]));
    y[3 * n + i] = __brev(x[i]);
    y[4 * n + i] = __umulhi(x[i], 0x9e3779b9u);
}

// Each thread takes a number when it comes by.
extern "C" __global__ __launch_bounds__(64) void tickets(int* counter, int* order) {
    __shared__ int turn;
    order[blockIdx.x * 64 + threadIdx.x] = atomicAdd(counter, 1);
    if (threadIdx.x == 0) turn = 0;
    __syncthreads();
    atomicAdd(&turn, 1);
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(counter + 1, turn);
}

extern "C" __global__ __launch_bounds__(32) void matrices(const uint16* x, uint32* y, int transposed) {
    __shared__ uint4 tile[32];
    tile[threadIdx.x] = reinterpret_cast<const uint4*>(x)[threadIdx.x];
    __syncwarp();
    uint32 one[1], two[2], four[4];
    if (transposed) {
        load_matrix_transposed(one, tile + threadIdx.x % 8);
        load_matrix_transposed(two, tile + threadIdx.x % 16);
        load_matrix_transposed(four, tile + threadIdx.x);
    } else {
        load_matrix(one, tile + threadIdx.x % 8);
        load_matrix(two, tile + threadIdx.x % 16);
        load_matrix(four, tile + threadIdx.x);
    }
    y[threadIdx.x] = one[0];
    for (int i = 0; i < 2; ++i) y[32 * (1 + i) + threadIdx.x] = two[i];
    for (int i = 0; i < 4; ++i) y[32 * (3 + i) + threadIdx.x] = four[i];
}

// Fragments are arranged by the caller: word i of lane l at 32 i + l.
extern "C" __global__ __launch_bounds__(32) void products(const uint32* a, const uint32* b, float* d, int element) {
    const int lane = threadIdx.x;
    uint32 x[4], y[2];
    float z[4];
    for (int i = 0; i < 4; ++i) x[i] = a[32 * i + lane];
    for (int i = 0; i < 2; ++i) y[i] = b[32 * i + lane];
    for (int i = 0; i < 4; ++i) z[i] = d[32 * i + lane];
    if (element == 0) multiply_accumulate<float16>(z, x, y);
    if (element == 1) multiply_accumulate<bfloat16>(z, x, y);
    if (element == 2) multiply_accumulate_tf32(z, x, y);
    for (int i = 0; i < 4; ++i) d[32 * i + lane] = z[i];
}

// Two stages: while one is summed, the next is on its way. Rows of 64 floats; the last row is short.
extern "C" __global__ __launch_bounds__(64) void pipeline(const float* x, float* y, int rows, int last) {
    DYNAMIC_SHARED(float, tile);
    const int thread = threadIdx.x;
    auto start = [&](int row) {
        const int columns = row == rows - 1 ? last : 64;
        if (row < rows && thread < 16) {
            const int valid = columns - 4 * thread;
            copy_async<16>(tile + row % 2 * 64 + 4 * thread, valid > 0 ? x + row * 64 + 4 * thread : x,
                           valid >= 4 ? 16 : valid > 0 ? 4 * valid : 0);
        }
        commit_copies();
    };
    start(0);
    float total = 0.0f;
    for (int row = 0; row < rows; ++row) {
        start(row + 1);
        wait_copies<1>();
        __syncthreads();
        total += tile[row % 2 * 64 + 63 - thread];
        __syncthreads();
    }
    y[thread] = total;
}

extern "C" __global__ __launch_bounds__(256) void fill_index(uint8* y, int64 n) {
    const int64 i = static_cast<int64>(blockIdx.x) * 256 + threadIdx.x;
    if (i < n) y[i] = static_cast<uint8>(i % 251);
}

extern "C" __global__ __launch_bounds__(64) void coordinates(int* y) {
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int* row = y + (block * 8 + thread) * 6;
    row[0] = threadIdx.x, row[1] = threadIdx.y, row[2] = threadIdx.z;
    row[3] = blockIdx.x, row[4] = blockIdx.y, row[5] = blockIdx.z;
}
