// The core of a matrix product on Hopper: one warpgroup loads slices of A and B into a ring of stages in shared memory,
// two others multiply them (TMA, mbarrier, wgmma; sm_90a), and what they find goes through their epilogue into C.
//
// Roles. One thread loads: it waits until a stage is empty, says how many bytes come, and starts the copies; the copy
// engine fills the stage and counts the bytes. The consumers wait until a stage is full, start the products of all four
// steps of the slice, and only then wait for those of the slice before, whose stage they give back: so the tensor cores
// always have the next slice in hand. The two consumers never wait for each other. One that is done with its part of a
// tile stores it while the other one still multiplies, and begins the next tile, whose slices have been loaded
// meanwhile: a lead of up to STAGES slices, which is what hides the epilogue.
//
// A slice is 64 of the depth, 128 bytes of 16-bit elements. Its tile of A (B likewise) is made of panels of 64 rows
// (columns): 8192 bytes in either major order (wgmma.cuh), so the two orders differ in how a panel is loaded and in the
// step of a descriptor, and in nothing else.
//
// Results leave through 4 KB of shared memory that each warp has for itself, for 16 rows x 64 columns of C at a time:
// no barrier but that of a warp is needed.
#pragma once
#include "epilogue.cuh"
#include "indexing.cuh"
#include "reduce.cuh"
#include "registers.cuh"
#include "shared.cuh"
#include "tensor_map.cuh"
#include "wgmma.cuh"

constexpr int WARPGROUP = 128;
constexpr int CONSUMERS = 2;                                  // warpgroups that multiply
constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP;
constexpr int SLICE = 64;                                     // of the depth
constexpr int SPAN = 64;                                      // rows or columns of a panel
constexpr uint32 PANEL = SLICE * SPAN * 2;                    // bytes of it
constexpr int LINES = 16;                                     // rows of a warp in 64 rows of C
constexpr uint32 STAGING = LINES * SPAN * sizeof(float);      // bytes that a warp has for its results

// Of the 504 registers that three threads have at the start, a multiple of 8 each: loading needs few.
constexpr int LOADER_REGISTERS = 56, CONSUMER_REGISTERS = 224;

// A tile of C and how it is split between the consumers: by rows where each gets at least 64, else by columns.
template <int TILE_ROWS, int TILE_COLUMNS, int TILE_STAGES>
struct WgmmaShape {
    static constexpr int TALL = TILE_ROWS, WIDE = TILE_COLUMNS, RING = TILE_STAGES;
    static constexpr bool BY_ROWS = TILE_ROWS >= CONSUMERS * SPAN;
    static constexpr int HEIGHT = BY_ROWS ? TILE_ROWS / CONSUMERS : TILE_ROWS;  // of a consumer's part
    static constexpr int WIDTH = BY_ROWS ? TILE_COLUMNS : TILE_COLUMNS / CONSUMERS;
    static constexpr int BANDS = HEIGHT / SPAN;  // of 64 rows: one instruction has one
    static constexpr int PANELS = WIDTH / SPAN;  // of results in a band
    static constexpr uint32 A_BYTES = TILE_ROWS / SPAN * PANEL, B_BYTES = TILE_COLUMNS / SPAN * PANEL;
    static constexpr uint32 STAGE_BYTES = A_BYTES + B_BYTES;

    // Of the part of a consumer within the tile.
    static __device__ __forceinline__ int row(int consumer) { return BY_ROWS ? consumer * HEIGHT : 0; }
    static __device__ __forceinline__ int column(int consumer) { return BY_ROWS ? 0 : consumer * WIDTH; }
};

// The sums of a consumer, spread over its threads as wgmma.cuh says.
template <typename Shape>
struct Accumulators {
    float band[Shape::BANDS][Shape::WIDTH / 2];
};

// The ring -----------------------------------------------------------------------------------------------------------

// In shared memory. A stage is full when its bytes have landed, and empty when all who read it have said so.
template <typename Shape>
struct Pipeline {
    Barrier full[Shape::RING], empty[Shape::RING];

    // readers: arrivals that empty a stage. One thread, before a __syncthreads().
    __device__ __forceinline__ void begin(uint32 readers) {
        for (int stage = 0; stage < Shape::RING; ++stage) {
            barrier_init(full[stage], 1);
            barrier_init(empty[stage], readers);
        }
        barrier_init_fence();
    }
};

// Where a thread is in the ring. It goes on through all the tiles of a block.
template <typename Shape>
struct Place {
    int stage = 0;
    uint32 parity = 0;  // of the rounds that are over

    __device__ __forceinline__ void advance() {
        if (++stage < Shape::RING) return;
        stage = 0;
        parity ^= 1;
    }
};

// Loads `slices` slices; one thread calls. load(slice, a, b, barrier): starts the copies of one, STAGE_BYTES together.
template <typename Shape, typename Load>
__device__ __forceinline__ void load_slices(Pipeline<Shape>& pipeline, unsigned char* tiles, Place<Shape>& at,
                                            int slices, Load load) {
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        barrier_wait(pipeline.empty[at.stage], at.parity ^ 1);
        barrier_arrive_expect(pipeline.full[at.stage], Shape::STAGE_BYTES);
        unsigned char* const tile = tiles + at.stage * Shape::STAGE_BYTES;
        load(slice, tile, tile + Shape::A_BYTES, pipeline.full[at.stage]);
        at.advance();
    }
}

// Starts to load the panels of one operand, of matrix `item`, from these steps of the depth and this line (row of A,
// column of B) on. The map has boxes of {64, LINES_OF_TILE, 1} where its rows run along the depth (Major::K), else of
// {64, 64, 1}.
template <Major MAJOR, int LINES_OF_TILE>
__device__ __forceinline__ void load_panels(unsigned char* tile, const TensorMap& map, Barrier& barrier, int depth,
                                            int line, int item) {
    if constexpr (MAJOR == Major::K) {
        load_box(tile, map, barrier, {depth, line, item});
    } else {
#pragma unroll
        for (int panel = 0; panel < LINES_OF_TILE / SPAN; ++panel)
            load_box(tile + panel * PANEL, map, barrier, {line + panel * SPAN, depth, item});
    }
}

// d = the sum over `slices` slices; the 128 threads of a consumer call.
template <typename Type, Major MAJOR_A, Major MAJOR_B, typename Shape>
__device__ __forceinline__ void multiply_slices(Pipeline<Shape>& pipeline, unsigned char* tiles, Place<Shape>& at,
                                                int slices, int consumer, Accumulators<Shape>& d) {
    // Bytes from one step of 16 of the depth to the next.
    constexpr uint32 STEP_A = MAJOR_A == Major::K ? 32 : 2048, STEP_B = MAJOR_B == Major::K ? 32 : 2048;
    const unsigned char* const tile_a = tiles + Shape::row(consumer) / SPAN * PANEL;
    const unsigned char* const tile_b = tiles + Shape::A_BYTES + Shape::column(consumer) / SPAN * PANEL;
    const uint64 first_a = MAJOR_A == Major::K ? descriptor_k(tile_a) : descriptor_mn(tile_a, PANEL);
    const uint64 first_b = MAJOR_B == Major::K ? descriptor_k(tile_b) : descriptor_mn(tile_b, PANEL);
    const bool speaks = threadIdx.x % WARP == 0;  // each warp says for itself that it is done
    int before = 0;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        barrier_wait(pipeline.full[at.stage], at.parity);
        const uint64 a = advanced(first_a, at.stage * Shape::STAGE_BYTES);
        const uint64 b = advanced(first_b, at.stage * Shape::STAGE_BYTES);
        warpgroup_fence();
#pragma unroll
        for (int step = 0; step < SLICE / 16; ++step)
#pragma unroll
            for (int band = 0; band < Shape::BANDS; ++band)
                warpgroup_multiply<Type, Type, MAJOR_A, MAJOR_B>(
                    d.band[band], advanced(a, step * STEP_A + band * PANEL), advanced(b, step * STEP_B),
                    slice + step > 0);
        warpgroup_commit();
        warpgroup_wait<1>();
        if (speaks && slice > 0) barrier_arrive(pipeline.empty[before]);
        before = at.stage;
        at.advance();
    }
    warpgroup_wait<0>();
#pragma unroll
    for (int band = 0; band < Shape::BANDS; ++band) pin(d.band[band]);
    if (speaks) barrier_arrive(pipeline.empty[before]);
}

// Brings rows of elements, whose addresses and sizes are multiples of 16 bytes, into the L2 cache.
template <typename Type>
__device__ __forceinline__ void prefetch_rows(const Type* first, int64 stride, int rows, int columns) {
#ifndef BP_EMULATOR
#pragma unroll 1
    for (int row = 0; row < rows; ++row)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(first + row * stride)),
                     "r"(static_cast<uint32>(columns * sizeof(Type))));
#endif
}

// The results --------------------------------------------------------------------------------------------------------

// Where the part of C goes that begins with the first row of a warp: element (r, c) of it exists where r < rows and
// c < columns, and lies at place + r * stride + c of y or wide.
struct Target {
    int rows, columns;
    int64 column;                   // of the first element, in the whole of C
    int64 place, stride;
    int64 logical, logical_stride;  // the same for the arrays beside C, and for the mask

    // How many strides a row lies from the first.
    __device__ __forceinline__ int row_of(int row) const { return row; }
};

// Calls body(sums) with the 32 sums that a thread has of a panel's 16 rows x 64 columns: element 4 j + 2 h + e is row
// lane / 4 + 8 h, column 8 j + lane % 4 * 2 + e. In each copy of `body` the compiler knows which sums they are, so that
// they stay in registers.
template <typename Shape, typename Body>
__device__ __forceinline__ void with_panel(const Accumulators<Shape>& d, int panel, Body body) {
#pragma unroll
    for (int p = 0; p < Shape::BANDS * Shape::PANELS; ++p)
        if (p == panel) body(d.band[p / Shape::PANELS] + p % Shape::PANELS * (SPAN / 2));
}

// Rows and columns of C from the target's first to the first of a panel.
template <typename Shape>
struct PanelPlace {
    int row, column;
    bool exists;

    __device__ __forceinline__ PanelPlace(int panel, const Target& target)
        : row(panel / Shape::PANELS * SPAN), column(panel % Shape::PANELS * SPAN),
          exists(row < target.rows && column < target.columns) {}
};

// The order in which a warp keeps 16 rows of 64 floats: chunks of 4 are exchanged so that neither the threads that
// store two neighbouring floats each, in 8 rows, nor those that read 4 or 8 of one row, meet in a bank.
__device__ __forceinline__ int staged(int row, int column) {
    const int chunk = column / 4;
    return row * SPAN + (chunk ^ (chunk >> 3) ^ ((row & 3) << 1)) * 4 + column % 4;
}

__device__ __forceinline__ void stage_floats(float* staging, int lane, const float* sums) {
    const int line = lane / 4, pair = lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < SPAN / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *reinterpret_cast<float2*>(staging + staged(line + 8 * half, 8 * j + pair)) =
                make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
}

// Stores through Epilogue::store, WIDTH (1 or 8) elements of a row for each thread; whole warps call. Where: Target, or
// what is derived from it and says where else rows lie.
template <int WIDTH, typename Type, typename Shape, typename Where>
__device__ __forceinline__ void store_rows(const Accumulators<Shape>& d, const Epilogue<Type>& epilogue,
                                           const Where& target, float* staging) {
    constexpr int GROUPS = SPAN / WIDTH;
#pragma unroll 1
    for (int panel = 0; panel < Shape::BANDS * Shape::PANELS; ++panel) {
        const PanelPlace<Shape> first(panel, target);
        if (!first.exists) continue;
        const int lane = forgotten(threadIdx.x % WARP);
        with_panel(d, panel, [&](const float* sums) { stage_floats(staging, lane, sums); });
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < LINES * GROUPS; i += WARP) {
            const int line = i / GROUPS, within = i % GROUPS * WIDTH;
            const int row = first.row + line, column = first.column + within;
            if (row >= target.rows || column >= target.columns) continue;
            float sums[WIDTH];
#pragma unroll
            for (int part = 0; part < WIDTH; part += 4) {
                if constexpr (WIDTH == 1) {
                    sums[0] = staging[staged(line, within)];
                } else {
                    const Vector<float> four = load16(staging + staged(line, within + part));
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[part + e] = four.at[e];
                }
            }
            const auto strides = target.row_of(row);
            epilogue.store(target.place + strides * target.stride + column,
                           target.logical + strides * target.logical_stride + column, target.column + column, sums);
        }
        __syncwarp();
    }
}

// wide = alpha sum + beta wide, 4 floats for each thread: weight gradients, and the parts of a cut depth.
template <typename Type, typename Shape>
__device__ __forceinline__ void store_floats_alone(const Accumulators<Shape>& d, const Epilogue<Type>& epilogue,
                                                   const Target& target, float* staging) {
    constexpr int GROUPS = SPAN / 4, HIGH = WARP / GROUPS;  // a warp has HIGH rows at a time
    constexpr int AT_ONCE = 4;                              // vectors that a thread has on their way
#pragma unroll 1
    for (int panel = 0; panel < Shape::BANDS * Shape::PANELS; ++panel) {
        const PanelPlace<Shape> first(panel, target);
        if (!first.exists) continue;
        const int lane = forgotten(threadIdx.x % WARP), within = lane % GROUPS * 4;
        with_panel(d, panel, [&](const float* sums) { stage_floats(staging, lane, sums); });
        __syncwarp();
        const int column = first.column + within;
#pragma unroll 1
        for (int line = lane / GROUPS; line < LINES; line += HIGH * AT_ONCE) {
            float* const at = epilogue.wide + target.place + (first.row + line) * target.stride + column;
            Vector<float> there[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i)
                if (epilogue.beta != 0.0f && first.row + line + i * HIGH < target.rows && column < target.columns)
                    there[i] = load16(at + i * HIGH * target.stride);
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                Vector<float> v = load16(staging + staged(line + i * HIGH, within));
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    v.at[e] *= epilogue.alpha;
                    if (epilogue.beta != 0.0f) v.at[e] += epilogue.beta * there[i].at[e];
                }
                if (first.row + line + i * HIGH < target.rows && column < target.columns)
                    store16(at + i * HIGH * target.stride, v);
            }
        }
        __syncwarp();
    }
}

// y = f(alpha sum + bias), f the identity or relu, as boxes of 16 rows x 64 columns by the copy engine. Each warp has
// room for two, and fills one while the other is on its way. x, y, item: the target's first element in the map.
// turn: which of the two is next; it goes on through all the tiles of a block.
template <typename Type, typename Shape>
__device__ __forceinline__ void store_boxes(const Accumulators<Shape>& d, const Epilogue<Type>& epilogue,
                                            const Target& target, const TensorMap& map, int x, int y, int item,
                                            unsigned char* staging, int& turn) {
#pragma unroll 1
    for (int panel = 0; panel < Shape::BANDS * Shape::PANELS; ++panel) {
        const PanelPlace<Shape> first(panel, target);
        if (!first.exists) continue;
        const int lane = forgotten(threadIdx.x % WARP), line = lane / 4, pair = lane % 4;
        // The biases of two neighbouring columns; a shuffle brings each to the threads that have its column.
        uint32 biases = 0;
        if (epilogue.bias != nullptr) {
            const int column = first.column + 2 * lane;
            const Type* const at = epilogue.bias + target.column + column;
            if (column < target.columns) biases = at[0].bits;
            if (column + 1 < target.columns) biases |= static_cast<uint32>(at[1].bits) << 16;
        }
        float bias[SPAN / 8][2];
#pragma unroll
        for (int j = 0; j < SPAN / 8; ++j) {
            const uint32 both = __shfl_sync(ALL_LANES, biases, 4 * j + pair);
            bias[j][0] = to_float(Type{static_cast<uint16>(both & 0xffffu)});
            bias[j][1] = to_float(Type{static_cast<uint16>(both >> 16)});
        }
        unsigned char* const box = staging + turn * (STAGING / 2);
        turn ^= 1;
        if (lane == 0) wait_stores_read<1>();
        __syncwarp();
        const float alpha = __int_as_float(forgotten(__float_as_int(epilogue.alpha)));
        with_panel(d, panel, [&](const float* sums) {
#pragma unroll
            for (int j = 0; j < SPAN / 8; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    uint32 bits[2];
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float z = alpha * sums[4 * j + 2 * half + e] + bias[j][e];
                        bits[e] = convert<Type>(epilogue.activation == RELU ? relu(z) : z).bits;
                    }
                    // The 128-byte swizzle: chunk j of row r lies where chunk j ^ r % 8 would.
                    *reinterpret_cast<uint32*>(box + (line + 8 * half) * 128 + (j ^ line) * 16 + pair * 4) =
                        bits[0] | bits[1] << 16;
                }
        });
        fence_async_proxy();
        __syncwarp();
        if (lane == 0) {
            store_box(map, box, {x + first.column, y + first.row, item});
            commit_stores();
        }
    }
}
