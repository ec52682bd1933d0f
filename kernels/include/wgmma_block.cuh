// A block of a product on Hopper that stays for many tiles: which ones it takes and in which order, and what its warps
// do with each (wgmma_tile.cuh has what happens within one). Linear and the convolution differ in how a slice is
// loaded and in where C lies, and in nothing else.
//
// What loads is a structure that knows its maps and sizes:
//   Tile tile(work)                           what a thread keeps of a tile, from its first slice on
//   slice(tile, slice, a, b, barrier)         starts the copies of that slice, and goes on to the next
//   prefetch()                                brings its maps near
#pragma once
#include "wgmma_tile.cuh"

// C: `batch` items of m x n, sums over a depth of k, which is cut into parts of `part`.
struct WgmmaProduct {
    int64 m, n, k, batch, part;
    int parts;
    // From an item to the next, and from a row: of y or wide; of the arrays beside C, of the mask and of each part.
    int64 item, stride, logical_item, logical_stride;
    int64 bias_item;  // from the biases of an item to those of the next
    int64 summed;     // the first items, whose columns of A are summed where that is wanted: m sums for each
    int64 elements;   // of a part, without those sums

    // Whether all rows of an item lie at one distance; what else is derived from this has scattered(target, row).
    static constexpr bool IN_ROWS = true;
};

// The order in which tiles are taken: bands of about 2048 rows, and in a band column by column. So the 132 tiles that
// an H100 or H200 has at work at once are together about as high as wide, and what they read stays in the L2 cache
// until all of them have had it.
template <int TILE_ROWS, int TILE_COLUMNS>
struct Order {
    static constexpr uint32 HIGH = 2048 / TILE_ROWS;  // tiles of a band

    uint32 down, across, parts, count;

    __device__ __forceinline__ Order(const WgmmaProduct& product)
        : down((product.m + TILE_ROWS - 1) / TILE_ROWS), across((product.n + TILE_COLUMNS - 1) / TILE_COLUMNS),
          parts(product.parts), count(down * across * parts * product.batch) {}

    // Without its slices.
    __device__ __forceinline__ Work at(uint32 index) const {
        const uint32 tiles = down * across, rest = index / tiles, tile = index % tiles;
        const uint32 band = tile / (HIGH * across), within = tile % (HIGH * across);
        const uint32 high = min(HIGH, down - band * HIGH);
        return {static_cast<int>((band * HIGH + within % high) * TILE_ROWS),
                static_cast<int>(within / high * TILE_COLUMNS),
                static_cast<int>(rest % parts),
                static_cast<int>(rest / parts),
                0,
                0};
    }
};

// Slices by which the second consumer begins later than the first. They keep that distance, so that each stores its
// results while the other one has products for the tensor cores: of what a stage holds, that of the slices between them
// is not given back, so the distance leaves half of a ring of 4 for the loads.
constexpr int LEAD = 2;

// What all warps of a block share.
template <typename Type, typename Multiply, typename Product>
struct Task {
    typedef typename Multiply::Shape Shape;

    const Product& product;
    const Epilogue<Type>& epilogue;
    const Order<Shape::TALL, Shape::WIDE> order;
    Pipeline<Shape>& pipeline;
    unsigned char* const tiles;
    float* const column_sums;  // null: not wanted
    const bool boxes;          // whether the copy engine stores C

    __device__ __forceinline__ bool in_parts() const { return product.parts > 1; }
    // Elements of a part of the results, its sums of columns included.
    __device__ __forceinline__ int64 of_part() const {
        return product.elements + (column_sums != nullptr ? product.summed * product.m : 0);
    }
    __device__ __forceinline__ int64 stride() const { return in_parts() ? product.logical_stride : product.stride; }
    // Whether rows of C, and of the arrays beside it, are accessed 16 bytes at a time.
    __device__ __forceinline__ bool vectors() const {
        return epilogue.vectors(product.n, stride()) &&
               (in_parts() ? of_part() : product.item) % Epilogue<Type>::V == 0;
    }
    // What of C begins at this row and column.
    __device__ __forceinline__ auto target(const Work& work, int row, int column) const {
        const int line = Product::IN_ROWS ? row : 0;
        const int64 logical = work.item * product.logical_item + line * product.logical_stride + column;
        const int64 place =
            in_parts() ? work.part * of_part() + logical : work.item * product.item + line * product.stride + column;
        const Target to{static_cast<int>(product.m) - row,
                        static_cast<int>(product.n) - column,
                        work.item * product.bias_item + column,
                        place,
                        stride(),
                        logical,
                        product.logical_stride};
        if constexpr (Product::IN_ROWS)
            return to;
        else
            return product.scattered(to, row);
    }

    __device__ __forceinline__ Work work(uint32 index) const {
        constexpr int DEPTH = Multiply::DEPTH;
        Work work = order.at(index);
        const int64 begin = work.part * product.part;
        work.first = static_cast<int>(begin / DEPTH);
        work.slices = max(static_cast<int>((smaller(product.part, product.k - begin) + DEPTH - 1) / DEPTH), 1);
        return work;
    }
};

// A warp calls, of which one thread loads. What the results of a tile will be combined with is brought near by all,
// while its last slices, which have been started by then, are multiplied.
template <typename Type, typename Multiply, typename Product, typename Loads>
__device__ __forceinline__ void load_tiles(const Task<Type, Multiply, Product>& task, const Loads& loads) {
    typedef typename Multiply::Shape Shape;
    const Epilogue<Type>& epilogue = task.epilogue;
    const bool beside =
        Product::IN_ROWS && (epilogue.kept != nullptr || epilogue.residual != nullptr || epilogue.beta != 0.0f);
    Place<Shape> at;
#pragma unroll 1
    for (uint32 index = blockIdx.x; index < task.order.count; index += gridDim.x) {
        const Work work = task.work(index);
        if (threadIdx.x % WARP == 0) {
            typename Loads::Tile tile = loads.tile(work);
            load_slices(task.pipeline, task.tiles, at, work,
                        [&](int slice, unsigned char* tile_a, unsigned char* tile_b, Barrier& barrier) {
                            loads.slice(tile, work.first + slice, tile_a, tile_b, barrier);
                        });
        }
        if (!beside) continue;
        __syncwarp();
        const Target to = task.target(work, work.row, work.column);
        const int rows = min(Shape::TALL, to.rows), columns = min(Shape::WIDE, to.columns);
        if (epilogue.kept != nullptr) prefetch_rows(epilogue.kept + to.logical, to.logical_stride, rows, columns);
        if (epilogue.residual != nullptr)
            prefetch_rows(epilogue.residual + to.logical, to.logical_stride, rows, columns);
        if (epilogue.beta != 0.0f && epilogue.wide != nullptr)
            prefetch_rows(epilogue.wide + to.place, to.stride, rows, columns);
        if (epilogue.beta != 0.0f && epilogue.y != nullptr)
            prefetch_rows(epilogue.y + to.place, to.stride, rows, columns);
    }
}

// C where it is of floats, else null.
template <typename Type>
__device__ __forceinline__ float* floats_of(const Epilogue<Type>& epilogue) {
    if constexpr (!is_16_bit<Type>::value)
        if (epilogue.y != nullptr) return epilogue.y;
    return epilogue.wide;
}

// Calls store(d, target, work, finish) for the sums of each tile: finish() waits until they are in d.
template <typename Type, typename Multiply, typename Product, typename Store>
__device__ __forceinline__ void multiply_tiles(const Task<Type, Multiply, Product>& task, const Store& store) {
    typedef typename Multiply::Shape Shape;
    const int consumer = threadIdx.x / WARPGROUP - 1;
    Multiply multiply{Ring<Shape>(task.pipeline, task.tiles, consumer)};
#pragma unroll 1
    for (uint32 index = blockIdx.x; index < task.order.count; index += gridDim.x) {
        Accumulators<Shape> d;
        const Work work = multiply.ring.work();
        if (consumer > 0 && index == blockIdx.x)
            barrier_wait(task.pipeline.full[min(min(LEAD, Shape::RING - 1), work.slices - 1)], 0);
        multiply.start(work.slices, d);
        const int row = work.row + Shape::row(consumer) + threadIdx.x % WARPGROUP / WARP * LINES;
        store(d, task.target(work, row, work.column + Shape::column(consumer)), work, [&] { multiply.finish(d); });
    }
}

// The two warpgroups that multiply call. Each way of storing has a loop over tiles of its own, so that none needs
// registers for another one.
template <typename Type, typename Multiply, typename Product>
__device__ __forceinline__ void multiply_and_store(const Task<Type, Multiply, Product>& task, const TensorMap& c,
                                                   unsigned char* staging) {
    typedef Accumulators<typename Multiply::Shape> Sums;
    const Epilogue<Type>& epilogue = task.epilogue;
    float* const floats = reinterpret_cast<float*>(staging);
    if constexpr (Product::IN_ROWS && is_16_bit<Type>::value) {
        if (task.boxes) {
            int turn = 0;
            multiply_tiles(task, [&](const Sums& d, const Target& target, const Work& work, const auto& finish) {
                const int x = static_cast<int>(task.product.n) - target.columns;
                const int y = static_cast<int>(task.product.m) - target.rows;
                store_boxes(d, epilogue, target, c, x, y, work.item, staging, turn, finish);
            });
            if (threadIdx.x % WARP == 0) wait_stores_read<0>();
            return;
        }
    }
    const bool vectors = task.vectors();
    if constexpr (Product::IN_ROWS) {
        if (vectors && floats_of(epilogue) != nullptr && epilogue.bias == nullptr && epilogue.kept == nullptr &&
            epilogue.residual == nullptr && epilogue.before == nullptr && epilogue.control == nullptr &&
            epilogue.activation == IDENTITY) {
            const FloatsAlone alone{floats_of(epilogue), epilogue.alpha, epilogue.beta};
            multiply_tiles(task, [&](const Sums& d, const Target& target, const Work&, const auto& finish) {
                store_rows<4>(d, alone, target, floats, finish);
            });
            return;
        }
    }
    if (vectors)
        multiply_tiles(task, [&](const Sums& d, const auto& target, const Work&, const auto& finish) {
            store_rows<Epilogue<Type>::V>(d, epilogue, target, floats, finish);
        });
    else
        multiply_tiles(task, [&](const Sums& d, const auto& target, const Work&, const auto& finish) {
            store_rows<1>(d, epilogue, target, floats, finish);
        });
}

// The sums of A's columns, which the blocks of the first column of tiles have in shared memory anyway (A in Major::MN).
// They are added by warps of the loading warpgroup, beside the products: `warp` has panels warp, warp + SUMMERS and so
// on, and each thread two neighbouring columns. 16 rows of a panel are 16 loads and 4 instructions for each, to unpack
// two elements and to add them: 92 with the loop, so about 380 instructions a slice (750 with 256 rows), of which 64
// additions wait for each other. The tensor cores need rows * columns / 32 cycles for the slice, 1024 with the large
// tiles, and that warp's scheduler has little else to do meanwhile.
template <typename Shape>
constexpr int SUMMERS = Shape::TALL >= 2 * SPAN ? 2 : 1;

template <typename Type, typename Multiply, typename Product>
__device__ __forceinline__ void add_columns(const Task<Type, Multiply, Product>& task, int warp) {
    typedef typename Multiply::Shape Shape;
    constexpr int PANELS = Shape::TALL / SPAN / SUMMERS<Shape>;
    const float beta = task.epilogue.beta;
    const int lane = threadIdx.x % WARP;
    Place<Shape> at;
#pragma unroll 1
    for (uint32 index = blockIdx.x; index < task.order.count; index += gridDim.x) {
        barrier_wait(task.pipeline.full[at.stage], at.parity);
        const Work work = task.pipeline.work[at.stage];
        const bool adds = work.column == 0 && work.item < task.product.summed;
        float total[PANELS][2] = {};
#pragma unroll 1
        for (int slice = 0; slice < work.slices; ++slice) {
            barrier_wait(task.pipeline.full[at.stage], at.parity);
            if (adds) {
                const unsigned char* const tile = task.tiles + at.stage * Shape::STAGE_BYTES + warp * PANEL;
                // Of a slice first, so that the error grows with the number of slices.
                float sum[PANELS][2] = {};
#pragma unroll(2 / PANELS)
                for (int group = 0; group < SLICE / 8; ++group)
#pragma unroll
                    for (int k = 0; k < 8; ++k)
#pragma unroll
                        for (int i = 0; i < PANELS; ++i) {
                            // The 128-byte swizzle exchanges chunks of 16 bytes by the row.
                            const uint32 both = *reinterpret_cast<const uint32*>(
                                tile + i * SUMMERS<Shape> * PANEL + group * 1024 + k * 128 + (lane * 4 ^ k * 16));
                            sum[i][0] += to_float(Type{static_cast<uint16>(both & 0xffffu)});
                            sum[i][1] += to_float(Type{static_cast<uint16>(both >> 16)});
                        }
#pragma unroll
                for (int i = 0; i < PANELS; ++i) total[i][0] += sum[i][0], total[i][1] += sum[i][1];
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(task.pipeline.empty[at.stage]);
            at.advance();
        }
        if (!adds) continue;
#pragma unroll
        for (int i = 0; i < PANELS; ++i)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int row = work.row + (warp + i * SUMMERS<Shape>) * SPAN + 2 * lane + e;
                if (row >= task.product.m) continue;
                float* const place =
                    task.column_sums + work.part * task.of_part() + work.item * task.product.m + row;
                *place = beta != 0.0f ? beta * *place + total[i][e] : total[i][e];
            }
    }
}

// All threads of a block call: a warpgroup that loads, and two that multiply. boxes: whether C is y, without beta,
// kept, residual, before and mask, after the identity or relu, of 16 bits, and c a map of it: then the copy engine
// stores it.
// column_sums (null: not wanted): parts have theirs behind their part of C.
template <typename Multiply, typename Type, typename Product, typename Loads>
__device__ __forceinline__ void run_block(const Loads& loads, const TensorMap& c, const Epilogue<Type>& epilogue,
                                          float* column_sums, const Product& product, bool boxes,
                                          Pipeline<typename Multiply::Shape>& pipeline, unsigned char* tiles) {
    typedef typename Multiply::Shape Shape;
    const Task<Type, Multiply, Product> task{product, epilogue, Order<Shape::TALL, Shape::WIDE>(product),
                                 pipeline, tiles,   column_sums,
                                 boxes};
    if (threadIdx.x == 0) {
        pipeline.begin(CONSUMER_WARPS + (column_sums != nullptr ? SUMMERS<Shape> : 0));
        loads.prefetch();
    }
    __syncthreads();
    const int warp = threadIdx.x / WARP;
    if (warp < WARPGROUP / WARP) {
        give_registers_back<LOADER_REGISTERS>();
        if (warp == 0) load_tiles(task, loads);
        if constexpr (Multiply::MAJOR_A == Major::MN)
            if (column_sums != nullptr && warp >= 1 && warp <= SUMMERS<Shape>) add_columns(task, warp - 1);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        unsigned char* const staging = tiles + Shape::RING * Shape::STAGE_BYTES + (warp - WARPGROUP / WARP) * STAGING;
        multiply_and_store(task, c, staging);
    }
}
