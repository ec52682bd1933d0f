// Layer and RMS norm of the rows of a matrix, backward: dx and the gradients of scale and shift in one pass.
//
// With g = dy gamma and xhat = (x - mean) rstd,  dx = rstd (g - mean(g) - xhat mean(g xhat)).
//
// Each team of threads walks rows `first, first + step, ...`, reads dy and x of a row once, and keeps the sums of dy
// and dy xhat of its columns in registers; at the end it writes them to `partials`, which sum_partials adds up in a
// fixed order. Traffic: 3 arrays. The next row is on its way to the L2 cache while this one waits for its sums. The
// number of teams is chosen by shape, so that the partials are small beside the arrays.
//
// Rows that are too long for that, or not a multiple of 16 bytes, take two kernels instead, which read dy and x twice:
// norm_row_sums, then norm_rows_backward_strips, whose blocks walk down strips of columns.
#include "norm.cuh"
#include "row.cuh"
#include "strip.cuh"

constexpr int COLUMNS = 16;  // of a row a thread holds: 32 registers of sums, 16 or 32 of dy and x, twice
constexpr int VECTORS = COLUMNS / Vector<T>::size;
constexpr int LONG_ROW_THREADS = 512;
constexpr int STRIP_THREADS = 256;

struct Backward {
    const T *dy, *dtotal, *x, *gamma;
    const float *mean, *rstd;
    T* dx;
    int64 rows, columns;
    int centred;  // 1: layer norm, 0: RMS norm
    int added;    // 1: dtotal is added to dx

    bool aligned;

    __device__ __forceinline__ void check_alignment() {
        aligned = aligned16(dy) && aligned16(dtotal) && aligned16(x) && aligned16(gamma) && aligned16(dx);
    }
};

__device__ __forceinline__ NormGradient read_row(const Backward& b, int64 row) {
    NormGradient result{};
    if (row < b.rows) {
        if (b.centred) result.mean = b.mean[row];
        result.rstd = b.rstd[row];
    }
    return result;
}

// g = dy gamma; not contracted with what follows, so that g - mean(g) is exactly 0 where a row has one element.
template <typename Part, typename Index>
__device__ __forceinline__ void scaled(
    const Backward& b, const Part& part, Index vector, const Vector<T>& dy, float (&g)[Vector<T>::size]
) {
    Vector<T> gamma;
    if (b.gamma) gamma = part.load(b.gamma, vector, b.aligned);
#pragma unroll
    for (int k = 0; k < Part::V; ++k)
        g[k] = b.gamma ? __fmul_rn(to_float(dy.at[k]), to_float(gamma.at[k])) : to_float(dy.at[k]);
}

template <typename Part, typename Index>
__device__ __forceinline__ void add_to_sums(
    const Backward& b, const Part& part, const NormGradient& row, Index vector, const Vector<T>& dy, const Vector<T>& x,
    float (&sums)[3]
) {
    float g[Part::V];
    scaled(b, part, vector, dy, g);
#pragma unroll
    for (int k = 0; k < Part::V; ++k)
        if (part.has(vector, k)) {
            const float distance = to_float(x.at[k]) - row.mean;
            sums[0] += g[k];
            sums[1] += g[k] * distance;
            sums[2] += distance;
        }
}

// dx of a vector; dgamma and dbeta: the sums of its columns.
template <typename Part, typename Index>
__device__ __forceinline__ void write_gradients(
    const Backward& b, const Part& part, const NormGradient& row, int64 number, Index vector, const Vector<T>& dy,
    const Vector<T>& x, float* dgamma, float* dbeta
) {
    float g[Part::V];
    scaled(b, part, vector, dy, g);
    Vector<T> dx, dtotal;
    if (b.added) dtotal = part.load(b.dtotal + number * b.columns, vector, b.aligned);
#pragma unroll
    for (int k = 0; k < Part::V; ++k) {
        const float normalised = row.xhat(to_float(x.at[k]));
        float gradient = row.gradient(g[k], normalised);
        if (b.added) gradient += to_float(dtotal.at[k]);
        dx.at[k] = convert<T>(gradient);
        dgamma[k] += to_float(dy.at[k]) * normalised;
        dbeta[k] += to_float(dy.at[k]);
    }
    part.store(b.dx + number * b.columns, vector, dx, b.aligned);
}

// The columns of a row of whole vectors; of none where there is no such row.
__device__ __forceinline__ Columns<T, true, int> held_columns(const Backward& b, int64 row, int size, int rank) {
    return {row < b.rows ? static_cast<int>(b.columns) : 0, size, rank};
}

template <typename Team>
__device__ __forceinline__ void walk_rows(
    const Backward& b, Team& team, float (&dgamma)[COLUMNS], float (&dbeta)[COLUMNS]
) {
    for (int64 number = team.first(); team.any(number, b.rows); number += team.step()) {
        const Columns<T, true, int> part = held_columns(b, number, team.size, team.rank);
        NormGradient row = read_row(b, number);
        Vector<T> dy[VECTORS], x[VECTORS];
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            dy[v] = part.load(b.dy + number * b.columns, v, b.aligned);
            x[v] = part.load(b.x + number * b.columns, v, b.aligned);
        }
        const int64 next = number + team.step();
#pragma unroll
        for (int v = 0; v < VECTORS; ++v)
            if (next < b.rows && part.has(v, 0)) {
                prefetch(b.dy + next * b.columns + part.at(v, 0));
                prefetch(b.x + next * b.columns + part.at(v, 0));
            }
        float sums[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            stay_packed(dy[v]);
            stay_packed(x[v]);
            add_to_sums(b, part, row, v, dy[v], x[v], sums);
        }
        team.sum(sums);
        row.finish(sums, b.columns, b.centred);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            stay_packed(dy[v]);
            stay_packed(x[v]);
            write_gradients(b, part, row, number, v, dy[v], x[v], dgamma + v * part.V, dbeta + v * part.V);
        }
    }
}

// Writes the sums of this thread's columns into the block's row of partials: (blocks, 2, columns), dgamma then dbeta.
__device__ __forceinline__ void write_partials(
    const Backward& b, float* partials, int size, int rank, const float* dgamma, const float* dbeta
) {
    const Columns<T, true, int> part{static_cast<int>(b.columns), size, rank};
    float* const row = partials + static_cast<int64>(blockIdx.x) * 2 * b.columns;
#pragma unroll
    for (int i = 0; i < COLUMNS; ++i)
        if (part.has(i / part.V, 0)) {
            row[part.at(i / part.V, i % part.V)] = dgamma[i];
            row[b.columns + part.at(i / part.V, i % part.V)] = dbeta[i];
        }
}

template <int THREADS>
__device__ __forceinline__ void by_blocks(const Backward& b, float* partials, float* scratch) {
    BlockTeam<THREADS> team(scratch);
    float dgamma[COLUMNS] = {}, dbeta[COLUMNS] = {};
    walk_rows(b, team, dgamma, dbeta);
    if (partials) write_partials(b, partials, team.size, team.rank, dgamma, dbeta);
}

// `lanes` threads a row, for rows of up to 16 columns a lane of a warp. The teams of a block add up their sums.
extern "C" __global__ __launch_bounds__(128, 4) void norm_rows_backward_lanes(
    const T* dy, const T* dtotal, const T* x, const T* gamma, const float* mean, const float* rstd, T* dx,
    float* partials, int64 rows, int64 columns, int centred, int added, int lanes) {
    __shared__ float scratch[4 * 2 * COLUMNS * WARP];  // (warps, 2, columns, lanes)
    Backward b{dy, dtotal, x, gamma, mean, rstd, dx, rows, columns, centred, added};
    b.check_alignment();
    LaneTeam team(lanes);
    float sums[2][COLUMNS] = {};
    walk_rows(b, team, sums[0], sums[1]);
    if (!partials) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) {
        float& sum = sums[i / COLUMNS][i % COLUMNS];
        for (int offset = lanes; offset < WARP; offset *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
        scratch[(warp * 2 * COLUMNS + i) * WARP + lane] = sum;
    }
    __syncthreads();
    if (warp != 0 || lane >= lanes) return;
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i)
        for (int other = 1; other < warps; ++other)
            sums[i / COLUMNS][i % COLUMNS] += scratch[(other * 2 * COLUMNS + i) * WARP + lane];
    write_partials(b, partials, lanes, lane, sums[0], sums[1]);
}

// A block a row; its size is the smallest that holds the row.
extern "C" __global__ __launch_bounds__(128, 4) void norm_rows_backward_128(
    const T* dy, const T* dtotal, const T* x, const T* gamma, const float* mean, const float* rstd, T* dx,
    float* partials, int64 rows, int64 columns, int centred, int added) {
    __shared__ float scratch[SCRATCH];
    Backward b{dy, dtotal, x, gamma, mean, rstd, dx, rows, columns, centred, added};
    b.check_alignment();
    by_blocks<128>(b, partials, scratch);
}

extern "C" __global__ __launch_bounds__(256, 2) void norm_rows_backward_256(
    const T* dy, const T* dtotal, const T* x, const T* gamma, const float* mean, const float* rstd, T* dx,
    float* partials, int64 rows, int64 columns, int centred, int added) {
    __shared__ float scratch[SCRATCH];
    Backward b{dy, dtotal, x, gamma, mean, rstd, dx, rows, columns, centred, added};
    b.check_alignment();
    by_blocks<256>(b, partials, scratch);
}

extern "C" __global__ __launch_bounds__(512, 1) void norm_rows_backward_512(
    const T* dy, const T* dtotal, const T* x, const T* gamma, const float* mean, const float* rstd, T* dx,
    float* partials, int64 rows, int64 columns, int centred, int added) {
    __shared__ float scratch[SCRATCH];
    Backward b{dy, dtotal, x, gamma, mean, rstd, dx, rows, columns, centred, added};
    b.check_alignment();
    by_blocks<512>(b, partials, scratch);
}

// For each row its `rest`, mean_g and mean_g_xhat, in that order: what the strips need of rows that no team holds.
template <bool VECTORISED, typename Team>
__device__ __forceinline__ void write_row_sums(const Backward& b, float* row_sums, Team team) {
    const int64 vectors = (b.columns + team.size * Vector<T>::size - 1) / (team.size * Vector<T>::size);
    for (int64 number = team.first(); team.any(number, b.rows); number += team.step()) {
        const bool active = number < b.rows;
        const Columns<T, VECTORISED, int64> part{active ? b.columns : 0, team.size, team.rank};
        NormGradient row = read_row(b, number);
        float sums[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll 2
        for (int64 v = 0; v < vectors; ++v) {
            const Vector<T> dy = part.load(b.dy + number * b.columns, v), x = part.load(b.x + number * b.columns, v);
            float few[3] = {0.0f, 0.0f, 0.0f};  // a level of its own: a long row has many terms
            add_to_sums(b, part, row, v, dy, x, few);
#pragma unroll
            for (int k = 0; k < 3; ++k) sums[k] += few[k];
        }
        team.sum(sums);
        row.finish(sums, b.columns, b.centred);
        if (active && team.rank == 0) {
            row_sums[3 * number] = row.rest;
            row_sums[3 * number + 1] = row.mean_g;
            row_sums[3 * number + 2] = row.mean_g_xhat;
        }
    }
}

extern "C" __global__ __launch_bounds__(128) void norm_row_sums_lanes(
    const T* dy, const T* x, const T* gamma, const float* mean, const float* rstd, float* row_sums, int64 rows,
    int64 columns, int centred, int lanes) {
    const Backward b{dy, nullptr, x, gamma, mean, rstd, nullptr, rows, columns, centred, 0};
    write_row_sums<false>(b, row_sums, LaneTeam(lanes));
}

extern "C" __global__ __launch_bounds__(LONG_ROW_THREADS, 1) void norm_row_sums_block(
    const T* dy, const T* x, const T* gamma, const float* mean, const float* rstd, float* row_sums, int64 rows,
    int64 columns, int centred) {
    __shared__ float scratch[SCRATCH];
    Backward b{dy, nullptr, x, gamma, mean, rstd, nullptr, rows, columns, centred, 0};
    b.check_alignment();
    if (b.aligned && columns % Vector<T>::size == 0)
        write_row_sums<true>(b, row_sums, BlockTeam<LONG_ROW_THREADS>(scratch));
    else
        write_row_sums<false>(b, row_sums, BlockTeam<LONG_ROW_THREADS>(scratch));
}

template <int WIDTH>
__device__ __forceinline__ void walk_strip(
    const Backward& b, const float* row_sums, float* partials, int across, int strips, float* shared
) {
    const Strip<T, WIDTH, STRIP_THREADS> strip(b.columns, blockIdx.x % strips, across);
    const int64 split = blockIdx.x / strips, splits = gridDim.x / strips;
    float sums[2][WIDTH] = {};
    float gamma[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) gamma[k] = strip.active && b.gamma ? to_float(b.gamma[strip.column + k]) : 1.0f;
    if (strip.active) {
#pragma unroll 2
        for (int64 number = split * strip.phases + strip.phase; number < b.rows; number += splits * strip.phases) {
            const int64 at = number * b.columns + strip.column;
            const Elements<T, WIDTH> dy = strip.load(b.dy + at, b.aligned), x = strip.load(b.x + at, b.aligned);
            Elements<T, WIDTH> dtotal;
            if (b.added) dtotal = strip.load(b.dtotal + at, b.aligned);
            NormGradient row = read_row(b, number);
            row.rest = row_sums[3 * number];
            row.mean_g = row_sums[3 * number + 1];
            row.mean_g_xhat = row_sums[3 * number + 2];
            float dx[WIDTH];
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                const float normalised = row.xhat(to_float(x.at[k])), gradient = to_float(dy.at[k]);
                dx[k] = row.gradient(__fmul_rn(gradient, gamma[k]), normalised);
                if (b.added) dx[k] += to_float(dtotal.at[k]);
                sums[0][k] += gradient * normalised;
                sums[1][k] += gradient;
            }
            strip.store(b.dx + at, dx, b.aligned);
        }
    }
    if (!partials) return;
    strip.sum(sums, shared);
    if (strip.active && strip.phase == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) partials[(2 * split + i) * b.columns + strip.column + k] = sums[i][k];
    }
}

// width: elements of a thread, 16 bytes of them or 1.
extern "C" __global__ __launch_bounds__(STRIP_THREADS) void norm_rows_backward_strips(
    const T* dy, const T* dtotal, const T* x, const T* gamma, const float* mean, const float* rstd,
    const float* row_sums, T* dx, float* partials, int64 rows, int64 columns, int centred, int added, int width,
    int across, int strips) {
    __shared__ float shared[2 * Vector<T>::size * STRIP_THREADS];
    Backward b{dy, dtotal, x, gamma, mean, rstd, dx, rows, columns, centred, added};
    b.check_alignment();
    if (width > 1)
        walk_strip<Vector<T>::size>(b, row_sums, partials, across, strips, shared);
    else
        walk_strip<1>(b, row_sums, partials, across, strips, shared);
}
