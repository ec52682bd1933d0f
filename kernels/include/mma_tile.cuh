// The core of a matrix product on tensor cores (mma.sync): a block computes a tile of C = A B, its warps parts of it.
//
// float is multiplied as tf32, 16-bit types as they are, and sums are float. A and B pass through shared memory, a
// slice of the depth at a time, in a ring of stages: while one slice is multiplied, the next ones are on their way
// (cp.async; on sm_75, which has none, the next one through registers). A slice holds rows of 16-byte chunks as they
// lie in memory, so neither matrix is ever transposed on its way in: what runs along the depth is taken out by
// ldmatrix, what runs along the lines of the tile by ldmatrix.trans, and floats of the latter kind, which it cannot
// turn, word by word.
//
// Which chunk lies where: chunk c of row r at place c ^ key(r) of its row (Swizzle). Shared memory serves 128 bytes at
// once, as 8 places of 16 bytes; with C chunks a row, a power of two, R = max(1, 8 / C) rows lie in 128 bytes.
//   Copies: 8 lanes write 8 chunks that follow each other, of one row or of R whole rows with one key: 8 places.
//   ldmatrix: 8 lanes read chunk c of rows r .. r + 7, r a multiple of 8. key(r) = (r / R) mod min(C, 8): rows with one
//     key are the R of 128 bytes, in different places by themselves; the others differ in their keys. 8 places.
//   Words: 32 lanes read 8 words (2 chunks, 2p and 2p + 1) of rows r .. r + 3, r a multiple of 4. key(r) = 2 (r / R)
//     mod min(C, 8): whole pairs of chunks are exchanged, and the 4 pairs are in different places by the same argument.
// So no access has a bank conflict.
//
// What a slice of 64 bytes costs a warp of the tile 128 x 128, by the machine code for sm_80: 64 HMMA, 16 LDSM (of
// 16-bit elements), 8 LDGSTS, one barrier, and about 90 instructions for addresses and edges: 180 in all. With 248
// registers two blocks run at once, so a scheduler has two warps. Its tensor core takes 8 cycles for an HMMA, 512 for
// the slice of one warp; the 64 LDSM and the copies of a block take shared memory 256 + 128 cycles, and 16 KB in 512
// cycles are 32 bytes a cycle from L2. So the tensor cores are the limit, then shared memory (75%), then issue (35%).
// On sm_90 an HMMA takes fewer cycles and shared memory as many: the two meet, and wgmma, which reads shared memory by
// itself, goes further. tf32: 343 to 390 instructions, since each factor is rounded on its way to HMMA (two each) and
// factors along the lines are loaded word by word; 67 to 76% of the issue slots. Speeds: not measured yet.
//
// Operands are as in gemm_tile.cuh, but say where elements lie instead of loading them:
//   row(r), column(c)                   what a thread keeps of a row and of a column; both may lie beyond the last
//   advance_row(row, by), advance_column(column, by)     the same further on
//   piece<WIDTH>(row, column)           WIDTH elements beside each other (Piece)
// Zeros take the place of what does not exist. At the end of the depth they meet zeros, and beyond the last row and
// column they only reach sums that are not stored: an infinity in A or B makes no NaN where it does not belong.
#pragma once
#include "gemm_tile.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "registers.cuh"
#include "shared.cuh"
#include "slab.cuh"
#include "tile_order.cuh"

// rows x columns: of the tile of C, cut among down x across warps. slice: bytes of the depth in a slice; stages:
// slices in shared memory. alignment: 16 or 4, bytes that the rows of both operands begin at a multiple of.
template <int R, int C, int D, int A, int BYTES, int COUNT, int ALIGNED>
struct TileShape {
    static constexpr int rows = R, columns = C, down = D, across = A;
    static constexpr int slice = BYTES, stages = COUNT, alignment = ALIGNED;
    static constexpr int threads = WARP * down * across;
    static constexpr int warp_rows = rows / down, warp_columns = columns / across;
    static constexpr int stage = (rows + columns) * slice;  // bytes
    static constexpr int step = 32;                         // bytes of the depth that one mma takes
    static constexpr int steps = slice / step;
    static_assert(warp_rows % 16 == 0 && warp_columns % 16 == 0, "whole fragments, those of B in pairs");
    static_assert(steps % 2 == 0, "the two buffers of fragments take turns");
    static_assert(stages >= 3, "one slice is multiplied, one is complete, one on its way");
    static_assert(down * across * Slab<warp_columns>::BYTES <= stages * stage, "the slabs lie where the slices were");
};

// Where the chunks of a slice of one operand lie. ALONG: its rows run along the depth; LINES: of the tile.
template <typename Type, bool ALONG, int LINES, int DEPTH_BYTES>
struct Swizzle {
    static constexpr int V = Vector<Type>::size;
    static constexpr bool WORDS = !ALONG && sizeof(Type) == 4;  // taken out word by word
    static constexpr int CHUNKS = ALONG ? DEPTH_BYTES / 16 : LINES / V;
    static constexpr int BYTES = 16 * CHUNKS;  // of a row
    static constexpr int TOGETHER = CHUNKS < 8 ? 8 / CHUNKS : 1;
    static constexpr int KEYS = CHUNKS < 8 ? CHUNKS : 8;

    __device__ __forceinline__ static int key(int row) { return row / TOGETHER * (WORDS ? 2 : 1) % KEYS; }
    // In bytes from the beginning of the slice.
    __device__ __forceinline__ static int place(int row, int chunk) { return row * BYTES + 16 * (chunk ^ key(row)); }
};

// The elements that one thread brings of every slice, as they lie in the operand: COUNT rows, APART from one to the
// next, of one column of chunks; advance() goes to the next slice, which begins DEPTH further along the depth.
template <typename Type, bool ALONG, int COUNT, int APART, int DEPTH, typename Operand>
struct Walk {
    const Operand& operand;
    typename Operand::Column column;
    typename Operand::Row rows[COUNT];
    int left;  // of the depth, from the first of these elements on

    __device__ __forceinline__ Walk(const Operand& operand, int64 row, int64 first_column, int left)
        : operand(operand), column(operand.column(first_column)), left(left) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) rows[i] = operand.row(row + i * APART);
    }

    // Of row i, WIDTH elements that begin `further` behind the first.
    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(int i, int further) const {
        typename Operand::Column at = column;
        if (WIDTH != Vector<Type>::size) operand.advance_column(at, further);
        Piece<Type> found = operand.template piece<WIDTH>(rows[i], at);
        if (left <= (ALONG ? 0 : i * APART)) found.valid = 0;
        return found;
    }

    __device__ __forceinline__ void advance() {
        left -= DEPTH;
        if constexpr (ALONG) {
            operand.advance_column(column, DEPTH);
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) operand.advance_row(rows[i], DEPTH);
        }
    }
};

// In a matrix all rows are found from one: that saves registers, of which a tile leaves few.
template <typename Type, bool ALONG, int COUNT, int APART, int DEPTH>
struct Walk<Type, ALONG, COUNT, APART, DEPTH, Matrix<Type>> {
    const Type* at;
    const int64 apart;
    int left;
    int lines;  // of the tile: rows that exist, or elements of a row

    __device__ __forceinline__ Walk(const Matrix<Type>& matrix, int64 row, int64 column, int left)
        : at(matrix.at + row * matrix.stride + column), apart(APART * matrix.stride), left(left) {
        const int64 exist = ALONG ? (matrix.rows - row + APART - 1) / APART : matrix.columns - column;
        constexpr int MOST = ALONG ? COUNT : Vector<Type>::size;
        lines = exist < 0 ? 0 : static_cast<int>(smaller(exist, MOST));
    }

    template <int WIDTH>
    __device__ __forceinline__ Piece<Type> piece(int i, int further) const {
        const int exist = (ALONG ? left : lines) - further;
        const int valid = exist < 0 ? 0 : exist < WIDTH ? exist : WIDTH;
        return {at + i * apart + further, (ALONG ? i < lines : i * APART < left) ? valid : 0};
    }

    __device__ __forceinline__ void advance() {
        at += ALONG ? DEPTH : COUNT * apart;
        left -= DEPTH;
    }
};

// Brings slices of an operand into shared memory: each thread COUNT chunks of one column of chunks.
template <typename Type, bool ALONG, typename Shape, int LINES, typename Operand>
struct Copier {
    typedef Swizzle<Type, ALONG, LINES, Shape::slice> Place;
    static constexpr int V = Vector<Type>::size;
    static constexpr int WORD = 4 / sizeof(Type);
    static constexpr int COUNT = LINES * Shape::slice / 16 / Shape::threads;
    static constexpr int APART = Shape::threads / Place::CHUNKS;
    static constexpr int DEPTH = Shape::slice / sizeof(Type);
    static_assert(COUNT >= 1 && Shape::threads % Place::CHUNKS == 0, "as many chunks for each thread");
    static_assert(APART / Place::TOGETHER * (Place::WORDS ? 2 : 1) % Place::KEYS == 0, "all of its rows have one key");

    Walk<Type, ALONG, COUNT, APART, DEPTH, Operand> walk;
    const int place;
#if __CUDA_ARCH__ < 800
    Vector<Type> held[COUNT];
#endif

    // first_line: of the tile; depth: the first; length: how far it goes.
    __device__ __forceinline__ Copier(const Operand& operand, int64 first_line, int64 depth, int length)
        : Copier(operand, first_line, depth, length, threadIdx.x / Place::CHUNKS, threadIdx.x % Place::CHUNKS) {}

    // Starts to bring the next slice; behind the end of the depth there are zeros.
    __device__ __forceinline__ void start(SharedPlace slice) {
        if constexpr (Shape::alignment == 16) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) bring<V>(slice, i, 0);
        } else {
#if __CUDA_ARCH__ >= 800
            // Each 8 lanes begin with another word of their chunks, so that 32 lanes write to 32 banks. Not unrolled:
            // there would be no registers for as many addresses.
#pragma unroll 1
            for (int turn = 0; turn < 4; ++turn) bring_words(slice, (turn + threadIdx.x / 8) % 4);
#else
#pragma unroll
            for (int word = 0; word < 4; ++word) bring_words(slice, word);
#endif
        }
        walk.advance();
    }

#if __CUDA_ARCH__ >= 800
    __device__ __forceinline__ void finish(SharedPlace) const {}
#else
    // What start() has loaded goes to the slice.
    __device__ __forceinline__ void finish(SharedPlace slice) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            store16_shared(slice + place + i * 16 * Shape::threads, held[i]);
    }
#endif

private:
    __device__ __forceinline__ Copier(const Operand& operand, int64 first_line, int64 depth, int length, int row,
                                      int chunk)
        : walk(operand, (ALONG ? first_line : depth) + row, (ALONG ? depth : first_line) + chunk * V,
               length - (ALONG ? chunk * V : row)),
          place(Place::place(row, chunk)) {}

    __device__ __forceinline__ void bring_words(SharedPlace slice, int word) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) bring<WORD>(slice, i, word);
    }

    template <int WIDTH>
    __device__ __forceinline__ void bring(SharedPlace slice, int i, int word) {
        const Piece<Type> piece = walk.template piece<WIDTH>(i, word * WORD);
#if __CUDA_ARCH__ >= 800
        copy_async<WIDTH * sizeof(Type)>(slice + place + i * 16 * Shape::threads + 4 * word, piece.at,
                                         piece.valid * sizeof(Type));
#else
        if (piece.valid == WIDTH) {
            hold<WIDTH>(i, word, piece.at);
            return;
        }
#pragma unroll
        for (int e = 0; e < WIDTH; ++e)
            held[i].at[word * WORD + e] = e < piece.valid ? piece.at[e] : convert<Type>(0.0f);
    }

    template <int WIDTH>
    __device__ __forceinline__ void hold(int i, int word, const Type* at) {
        if constexpr (WIDTH == V) {
            held[i] = load16(at);
        } else {
            const uint32 bits = *reinterpret_cast<const uint32*>(at);
#pragma unroll
            for (int e = 0; e < WORD; ++e) held[i].at[word * WORD + e].bits = static_cast<uint16>(bits >> 16 * e);
        }
#endif
    }
};

// The fragments of an operand, 16 lines of the tile at a time. IS_A: of A one of 16 x 16 (8 of tf32), of B two of 8
// columns.
template <typename Type, bool ALONG, bool IS_A, int LINES, int DEPTH_BYTES>
struct Fragments {
    typedef Swizzle<Type, ALONG, LINES, DEPTH_BYTES> Place;
    static constexpr int STEP = 32 / sizeof(Type);  // of the depth

    int place;  // of this lane in step 0, in the first 16 lines of the warp

    // first: of the warp's lines, a multiple of how many it has, which is a power of two.
    __device__ __forceinline__ explicit Fragments(int first) {
        const int lane = threadIdx.x % WARP;
        if constexpr (Place::WORDS) {
            // Word (k, line) for k = lane % 4, line = lane / 4, which is four keys and two chunks.
            place = Place::place(lane % 4, (first + lane / 4) / 4) + lane / 4 % 4 * 4;
        } else {
            // The four 8 x 8 matrices of ldmatrix are two halves of the lines and two of the depth, in the order of a[]
            // (lines first) and b[].
            const int matrix = lane / 8, low = matrix % 2, high = matrix / 2;
            const int line_half = IS_A ? low : high, depth_half = IS_A ? high : low;
            if constexpr (ALONG)
                place = Place::place(first + 8 * line_half + lane % 8, depth_half);
            else
                place = Place::place(8 * depth_half + lane % 8, first / 8 + line_half);
        }
    }

    // Those of all COUNT times 16 lines of the warp in the step.
    template <int COUNT>
    __device__ __forceinline__ void load(uint32 (&fragments)[COUNT][4], SharedPlace slice, int step) const {
        if constexpr (Place::WORDS) {
            load_words(fragments, slice + STEP * step * Place::BYTES);
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) load(fragments[i], slice, step, i);
        }
    }

    // Those of lines 16 i .. 16 i + 15. Rows further on by 8 have the same key, and chunks are numbered within the warp
    // by bits that neither `first` nor the lane sets, so that the exclusive or may come last.
    __device__ __forceinline__ void load(uint32 (&fragment)[4], SharedPlace slice, int step, int i) const {
        static_assert(!Place::WORDS, "ldmatrix makes no such fragments");
        if constexpr (ALONG) {
            load_matrix(fragment, slice + (place ^ 32 * step) + 16 * i * Place::BYTES);
            if constexpr (sizeof(Type) == 4) {
#pragma unroll
                for (int r = 0; r < 4; ++r) fragment[r] = to_tf32(__uint_as_float(fragment[r]));
            }
        } else {
            load_matrix_transposed(fragment, slice + (place ^ 32 * i) + STEP * step * Place::BYTES);
        }
    }

private:
    // 8 lines of the warp begin every 32 bytes of a row. Where they lie is known to the compiler, but for the bits that
    // a key changes, of which there are PLACES kinds; it would keep all in registers if it knew that these stay the
    // same.
    template <int COUNT>
    __device__ __forceinline__ void load_words(uint32 (&fragments)[COUNT][4], SharedPlace step) const {
        constexpr int PLACES = Place::KEYS / 2;
        int places[PLACES];
#pragma unroll
        for (int kind = 0; kind < PLACES; ++kind) places[kind] = forgotten(place ^ 32 * kind);
#pragma unroll
        for (int lines = 0; lines < 2 * COUNT; ++lines)
#pragma unroll
            for (int depth = 0; depth < 2; ++depth) {
                const int further = lines / PLACES * PLACES * 32 + 4 * depth * Place::BYTES;
                fragments[lines / 2][IS_A ? lines % 2 + 2 * depth : 2 * (lines % 2) + depth] =
                    to_tf32(load_shared(step + places[lines % PLACES] + further));
            }
    }
};

template <typename Type>
__device__ __forceinline__ void multiply_fragments(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    if constexpr (sizeof(Type) == 4)
        multiply_accumulate_tf32(d, a, b);
    else
        multiply_accumulate<Type>(d, a, b);
}

// A tile of C: what this thread has of it. A_ALONG, B_ALONG: whether the rows of the operand run along the depth. SUMS:
// whether it can add up A's columns too, which then are the lines of the tile.
template <typename Type, typename Shape, bool A_ALONG, bool B_ALONG, bool SUMS = false>
struct MmaTile {
    static_assert(!SUMS || (!A_ALONG && is_16_bit<Type>::value), "sums of columns, of what is multiplied unrounded");
    static constexpr int AHEAD = Shape::stages - 1;  // slices on their way while one is multiplied
    static constexpr int FRAGMENTS = Shape::warp_rows / 16, PAIRS = Shape::warp_columns / 16;
    static constexpr int SLICE_DEPTH = Shape::slice / sizeof(Type);

    float sums[FRAGMENTS][2 * PAIRS][4];
    float columns_of_a[SUMS ? FRAGMENTS : 1][4];

    __device__ __forceinline__ static int warp_down() { return threadIdx.x / WARP / Shape::across; }
    __device__ __forceinline__ static int warp_across() { return threadIdx.x / WARP % Shape::across; }

    // The sums over the depth [begin, end) for the tile at (first_row, first_column). begin is a multiple of
    // SLICE_DEPTH, and end is one or the whole depth of both operands. memory: stages * stage bytes of shared memory,
    // which nothing else uses meanwhile; when the call returns it is free again. wanted: the sums of A's columns too;
    // the same for all threads of the block.
    template <typename A, typename B>
    __device__ __forceinline__ void multiply(const A& a, const B& b, int64 first_row, int64 first_column, int64 begin,
                                             int64 end, unsigned char* memory, bool wanted = false) {
        const int length = static_cast<int>(end - begin);
        Copier<Type, A_ALONG, Shape, Shape::rows, A> copier_a(a, first_row, begin, length);
        Copier<Type, B_ALONG, Shape, Shape::columns, B> copier_b(b, first_column, begin, length);
        const Fragments<Type, A_ALONG, true, Shape::rows, Shape::slice> of_a(warp_down() * Shape::warp_rows);
        const Fragments<Type, B_ALONG, false, Shape::columns, Shape::slice> of_b(warp_across() * Shape::warp_columns);
        constexpr int B_PLACE = Shape::rows * Shape::slice;
        const SharedPlace stages = shared_place(memory);
        clear();

#pragma unroll
        for (int slice = 0; slice < AHEAD; ++slice) {
            const SharedPlace stage = stages + slice * Shape::stage;
            copier_a.start(stage);
            copier_b.start(stage + B_PLACE);
            copier_a.finish(stage);
            copier_b.finish(stage + B_PLACE);
            commit();
        }
        wait();
        uint32 fragments_a[BUFFERS][FRAGMENTS][4], fragments_b[BUFFERS][PAIRS][4];
        const auto load = [&](int buffer, SharedPlace stage, int step) {
            of_a.load(fragments_a[buffer], stage, step);
            of_b.load(fragments_b[buffer], stage + B_PLACE, step);
        };
        if constexpr (BUFFERS > 1) load(0, stages, 0);

        int reading = 0;
#pragma unroll 1
        for (int depth = 0; depth < length; depth += SLICE_DEPTH) {
            // The stage of the slice before, which all warps had read before they came to the last barrier.
            const SharedPlace ahead = stages + (reading == 0 ? AHEAD : reading - 1) * Shape::stage;
            if constexpr (SUMS) {
                if (wanted) add_columns(of_a, stages + reading * Shape::stage);
            }
#pragma unroll
            for (int step = 0; step < Shape::steps; ++step) {
                if (BUFFERS == 1 || step + 1 < Shape::steps) {
                    const int loaded = step + BUFFERS - 1;
                    load(loaded % BUFFERS, stages + reading * Shape::stage, loaded);
                }
                if (step + 1 == Shape::steps) {
                    // Every warp has read all of this slice, and the next one is complete.
                    wait();
                    reading = reading + 1 == Shape::stages ? 0 : reading + 1;
                    if constexpr (BUFFERS > 1) load(0, stages + reading * Shape::stage, 0);
                }
                if (step == 0) copier_a.start(ahead);
                if (step == COPIES_B) copier_b.start(ahead + B_PLACE);
#pragma unroll
                for (int i = 0; i < FRAGMENTS; ++i)
#pragma unroll
                    for (int j = 0; j < PAIRS; ++j) {
                        const uint32(&lines)[4] = fragments_a[step % BUFFERS][i];
                        const uint32(&pair)[4] = fragments_b[step % BUFFERS][j];
                        multiply_fragments<Type>(sums[i][2 * j], lines, {pair[0], pair[1]});
                        multiply_fragments<Type>(sums[i][2 * j + 1], lines, {pair[2], pair[3]});
                    }
                if (step == 0) copier_a.finish(ahead);
                if (step == COPIES_B) {
                    copier_b.finish(ahead + B_PLACE);
                    commit();
                }
            }
        }
        finish();
    }

    // Calls store(row, column, sums) for what this warp holds of the tile within `rows` and `columns` of C: float
    // sums[Vector<Type>::size] beside each other where `vectors`, which takes columns in whole vectors, and one by one
    // otherwise. memory: as in multiply.
    template <typename Store>
    __device__ __forceinline__ void store(unsigned char* memory, int64 first_row, int64 first_column, int64 rows,
                                          int64 columns, bool vectors, const Store& store) const {
        typedef Slab<Shape::warp_columns> WarpSlab;
        const WarpSlab slab{reinterpret_cast<float*>(memory + threadIdx.x / WARP * WarpSlab::BYTES)};
        const int64 row = first_row + warp_down() * Shape::warp_rows;
        const int64 column = first_column + warp_across() * Shape::warp_columns;
        // One copy of the code that stores, for all parts: the epilogue is longer than the moves before it.
#pragma unroll 1
        for (int part = 0; part < FRAGMENTS; ++part) {
#pragma unroll
            for (int i = 0; i < FRAGMENTS; ++i)
                if (i == part) {
#pragma unroll
                    for (int j = 0; j < 2 * PAIRS; ++j)
                        slab.put(8 * j, sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]);
                }
            if (vectors)
                slab.template take<Vector<Type>::size>(row + 16 * part, column, rows, columns, store);
            else
                slab.template take<1>(row + 16 * part, column, rows, columns, store);
        }
    }

    // Calls store(row, sum) once for each line of the tile within `rows`: the sums of A's columns.
    template <typename Store>
    __device__ __forceinline__ void store_columns(int64 first_row, int64 rows, const Store& store) const {
        static_assert(SUMS, "only a tile with SUMS has them");
        const int lane = threadIdx.x % WARP;
        if (warp_across() != 0 || lane % 4 != 0) return;
        const int64 row = first_row + warp_down() * Shape::warp_rows + lane / 4;
#pragma unroll
        for (int i = 0; i < FRAGMENTS; ++i) {
            if (row + 16 * i < rows) store(row + 16 * i, columns_of_a[i][0]);
            if (row + 16 * i + 8 < rows) store(row + 16 * i + 8, columns_of_a[i][2]);
        }
    }

private:
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < FRAGMENTS; ++i)
#pragma unroll
            for (int j = 0; j < 2 * PAIRS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
#pragma unroll
        for (int i = 0; i < (SUMS ? FRAGMENTS : 1); ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) columns_of_a[i][e] = 0.0f;
    }

    // A^T times a matrix of ones. The fragments are loaded once more, so that a block that adds no columns has no
    // branches between its products. All warps do it, though those across have the same: the compiler has to see that
    // whole warps come here.
    template <typename OfA>
    __device__ __forceinline__ void add_columns(const OfA& of_a, SharedPlace stage) {
        const uint32 one = convert<Type>(1.0f).bits, pair = one | one << 16;
#pragma unroll
        for (int step = 0; step < Shape::steps; ++step)
#pragma unroll
            for (int i = 0; i < FRAGMENTS; ++i) {
                uint32 fragment[4];
                of_a.load(fragment, stage, step, i);
                multiply_fragments<Type>(columns_of_a[i], fragment, {pair, pair});
            }
    }

#if __CUDA_ARCH__ >= 800
    static constexpr int BUFFERS = 2;   // fragments of one step are loaded while those of the other are multiplied
    static constexpr int COPIES_B = 0;  // the step in which slices of B are brought
    __device__ __forceinline__ static void commit() { commit_copies(); }
    // All slices but the AHEAD - 1 youngest have arrived, for all threads.
    __device__ __forceinline__ static void wait() {
        wait_copies<AHEAD - 1>();
        __syncthreads();
    }
    __device__ __forceinline__ static void finish() {
        wait_copies<0>();
        __syncthreads();
    }
#else
    // Slices pass through registers, which leaves fewer for fragments; those of B pass after those of A.
    static constexpr int BUFFERS = 1;
    static constexpr int COPIES_B = 1;
    __device__ __forceinline__ static void commit() {}
    __device__ __forceinline__ static void wait() { __syncthreads(); }
    __device__ __forceinline__ static void finish() { __syncthreads(); }
#endif
};
