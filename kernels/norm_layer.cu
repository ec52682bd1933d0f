// Layer and RMS norm of the rows of a matrix, forward, with or without a residual that is added first.
//
// A row is read once and held in registers, so mean and variance are computed one after the other from the very
// numbers, and the result is written from there: 2 arrays of traffic (4 with the residual and the total). 64 bytes a
// thread are in flight. RMS norm (centred 0) is layer norm with the mean taken as 0.
//
// The mean is found about a pivot, the row's first element: sums of distances round in proportion to the spread of
// the numbers, not to their size. It is applied as the sum of two floats (WideMean); only the first of them is saved,
// and the backward finds the rest again.
#include "row.cuh"

constexpr int VECTORS = 4;
constexpr int LONG_ROW_THREADS = 512;

struct Forward {
    const T *x, *residual, *gamma, *beta;
    T *total, *y;
    float *mean, *rstd;
    int64 rows, columns;
    float eps;
    int centred;  // 1: layer norm, 0: RMS norm
    int added;    // 1: normalise total = x + residual

    __device__ __forceinline__ bool vectorised() const {
        return columns % Vector<T>::size == 0 && aligned16(x) && aligned16(residual) && aligned16(gamma) &&
               aligned16(beta) && aligned16(total) && aligned16(y);
    }

    __device__ __forceinline__ float first_of(int64 row) const {
        const float first = to_float(x[row * columns]);
        return added ? to_float(convert<T>(first + to_float(residual[row * columns]))) : first;
    }

    // A vector of the row to normalise; a total is written.
    template <typename Part, typename Index>
    __device__ __forceinline__ Vector<T> load(const Part& part, int64 row, Index vector) const {
        Vector<T> value = part.load(x + row * columns, vector);
        if (added) {
            const Vector<T> other = part.load(residual + row * columns, vector);
#pragma unroll
            for (int k = 0; k < Part::V; ++k) value.at[k] = convert<T>(to_float(value.at[k]) + to_float(other.at[k]));
            part.store(total + row * columns, vector, value);
        }
        return value;
    }

    __device__ __forceinline__ float rstd_of(float variance) const {
        return 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);  // NaN stays NaN
    }

    // y = gamma (x - mean) rstd + beta for one vector.
    template <typename Part, typename Index>
    __device__ __forceinline__ void write(
        const Part& part, int64 row, Index vector, Vector<T> value, const WideMean& center, float scale
    ) const {
        const float shift = -center.low * scale;
        Vector<T> weight, bias;
        if (gamma) weight = part.load(gamma, vector);
        if (beta) bias = part.load(beta, vector);
#pragma unroll
        for (int k = 0; k < Part::V; ++k) {
            float result = fmaf(to_float(value.at[k]) - center.high, scale, shift);
            if (gamma) result *= to_float(weight.at[k]);
            if (beta) result += to_float(bias.at[k]);
            value.at[k] = convert<T>(result);
        }
        part.store(y + row * columns, vector, value);
    }

    __device__ __forceinline__ void save(int64 row, const WideMean& center, float scale) const {
        if (centred) mean[row] = center.high;
        rstd[row] = scale;
    }
};

// Rows that the registers of the team hold; each of them begins at a multiple of 16 bytes.
template <typename Team>
__device__ __forceinline__ void norm_held_rows(const Forward& f, Team team) {
    using Part = Columns<T, true, int>;
    const float inverse_count = 1.0f / f.columns;
    for (int64 row = team.first(); team.any(row, f.rows); row += team.step()) {
        const bool active = row < f.rows;
        const Part part{active ? static_cast<int>(f.columns) : 0, team.size, team.rank};
        Vector<T> held[VECTORS];
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) held[v] = f.load(part, row, v);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) stay_packed(held[v]);

        WideMean center(0.0f, 0.0f);
        if (f.centred) {
            const float pivot = active ? f.first_of(row) : 0.0f;
            float sum[1] = {0.0f};
#pragma unroll
            for (int v = 0; v < VECTORS; ++v)
#pragma unroll
                for (int k = 0; k < Part::V; ++k)
                    if (part.has(v, k)) sum[0] += to_float(held[v].at[k]) - pivot;
            team.sum(sum);
            center = WideMean(pivot, sum[0] * inverse_count);
        }
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) stay_packed(held[v]);
        float squares[1] = {0.0f};
#pragma unroll
        for (int v = 0; v < VECTORS; ++v)
#pragma unroll
            for (int k = 0; k < Part::V; ++k) {
                const float distance = to_float(held[v].at[k]) - center.high;
                if (part.has(v, k)) squares[0] += distance * distance;
            }
        team.sum(squares);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) stay_packed(held[v]);
        const float scale = f.rstd_of(squares[0] * inverse_count - center.low * center.low);

#pragma unroll
        for (int v = 0; v < VECTORS; ++v) f.write(part, row, v, held[v], center, scale);
        if (active && team.rank == 0) f.save(row, center, scale);
    }
}

// Rows of any length and alignment, read twice; the second time they mostly come from a cache.
template <bool VECTORISED, typename Team>
__device__ __forceinline__ void norm_looped_rows(const Forward& f, Team team) {
    using Part = Columns<T, VECTORISED, int64>;
    constexpr int UNROLLED = VECTORISED ? 2 : 1;
    const int64 vectors = (f.columns + team.size * Part::V - 1) / (team.size * Part::V);
    for (int64 row = team.first(); team.any(row, f.rows); row += team.step()) {
        const bool active = row < f.rows;
        const Part part{active ? f.columns : 0, team.size, team.rank};
        const float pivot = f.centred && active ? f.first_of(row) : 0.0f;
        Moments all;
#pragma unroll UNROLLED
        for (int64 v = 0; v < vectors; ++v) {
            const Vector<T> value = f.load(part, row, v);
            Moments few;  // of the elements of the vector, in two steps as above
#pragma unroll
            for (int k = 0; k < Part::V; ++k)
                if (part.has(v, k)) {
                    few.count += 1.0f;
                    few.mean += to_float(value.at[k]) - pivot;
                }
            few.mean /= few.count > 0.0f ? few.count : 1.0f;
#pragma unroll
            for (int k = 0; k < Part::V; ++k) {
                const float distance = to_float(value.at[k]) - pivot - few.mean;
                if (part.has(v, k)) few.spread += distance * distance;
            }
            all.add(few);
        }
        team.gather(all);
        // About 0 instead of the mean, the mean square is larger by the square of the mean.
        const float variance = all.spread / f.columns + (f.centred ? 0.0f : all.mean * all.mean);
        const WideMean center = f.centred ? WideMean(pivot, all.mean) : WideMean(0.0f, 0.0f);
        const float scale = f.rstd_of(variance);
        const T* const input = (f.added ? f.total : f.x) + row * f.columns;
#pragma unroll UNROLLED
        for (int64 v = 0; v < vectors; ++v) f.write(part, row, v, part.load(input, v), center, scale);
        if (active && team.rank == 0) f.save(row, center, scale);
    }
}

template <typename Team>
__device__ __forceinline__ void norm_rows(const Forward& f, Team team) {
    if (f.vectorised())
        norm_held_rows(f, team);
    else
        norm_looped_rows<false>(f, team);
}

// `lanes` threads a row: for rows of up to 4 vectors of 16 bytes a lane of a warp.
extern "C" __global__ __launch_bounds__(128, 4) void norm_rows_lanes(
    const T* x, const T* residual, const T* gamma, const T* beta, T* total, T* y, float* mean, float* rstd, int64 rows,
    int64 columns, float eps, int centred, int added, int lanes) {
    const Forward f{x, residual, gamma, beta, total, y, mean, rstd, rows, columns, eps, centred, added};
    norm_rows(f, LaneTeam(lanes));
}

// A block a row; its size is the smallest that holds the row.
extern "C" __global__ __launch_bounds__(128) void norm_rows_128(
    const T* x, const T* residual, const T* gamma, const T* beta, T* total, T* y, float* mean, float* rstd, int64 rows,
    int64 columns, float eps, int centred, int added) {
    __shared__ float scratch[SCRATCH];
    const Forward f{x, residual, gamma, beta, total, y, mean, rstd, rows, columns, eps, centred, added};
    norm_rows(f, BlockTeam<128>(scratch));
}

extern "C" __global__ __launch_bounds__(256) void norm_rows_256(
    const T* x, const T* residual, const T* gamma, const T* beta, T* total, T* y, float* mean, float* rstd, int64 rows,
    int64 columns, float eps, int centred, int added) {
    __shared__ float scratch[SCRATCH];
    const Forward f{x, residual, gamma, beta, total, y, mean, rstd, rows, columns, eps, centred, added};
    norm_rows(f, BlockTeam<256>(scratch));
}

extern "C" __global__ __launch_bounds__(512, 1) void norm_rows_512(
    const T* x, const T* residual, const T* gamma, const T* beta, T* total, T* y, float* mean, float* rstd, int64 rows,
    int64 columns, float eps, int centred, int added) {
    __shared__ float scratch[SCRATCH];
    const Forward f{x, residual, gamma, beta, total, y, mean, rstd, rows, columns, eps, centred, added};
    norm_rows(f, BlockTeam<512>(scratch));
}

// Rows that no block holds.
extern "C" __global__ __launch_bounds__(LONG_ROW_THREADS, 1) void norm_rows_long(
    const T* x, const T* residual, const T* gamma, const T* beta, T* total, T* y, float* mean, float* rstd, int64 rows,
    int64 columns, float eps, int centred, int added) {
    __shared__ float scratch[SCRATCH];
    const Forward f{x, residual, gamma, beta, total, y, mean, rstd, rows, columns, eps, centred, added};
    if (f.vectorised())
        norm_looped_rows<true>(f, BlockTeam<LONG_ROW_THREADS>(scratch));
    else
        norm_looped_rows<false>(f, BlockTeam<LONG_ROW_THREADS>(scratch));
}
