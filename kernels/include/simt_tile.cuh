// The core of a float32 product without tensor cores: a block computes a tile of C = A B by plain multiply-adds.
//
// A and B pass through shared memory, a slice of 16 steps of the depth at a time, as tile[k][line], in two stages:
// while one is multiplied, the next one is on its way (cp.async; on sm_75, which has none, through registers). Of a
// tile of 128 x 128, a warp computes 64 x 64 elements, 8 lanes down and 4 across, so a lane 8 x 16: two vectors of 4
// rows, 32 apart, by four vectors of 4 columns, 16 apart. What a step of the depth costs a lane:
//
//   multiply-adds (FFMA)         128
//   LDS.128                        6   8 + 16 factors, those of the next step while this one is multiplied
//   cycles of shared memory       12   while the multiprocessor issues 128 FFMAs on each of its 4 schedulers: 48 of 128
//   registers                    176   128 sums, 2 x 24 factors; with addresses up to 255, so 8 warps a multiprocessor
//
// (8 x 8 elements, as narrow tiles have them, are 4 LDS.128 for 64 FFMAs.) The cycles: a load of 16 bytes a lane
// returns 128 bytes a cycle, so it takes four, or two where lanes l and l ^ 1, or l and l ^ 2, read the same address,
// as they do here: bit 0 of the lane belongs to its row, bit 1 to its column. The vectors that half a warp reads lie in
// different banks. Source: NVIDIA developer forum, "Unexpected shared memory bank conflict", on sm_70 and sm_75.
//
// An operand whose rows run along the lines of the tile is copied into its place: 16 bytes a lane, 8 lanes a row. One
// whose rows run along the depth has to be turned: a thread copies a square of 4 lines and 4 steps into memory of its
// own, and when that has arrived, it alone, without a barrier, takes it out and stores four vectors of 4 lines. That is
// 4 LDGSTS, 4 LDS.128, 15 moves and 4 STS.128 for 16 elements; 16 copies of 4 bytes would need 16 LDGSTS, twice the
// addresses and bounds, and rows of the tile that are padded against conflicts.
//
// Instructions of a warp for a slice of a tile of 128 x 128, on sm_90a (nvdisasm):
//
//                FFMA   LDS.128   LDGSTS.128   STS.128   moves, addresses, bounds, loops, barrier   limit
//   A B^T        2048       110            8         8                                       115    89%
//   A B          2048       106            8         4                                       110    90%
//   A^T B        2048       102            8         0                                        92    91%
//
// A scheduler issues one a cycle and has multipliers for one FFMA a cycle on sm_86, 89, 90, 100 and 120, so the limit
// is that of the peak, before any latency that the other warp does not cover; sm_75 and sm_80 have half the multipliers
// and cycles to spare. (A block that adds up columns of A has 35 more.) Of 512 FFMAs 8 find their three factors in one
// bank of registers, which costs a cycle. Four steps of the slice are unrolled: with all of the loop that is 11 KB of
// code, and the smallest instruction cache of a scheduler that was measured has 12 KB (Jia et al., Dissecting the
// NVIDIA Volta GPU Architecture via Microbenchmarking, 2018). All 16 would save 32 instructions, 1.4%, in 36 KB. Not
// measured yet.
//
// Operands are those of mma_tile.cuh: row(r), column(c), advance_row, advance_column, piece<WIDTH>(row, column). Zeros
// take the place of what does not exist. At the end of the depth they meet zeros, and beyond the last row and column
// they only reach sums that are not stored: an infinity in A or B makes no NaN where it does not belong.
#pragma once
#include "async.cuh"
#include "gemm_tile.cuh"
#include "reduce.cuh"

// Whether there is cp.async.
constexpr bool COPIES = __CUDA_ARCH__ >= 800;

// A tile of R x C elements (64 or 128 each, not both 64) for 2 x 2 warps. ALIGNED: 16 where the rows of both operands
// begin at multiples of 16 bytes and end there, else 4. STEPS: of a slice that are unrolled; those of a loop keep
// factors in registers from each turn to the next.
template <int R, int C, int ALIGNED, int STEPS>
struct SimtShape {
    static constexpr int rows = R, columns = C, alignment = ALIGNED;
    static constexpr int threads = 128;
    static constexpr int warp_rows = rows / 2, warp_columns = columns / 2;
    static constexpr int lanes_down = warp_rows / 8, lanes_across = WARP / lanes_down;
    static constexpr int lane_rows = 8, lane_columns = warp_columns / lanes_across;
    static constexpr int depth = 16;  // of a slice
    static constexpr int unrolled = STEPS;
    static constexpr int stage = depth * (rows + columns);  // floats
};

// Where the vectors of 4 elements lie that a thread brings of each slice of an operand: those of COUNT lines, which are
// APART from each other. They begin at one step of the depth where the operand's rows run ALONG it, and are of one step
// where they do not.
template <typename Shape, bool ALONG, int COUNT, int APART, typename Operand, int ALIGNED = Shape::alignment>
struct Places {
    static constexpr bool LIGHT = false;  // whether it takes few registers
    static constexpr int KEPT = ALONG || ALIGNED == 4 ? 1 : COUNT;  // columns

    const Operand& operand;
    typename Operand::Row rows[ALONG ? COUNT : 1];
    typename Operand::Column columns[KEPT];

    // line: that of the first vector; step: of the depth, in the first slice.
    __device__ __forceinline__ Places(const Operand& operand, int64 line, int64 step) : operand(operand) {
#pragma unroll
        for (int i = 0; i < (ALONG ? COUNT : 1); ++i) rows[i] = operand.row(ALONG ? line + i * APART : step);
#pragma unroll
        for (int i = 0; i < KEPT; ++i) columns[i] = operand.column(ALONG ? step : line + i * APART);
    }

    // Calls each(i, e, piece) for what begins with element e of vector i: vectors, or elements one by one.
    template <typename Each>
    __device__ __forceinline__ void pieces(const Each& each) const {
        if constexpr (ALIGNED == 16) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                each(i, 0, operand.template piece<4>(rows[ALONG ? i : 0], columns[ALONG ? 0 : i]));
            return;
        }
        typename Operand::Column column = columns[0];
#pragma unroll
        for (int i = 0; i < (ALONG ? 1 : COUNT); ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
#pragma unroll
                for (int row = 0; row < (ALONG ? COUNT : 1); ++row)
                    each(i + row, e, operand.template piece<1>(rows[row], column));
                operand.advance_column(column, ALONG || e < 3 ? 1 : APART - 3);
            }
        }
    }

    // To the next slice.
    __device__ __forceinline__ void advance() {
        if constexpr (ALONG)
            operand.advance_column(columns[0], Shape::depth);
        else
            operand.advance_row(rows[0], Shape::depth);
    }
};

// Those of a matrix of whole vectors. In place of a line beyond the last one stands the last, since what comes of it is
// not stored: then all vectors exist or none, and an address is one addition for each slice.
template <typename Shape, bool ALONG, int COUNT, int APART>
struct Places<Shape, ALONG, COUNT, APART, Matrix<float>, 16> {
    static constexpr bool LIGHT = true;

    const float* at[COUNT];
    int64 left;  // steps of the depth
    const int64 further;

    __device__ __forceinline__ Places(const Matrix<float>& matrix, int64 line, int64 step)
        : left((ALONG ? matrix.columns : matrix.rows) - step),
          further(ALONG ? Shape::depth : Shape::depth * matrix.stride) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int64 row = ALONG ? smaller(line + i * APART, matrix.rows - 1) : step;
            const int64 column = ALONG ? step : smaller(line + i * APART, matrix.columns - 4);
            at[i] = matrix.at + row * matrix.stride + column;
        }
    }

    template <typename Each>
    __device__ __forceinline__ void pieces(const Each& each) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) each(i, 0, Piece<float>{at[i], left > 0 ? 4 : 0});
    }

    __device__ __forceinline__ void advance() {
        left -= Shape::depth;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) at[i] += further;
    }
};

// Starts to bring what begins with element e of a vector: to its place in shared memory, or to `held`, where it is on
// its way there without cp.async.
template <typename Shape>
__device__ __forceinline__ void bring(const Piece<float>& piece, int e, float* vector, Vector<float>& held) {
    constexpr int BYTES = Shape::alignment;
    if constexpr (COPIES)
        copy_async<BYTES>(vector + e, piece.at, piece.valid > 0 ? BYTES : 0);
    else if constexpr (BYTES == 16)
        held = piece.valid > 0 ? load16(piece.at) : Vector<float>{};
    else
        held.at[e] = piece.valid > 0 ? *piece.at : 0.0f;
}

// What one thread brings of an operand whose rows run along the depth: a square of 4 lines and 4 steps. 8 lanes have
// lines that follow each other, so that they store to 32 banks; 4 lanes have the steps of a slice, so that they read 64
// bytes of a row.
template <typename Shape, bool ALONG, int LINES, typename Operand, bool EARLY>
struct Feed {
    static_assert(LINES <= Shape::threads && Shape::depth == 16, "one square, or none");
    static constexpr int MEMORY = COPIES ? LINES * Shape::depth : 0;  // floats, where vectors wait to be turned

    const int line, k;  // of the square in the tile
    float* const own;
    Places<Shape, true, 4, 1, Operand> places;
    Vector<float> held[4];

    __device__ __forceinline__ Feed(const Operand& operand, int64 first_line, int64 begin, float* memory)
        : line(threadIdx.x / WARP * WARP + threadIdx.x % 8 * 4), k(threadIdx.x % WARP / 8 * 4),
          own(memory + 4 * threadIdx.x), places(operand, first_line + line, begin + k) {}

    // Starts to bring the next slice, for which finish() will have a place.
    __device__ __forceinline__ void start(float*) {
        if (EARLY && works()) bring_all();
    }

    // Brings it there, as tile[k][line]. This thread's copies have arrived.
    __device__ __forceinline__ void finish(float* tile) {
        if (!works()) return;
        if (!EARLY) bring_all();
        Vector<float> v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (COPIES)
                v[i] = load16(own + i * 4 * LINES);
            else
                v[i] = held[i];
        }
#pragma unroll
        for (int e = 0; e < 4; ++e)
            store16(tile + (k + e) * LINES + line, Vector<float>{{v[0].at[e], v[1].at[e], v[2].at[e], v[3].at[e]}});
    }

private:
    // Of a narrow tile some warps have no lines.
    __device__ __forceinline__ static bool works() { return LINES == Shape::threads || threadIdx.x < LINES; }

    __device__ __forceinline__ void bring_all() {
        places.pieces([&](int i, int e, const Piece<float>& piece) {
            bring<Shape>(piece, e, own + i * 4 * LINES, held[i]);
        });
        places.advance();
    }
};

// The same where the rows run along the lines of the tile: vectors of one row, which 8 lanes share.
template <typename Shape, int LINES, typename Operand, bool EARLY>
struct Feed<Shape, false, LINES, Operand, EARLY> {
    static constexpr int LANES = Shape::threads / Shape::depth;
    static constexpr int APART = 4 * LANES, COUNT = LINES / APART;
    static constexpr int MEMORY = 0;

    const int k, line;
    Places<Shape, false, COUNT, APART, Operand> places;
    Vector<float> held[COUNT];

    __device__ __forceinline__ Feed(const Operand& operand, int64 first_line, int64 begin, float*)
        : k(threadIdx.x / LANES), line(threadIdx.x % LANES * 4), places(operand, first_line + line, begin + k) {}

    __device__ __forceinline__ void start(float* tile) {
        if (EARLY) bring_all(tile);
    }

    __device__ __forceinline__ void finish(float* tile) {
        if (!EARLY) bring_all(tile);
        if constexpr (!COPIES) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) store16(tile + k * LINES + line + i * APART, held[i]);
        }
    }

private:
    __device__ __forceinline__ void bring_all(float* tile) {
        places.pieces([&](int i, int e, const Piece<float>& piece) {
            bring<Shape>(piece, e, tile + k * LINES + line + i * APART, held[i]);
        });
        places.advance();
    }
};

// A tile of C: what this thread has of it. A_ALONG, B_ALONG: whether the rows of the operand run along the depth. SUMS:
// whether it can add up A's columns too, which then are the lines of the tile.
template <typename Shape, bool A_ALONG, bool B_ALONG, bool SUMS = false>
struct SimtTile {
    static_assert(!SUMS || !A_ALONG, "sums of the columns of A");
    static constexpr int TURNED = COPIES ? Shape::depth * (A_ALONG * Shape::rows + B_ALONG * Shape::columns) : 0;
    static constexpr int MEMORY = 2 * Shape::stage + TURNED;  // floats of shared memory
    static constexpr int HALF = Shape::warp_rows / 2;

    float sums[Shape::lane_rows][Shape::lane_columns];
    float column_of_a;  // the sum of the column that is line threadIdx.x of the tile
    int row, column;    // of the first of its elements in the tile

    __device__ __forceinline__ SimtTile() {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        const bool tall = Shape::lanes_down == 8;
        const int down = tall ? (lane & 1) | (lane >> 2 & 6) : (lane & 1) | (lane >> 1 & 2);
        const int across = tall ? lane >> 1 & 3 : (lane >> 1 & 1) | (lane >> 2 & 6);
        row = warp / 2 * Shape::warp_rows + 4 * down;
        column = warp % 2 * Shape::warp_columns + 4 * across;
    }

    // The sums over the depth [begin, end) for the tile at (first_row, first_column). begin is a multiple of a slice,
    // and end is one or the whole depth of both operands. memory: MEMORY floats of shared memory, which nothing else
    // uses meanwhile; when the call returns it is free again. wanted: the sums of A's columns too; the same for all
    // threads of the block.
    template <typename A, typename B>
    __device__ __forceinline__ void multiply(const A& a, const B& b, int64 first_row, int64 first_column, int64 begin,
                                             int64 end, float* memory, bool wanted = false) {
        // Without cp.async, what is on its way takes registers. Where addresses leave none for it, it is brought behind
        // the multiplication, while other blocks of the multiprocessor are at theirs.
        constexpr bool LIGHT = Places<Shape, A_ALONG, 4, 1, A>::LIGHT && Places<Shape, B_ALONG, 4, 1, B>::LIGHT;
        constexpr bool EARLY = COPIES || LIGHT;
        typedef Feed<Shape, A_ALONG, Shape::rows, A, EARLY> FeedA;
        typedef Feed<Shape, B_ALONG, Shape::columns, B, EARLY> FeedB;
        FeedA feed_a(a, first_row, begin, memory + 2 * Shape::stage);
        FeedB feed_b(b, first_column, begin, memory + 2 * Shape::stage + FeedA::MEMORY);
        const auto start = [&](float* stage) {
            feed_a.start(stage);
            feed_b.start(stage + Shape::depth * Shape::rows);
        };
        const auto finish = [&](float* stage) {
            if constexpr (COPIES) {
                commit_copies();
                wait_copies<0>();
            }
            feed_a.finish(stage);
            feed_b.finish(stage + Shape::depth * Shape::rows);
            __syncthreads();
        };
        clear();
        start(memory);
        finish(memory);
        int stage = 0, left = static_cast<int>((end - begin + Shape::depth - 1) / Shape::depth);
#pragma unroll 1
        do {
            // The other stage was multiplied by all before they came to the last barrier.
            if (left > 1) start(memory + Shape::stage - stage);
            multiply_slice(memory + stage);
            if (SUMS && wanted) add_columns(memory + stage);
            if (left > 1) finish(memory + Shape::stage - stage);
            stage = Shape::stage - stage;
        } while (--left > 0);
        __syncthreads();
    }

    // Calls store(row, column, sums) for the tile's elements within `rows` and `columns` of C: float sums[4] beside
    // each other where `vectors`, which takes columns in whole vectors, and one by one otherwise. memory: as in
    // multiply.
    //
    // They go through shared memory, half of what each warp has at a time, so that the threads store rows, and so that
    // there is one copy of the code that does it: the epilogue is longer than the moves before it. While a half lies
    // there, as memory[line][column], all threads call on_half(row), where line 0 is that row of C and line l the
    // row_of(l)-th behind it.
    template <typename Store, typename OnHalf>
    __device__ __forceinline__ void store(float* memory, int64 first_row, int64 first_column, int64 rows,
                                          int64 columns, bool vectors, const Store& store,
                                          const OnHalf& on_half) const {
        float* const at = memory + (row / Shape::warp_rows * HALF + row % HALF) * Shape::columns + column;
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
            if (half != 0) __syncthreads();
#pragma unroll
            for (int i = 0; i < Shape::lane_rows; ++i) {
                if (i / 4 != half) continue;
#pragma unroll
                for (int j = 0; j < Shape::lane_columns; j += 4)
                    store16(at + i % 4 * Shape::columns + j * Shape::lanes_across,
                            Vector<float>{{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}});
            }
            __syncthreads();
            if (vectors)
                take<4>(memory, first_row + half * HALF, first_column, rows, columns, store);
            else
                take<1>(memory, first_row + half * HALF, first_column, rows, columns, store);
            on_half(first_row + half * HALF);
        }
    }
    template <typename Store>
    __device__ __forceinline__ void store(float* memory, int64 first_row, int64 first_column, int64 rows,
                                          int64 columns, bool vectors, const Store& store) const {
        this->store(memory, first_row, first_column, rows, columns, vectors, store, [](int64) {});
    }
    __device__ __forceinline__ static int row_of(int line) { return line / HALF * Shape::warp_rows + line % HALF; }

    // Calls store(row, sum) once for each line of the tile within `rows`: the sums of A's columns.
    template <typename Store>
    __device__ __forceinline__ void store_columns(int64 first_row, int64 rows, const Store& store) const {
        const int64 line = first_row + threadIdx.x;
        if (threadIdx.x < Shape::rows && line < rows) store(line, column_of_a);
    }

private:
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < Shape::lane_rows; ++i)
#pragma unroll
            for (int j = 0; j < Shape::lane_columns; ++j) sums[i][j] = 0.0f;
        column_of_a = 0.0f;
    }

    // This lane's factors of one step, of which the first lies at `first`: vectors that the LANES share out in turn.
    template <int LANES, int COUNT>
    __device__ __forceinline__ static void load(const float* first, float (&factors)[COUNT]) {
#pragma unroll
        for (int part = 0; part < COUNT; part += 4) {
            const Vector<float> v = load16(first + part * LANES);
#pragma unroll
            for (int e = 0; e < 4; ++e) factors[part + e] = v.at[e];
        }
    }

    __device__ __forceinline__ void multiply_slice(const float* stage) {
        const float *a = stage + row, *b = stage + Shape::depth * Shape::rows + column;
        float u[2][Shape::lane_rows], v[2][Shape::lane_columns];
        load<Shape::lanes_down>(a, u[0]);
        load<Shape::lanes_across>(b, v[0]);
#pragma unroll 1
        for (int k = 0; k < Shape::depth; k += Shape::unrolled) {
#pragma unroll
            for (int step = 0; step < Shape::unrolled; ++step) {
                a += Shape::rows;
                b += Shape::columns;
                if (step + 1 < Shape::unrolled || k + Shape::unrolled < Shape::depth) {
                    load<Shape::lanes_down>(a, u[(step + 1) % 2]);
                    load<Shape::lanes_across>(b, v[(step + 1) % 2]);
                }
#pragma unroll
                for (int i = 0; i < Shape::lane_rows; ++i)
#pragma unroll
                    for (int j = 0; j < Shape::lane_columns; ++j) sums[i][j] += u[step % 2][i] * v[step % 2][j];
            }
        }
    }

    // A slice's part of the sums of A's columns.
    __device__ __forceinline__ void add_columns(const float* stage) {
        float sum = 0.0f;
        if (threadIdx.x < Shape::rows) {
#pragma unroll
            for (int k = 0; k < Shape::depth; ++k) sum += stage[k * Shape::rows + threadIdx.x];
        }
        column_of_a += sum;
    }

    // Stores what store() has put into shared memory: of each warp's rows the HALF from first_row on.
    template <int WIDTH, typename Store>
    __device__ __forceinline__ static void take(const float* memory, int64 first_row, int64 first_column, int64 rows,
                                                int64 columns, const Store& store) {
        constexpr int ACROSS = Shape::columns / WIDTH;
#pragma unroll 1
        for (int i = threadIdx.x; i < Shape::rows / 2 * ACROSS; i += Shape::threads) {
            const int line = i / ACROSS, within = i % ACROSS * WIDTH;
            const int64 row = first_row + row_of(line), column = first_column + within;
            if (row >= rows || column >= columns) continue;
            const Floats<WIDTH> found = load_floats<WIDTH>(memory + line * Shape::columns + within);
            store(row, column, found.at);
        }
    }
};
