// The core of a matrix product on Hopper: one warpgroup loads slices of A and B into a ring of stages in shared memory,
// two others multiply them (TMA, mbarrier, wgmma; sm_90a), and what they find goes through their epilogue into C.
//
// Roles. One thread loads: it waits until a stage is empty, says how many bytes come, and starts the copies; the copy
// engine fills the stage and counts the bytes. The consumers wait until a stage is full, start the products of all four
// steps of the slice, and only then wait for those of the slice before, whose stage they give back: so the tensor cores
// always have the next slice in hand. The two consumers never wait for each other, but they share the stages, so that
// one leads by STAGES slices at most. The second begins two slices late (LEAD, wgmma_block.cuh), and the first keeps
// that lead: while it stores its part of a tile the other one multiplies those slices, and then the other way round.
//
// What that hides is, of the 128 x 256 tile, 1024 cycles for each consumer. To store its part takes each of its warps,
// by the machine code (nothing is measured): 690 instructions as boxes, 970 with relu; 2300 with a bias and a residual,
// 3800 with a bias, `before` and gelu, 2600 as floats with beta. A scheduler has one warp of each consumer, and issues
// one instruction a cycle. Memory is waited for at most once, since what a step needs is on its way during the one
// before, or during the last products.
//
// A slice is 128 bytes of the depth: 64 elements of 16 bits, 32 floats. Its tile of A (B likewise) is made of panels of
// 64 rows (columns): 8192 bytes in either major order (wgmma.cuh), so the two orders differ in how a panel is loaded
// and in the step of a descriptor, and in nothing else. Floats are multiplied as tf32, and lie with the depth along
// their rows (Major::K), since wgmma reads no other order of them.
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
constexpr int SLICE = 64;                                     // of the depth, with elements of 16 bits
constexpr int SPAN = 64;                                      // rows or columns of a panel
constexpr uint32 SLICE_BYTES = 128;                           // of the depth: what the swizzle of a panel works on
constexpr uint32 PANEL = SLICE_BYTES * SPAN;                  // bytes of it
constexpr int LINES = 16;                                     // rows of a warp in 64 rows of C
constexpr uint32 STAGING = LINES * SPAN * sizeof(float);      // bytes that a warp has for its results

// Of the 504 registers that three threads have at the start, a multiple of 8 each: loading needs few.
constexpr int LOADER_REGISTERS = 56, CONSUMER_REGISTERS = 224;

// Elements of the depth in a slice.
template <typename Type>
constexpr int SLICE_OF = SLICE_BYTES / sizeof(Type);

// As what wgmma multiplies elements.
template <typename Type>
struct Multiplied {
    typedef Type As;
};
template <>
struct Multiplied<float> {
    typedef tf32 As;
};

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

// A tile of one part of one item, and its slices of the depth: one at least, of zeros where the depth has ended before.
struct Work {
    int row, column;  // the first of the tile
    int part, item;
    int first, slices;
};

// In shared memory. A stage is full when its bytes have landed, and empty when all who read it have said so.
template <typename Shape>
struct Pipeline {
    Barrier full[Shape::RING], empty[Shape::RING];
    Work work[Shape::RING];  // of a tile whose first slice is in that stage

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

// Loads the slices of a tile; one thread calls. load(slice, a, b, barrier): starts the copies of one, STAGE_BYTES
// together.
template <typename Shape, typename Load>
__device__ __forceinline__ void load_slices(Pipeline<Shape>& pipeline, unsigned char* tiles, Place<Shape>& at,
                                            const Work& work, Load load) {
#pragma unroll 1
    for (int slice = 0; slice < work.slices; ++slice) {
        barrier_wait(pipeline.empty[at.stage], at.parity ^ 1);
        if (slice == 0) pipeline.work[at.stage] = work;
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

// The ring as one consumer sees it.
template <typename Shape>
struct Ring {
    Pipeline<Shape>& pipeline;
    unsigned char* const tiles;
    const int consumer;
    Place<Shape> at;
    int before = 0;  // the stage that it has not given back

    __device__ __forceinline__ Ring(Pipeline<Shape>& pipeline, unsigned char* tiles, int consumer)
        : pipeline(pipeline), tiles(tiles), consumer(consumer) {}

    // Its part of the factors in the first stage, and bytes from there to the stage that comes next.
    __device__ __forceinline__ const unsigned char* a() const { return tiles + Shape::row(consumer) / SPAN * PANEL; }
    __device__ __forceinline__ const unsigned char* b() const {
        return tiles + Shape::A_BYTES + Shape::column(consumer) / SPAN * PANEL;
    }
    __device__ __forceinline__ uint32 offset() const { return at.stage * Shape::STAGE_BYTES; }

    // Waits for the stage that comes next; the products of it having been started, advance() takes the one after it.
    __device__ __forceinline__ void wait() const { barrier_wait(pipeline.full[at.stage], at.parity); }
    __device__ __forceinline__ void advance() {
        before = at.stage;
        at.advance();
    }
    // Each warp says for itself that it is done.
    __device__ __forceinline__ void give_back() const {
        if (threadIdx.x % WARP == 0) barrier_arrive(pipeline.empty[before]);
    }
    // The tile whose first slice comes next.
    __device__ __forceinline__ Work work() const {
        wait();
        const Work work = pipeline.work[at.stage];
        __syncwarp();  // all have read it before one of them gives the stage back
        return work;
    }
};

// How a consumer multiplies slices; its 128 threads call. Sums begin with `start`, which returns while the last
// products are on their way: what is done between it and `finish` costs the tensor cores no time.
template <typename Type, Major A, Major B, typename TileShape>
struct Multiply {
    typedef TileShape Shape;
    static constexpr Major MAJOR_A = A, MAJOR_B = B;
    static constexpr int DEPTH = SLICE_OF<Type>;  // of a slice

    Ring<Shape> ring;

    // d = the sum over `slices` slices, one at least.
    __device__ __forceinline__ void start(int slices, Accumulators<Shape>& d) {
        typedef typename Multiplied<Type>::As Factor;
        // Bytes from what one instruction has of the depth, 32 bytes, to the next.
        constexpr uint32 STEP_A = MAJOR_A == Major::K ? 32 : 2048, STEP_B = MAJOR_B == Major::K ? 32 : 2048;
        const uint64 first_a = MAJOR_A == Major::K ? descriptor_k(ring.a()) : descriptor_mn(ring.a(), PANEL);
        const uint64 first_b = MAJOR_B == Major::K ? descriptor_k(ring.b()) : descriptor_mn(ring.b(), PANEL);
#pragma unroll 1
        for (int slice = 0; slice < slices; ++slice) {
            ring.wait();
            const uint64 a = advanced(first_a, ring.offset()), b = advanced(first_b, ring.offset());
            warpgroup_fence();
#pragma unroll
            for (int step = 0; step < static_cast<int>(SLICE_BYTES / 32); ++step)
#pragma unroll
                for (int band = 0; band < Shape::BANDS; ++band)
                    warpgroup_multiply<Factor, Factor, MAJOR_A, MAJOR_B>(
                        d.band[band], advanced(a, step * STEP_A + band * PANEL), advanced(b, step * STEP_B),
                        slice + step > 0);
            warpgroup_commit();
            warpgroup_wait<1>();
            if (slice > 0) ring.give_back();
            ring.advance();
        }
    }

    __device__ __forceinline__ void finish(Accumulators<Shape>& d) const {
        warpgroup_wait<0>();
#pragma unroll
        for (int band = 0; band < Shape::BANDS; ++band) pin(d.band[band]);
        ring.give_back();
    }
};

// Brings rows of elements into the L2 cache; a warp calls, and each lane has a row. A prefetch of the copy engine would
// take a whole row at once, but one lane after the other: its address stands in a register that all lanes share.
template <typename Type>
__device__ __forceinline__ void prefetch_rows(const Type* first, int64 stride, int rows, int columns) {
#ifndef BP_EMULATOR
    constexpr uint64 LINE = 128;
#pragma unroll 1
    for (int row = threadIdx.x % WARP; row < rows; row += WARP) {
        const uint64 begin = __cvta_generic_to_global(first + row * stride), end = begin + columns * sizeof(Type);
#pragma unroll 1
        for (uint64 line = begin & ~(LINE - 1); line < end; line += LINE)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
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

    // How many strides a row, and `more` rows, lie from the first. Without a sign, and the sum in 64 bits, the compiler
    // multiplies once for all rows of a thread.
    __device__ __forceinline__ int64 row_of(int row, int more) const { return int64(static_cast<uint32>(row)) + more; }
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
    // staged(line + 8 half, 8 j + pair), in few instructions: what j adds is exchanged in bits of its own.
    const int first = staged(lane / 4, lane % 4 * 2);
#pragma unroll
    for (int j = 0; j < SPAN / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *reinterpret_cast<float2*>(staging + (first ^ staged(0, 8 * j)) + 8 * half * SPAN) =
                make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
}

// Stores WIDTH (1, or 16 bytes of them) elements of a row for each thread; whole warps call. What a thread combines
// AT_ONCE vectors with is on its way while it stores those before, and of the first ones while finish() waits for the
// sums: so a tile waits for memory at most once.
// Ending: Epilogue or FloatsAlone. Where: Target, or what is derived from it and says where else rows lie.
template <int WIDTH, typename Shape, typename Ending, typename Where, typename Finish>
__device__ __forceinline__ void store_rows(const Accumulators<Shape>& d, const Ending& ending, const Where& target,
                                           float* staging, const Finish& finish) {
    typedef Packed<typename Ending::Element, WIDTH> Loaded;
    constexpr int AT_ONCE = Ending::AT_ONCE;                             // vectors of a thread in a step
    constexpr int LANES = WIDTH == 1 ? WARP : SPAN / WIDTH;              // beside each other in a row
    constexpr int HIGH = WARP / LANES, ACROSS = SPAN / (LANES * WIDTH);  // rows at a time; times for a row
    constexpr int ROUNDS = LINES / (HIGH * AT_ONCE);                     // steps from the top of a panel to its end
    constexpr int STEPS = ROUNDS * ACROSS, ALL = Shape::BANDS * Shape::PANELS * STEPS;

    // A thread's first vector of a step; each other one is HIGH rows further down.
    struct Step {
        int line, within, row, column;  // in the panel; from the target's first

        __device__ __forceinline__ Step(int step, int lane)
            : line(step % ROUNDS * (HIGH * AT_ONCE) + lane / LANES),
              within((step / ROUNDS % ACROSS * LANES + lane % LANES) * WIDTH),
              row(step / STEPS / Shape::PANELS * SPAN + line), column(step / STEPS % Shape::PANELS * SPAN + within) {}
    };
    const auto load_beside = [&](const Step& at, Loaded(&beside)[AT_ONCE]) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int row = at.row + i * HIGH;
            if (row >= target.rows || at.column >= target.columns) continue;
            const int64 strides = target.row_of(at.row, i * HIGH);
            ending.load_beside(target.place + strides * target.stride + at.column,
                               target.logical + strides * target.logical_stride + at.column, beside[i]);
        }
    };
    Loaded biases, beside[AT_ONCE];
    const auto load_biases = [&](const Step& at) {
        if (at.column < target.columns) ending.load_biases(target.column + at.column, biases);
    };

    const Step first(0, forgotten(threadIdx.x % WARP));
    load_biases(first);
    load_beside(first, beside);
    finish();
#pragma unroll 1
    for (int step = 0; step < ALL; ++step) {
        const int lane = forgotten(threadIdx.x % WARP);
        const Step at(step, lane);
        Loaded next_beside[AT_ONCE];
        if (step + 1 < ALL) load_beside(Step(step + 1, lane), next_beside);
        if (step % STEPS == 0) {
            __syncwarp();
            with_panel(d, step / STEPS, [&](const float* sums) { stage_floats(staging, lane, sums); });
            __syncwarp();
        }
        const int own = staged(at.line, at.within);  // as in stage_floats, exchanged with what i and part add
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int row = at.row + i * HIGH;
            if (row >= target.rows || at.column >= target.columns) continue;
            float sums[WIDTH];
#pragma unroll
            for (int part = 0; part < WIDTH; part += 4) {
                const float* const of = staging + (own ^ staged(i * HIGH, part));
                if constexpr (WIDTH == 1) {
                    sums[0] = *of;
                } else {
                    const Vector<float> four = load16(of);
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[part + e] = four.at[e];
                }
            }
            const int64 strides = target.row_of(at.row, i * HIGH);
            ending.store(target.place + strides * target.stride + at.column,
                         target.logical + strides * target.logical_stride + at.column, target.column + at.column, sums,
                         &biases, &beside[i]);
        }
        if ((step + 1) % ROUNDS == 0 && step + 1 < ALL) load_biases(Step(step + 1, lane));
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) beside[i] = next_beside[i];
    }
}

// c = alpha sum + beta c: weight gradients, the parts of a cut depth, and products of floats.
struct FloatsAlone {
    typedef float Element;
    static constexpr int AT_ONCE = 4;

    float* c;
    float alpha, beta;

    template <int WIDTH>
    __device__ __forceinline__ void load_biases(int64, Packed<float, WIDTH>&) const {}
    template <int WIDTH>
    __device__ __forceinline__ void load_beside(int64 place, int64, Packed<float, WIDTH>& beside) const {
        if (beta != 0.0f) beside = Packed<float, WIDTH>(load_elements<WIDTH>(c + place));
    }
    template <int WIDTH>
    __device__ __forceinline__ void store(int64 place, int64, int64, const float (&sums)[WIDTH],
                                          const Packed<float, WIDTH>*, const Packed<float, WIDTH>* beside) const {
        Floats<WIDTH> v;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) v.at[k] = alpha * sums[k];
        if (beta != 0.0f) {
            const Floats<WIDTH> there = beside->floats();
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) v.at[k] += beta * there.at[k];
        }
        store_elements(c + place, v);
    }
};

// y = f(alpha sum + bias), f the identity or relu, as boxes of 16 rows x 64 columns by the copy engine. Each warp has
// room for two, and fills one while the other is on its way. x, y, item: the target's first element in the map.
// turn: which of the two is next; it goes on through all the tiles of a block. finish: as of store_rows.
template <typename Type, typename Shape, typename Finish>
__device__ __forceinline__ void store_boxes(const Accumulators<Shape>& d, const Epilogue<Type>& epilogue,
                                            const Target& target, const TensorMap& map, int x, int y, int item,
                                            unsigned char* staging, int& turn, const Finish& finish) {
    // The biases of two neighbouring columns of each panel; a shuffle brings them to the threads that have the columns.
    uint32 biases[Shape::PANELS] = {};
    const int mine = 2 * forgotten(threadIdx.x % WARP);
#pragma unroll
    for (int p = 0; p < Shape::PANELS; ++p) {
        const int column = p * SPAN + mine;
        const Type* const at = epilogue.bias + target.column + column;
        if (epilogue.bias != nullptr && column < target.columns) biases[p] = at[0].bits;
        if (epilogue.bias != nullptr && column + 1 < target.columns)
            biases[p] |= static_cast<uint32>(at[1].bits) << 16;
    }
    finish();
#pragma unroll 1
    for (int panel = 0; panel < Shape::BANDS * Shape::PANELS; ++panel) {
        const PanelPlace<Shape> first(panel, target);
        if (!first.exists) continue;
        const int lane = forgotten(threadIdx.x % WARP), line = lane / 4, pair = lane % 4;
        uint32 of_panel = biases[0];
#pragma unroll
        for (int p = 1; p < Shape::PANELS; ++p)
            if (panel % Shape::PANELS == p) of_panel = biases[p];
        float bias[SPAN / 8][2];
#pragma unroll
        for (int j = 0; j < SPAN / 8; ++j) {
            const uint32 both = __shfl_sync(ALL_LANES, of_panel, 4 * j + pair);
            bias[j][0] = to_float(Type{static_cast<uint16>(both & 0xffffu)});
            bias[j][1] = to_float(Type{static_cast<uint16>(both >> 16)});
        }
        // The 128-byte swizzle: chunk j of row r lies where chunk j ^ r % 8 would.
        unsigned char* const box = staging + turn * (STAGING / 2);
        const int first_chunk = line * 128 + line * 16 + pair * 4;
        turn ^= 1;
        if (lane == 0) wait_stores_read<1>();
        __syncwarp();
        const float alpha = __int_as_float(forgotten(__float_as_int(epilogue.alpha)));
        const auto fill = [&](const auto& f) {
            with_panel(d, panel, [&](const float* sums) {
#pragma unroll
                for (int j = 0; j < SPAN / 8; ++j)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float* const pair_of = sums + 4 * j + 2 * half;
                        const uint32 low = convert<Type>(f(alpha * pair_of[0] + bias[j][0])).bits;
                        const uint32 high = convert<Type>(f(alpha * pair_of[1] + bias[j][1])).bits;
                        *reinterpret_cast<uint32*>(box + (first_chunk ^ j * 16) + half * 1024) = low | high << 16;
                    }
            });
        };
        if (epilogue.activation == RELU)
            fill([](float z) { return relu(z); });
        else
            fill([](float z) { return z; });
        fence_async_proxy();
        __syncwarp();
        if (lane == 0) {
            store_box(map, box, {x + first.column, y + first.row, item});
            commit_stores();
        }
    }
}
