// What Adafactor and Muon compute of a whole matrix before its update; the formulas stand in
// bp/ops/matrix_optimizer.py.
//
// A matrix is (rows, columns), its values and gradients are views of the arena. Sums go in two levels, whose parts
// depend on the shape alone: the blocks of one launch leave partial sums, and every block of the next adds all of them
// up again, which is cheaper than a launch in between.
#include "matrix_optimizer.cuh"

constexpr int THREADS = 256;

// Adafactor --------------------------------------------------------------------------------------------------

// Sums of g^2 along the part of each row (row_sums: (tiles, rows)) and of each column (column_sums: (bands, columns)),
// and of the squares of the values (value_sums: one a block). row_sums null: a vector.
extern "C" __global__ __launch_bounds__(THREADS) void adafactor_squares(const float* values, const float* gradients,
                                                                        const float* settings, const double* control,
                                                                        float* row_sums, float* column_sums,
                                                                        double* value_sums, int64 rows, int64 columns,
                                                                        int64 band) {
    __shared__ float by_warp[WARPS][COLUMNS];
    __shared__ double scratch[WARP];
    if (step_is_skipped(control)) return;
    const Settings step = settings_of_step(settings, control);
    const Part part(rows, columns, band);
    float by_column[LANE_COLUMNS] = {}, row_sum = 0.0f;
    double value_sum = 0.0;
    part.each(
        [&](int64 row, int64 column, int k) {
            const float value = values[row * columns + column];
            const float g = step.regularized(gradients[row * columns + column], value);
            by_column[k] += g * g;
            row_sum += g * g;
            value_sum += static_cast<double>(value) * static_cast<double>(value);
        },
        [&](int64 row) {
            const float sum = warp_reduce(row_sum, Sum());
            if (row_sums != nullptr && threadIdx.x % WARP == 0) row_sums[part.tile * rows + row] = sum;
            row_sum = 0.0f;
        });
#pragma unroll
    for (int k = 0; k < LANE_COLUMNS; ++k) by_warp[threadIdx.x / WARP][threadIdx.x % WARP + k * WARP] = by_column[k];
    const double total = block_sum(value_sum, scratch);  // its barriers also end the writing of by_warp
    if (threadIdx.x == 0) value_sums[blockIdx.x] = total;
    if (threadIdx.x < part.columns) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) sum += by_warp[warp][threadIdx.x];
        column_sums[part.band * columns + part.first_column + threadIdx.x] = sum;
    }
}

// mean = (1 - w) mean + w (sum of the parts) / length, for one axis of the matrix, w = t^decay. mean_sums: of the new
// means, one a block.
extern "C" __global__ __launch_bounds__(THREADS) void adafactor_means(const float* sums, float* means, double* mean_sums,
                                                                      const double* control, int64 n, int64 parts,
                                                                      int64 length, double decay) {
    __shared__ double scratch[WARP];
    __shared__ double shared_weight;
    if (step_is_skipped(control)) return;
    if (threadIdx.x == 0) shared_weight = pow(control[APPLIED_STEP], decay);
    __syncthreads();
    const double weight = shared_weight;
    const int64 i = static_cast<int64>(blockIdx.x) * THREADS + threadIdx.x;
    float mean = 0.0f;
    if (i < n) {
        double sum = 0.0;
        for (int64 part = 0; part < parts; ++part) sum += sums[part * n + i];
        mean = static_cast<float>(1.0 - weight) * means[i] + static_cast<float>(sum * weight / static_cast<double>(length));
        means[i] = mean;
    }
    const double total = block_sum(mean, scratch);
    if (threadIdx.x == 0) mean_sums[blockIdx.x] = total;
}

// update_sums: of u^2, one a block. Four blocks a multiprocessor: for more of them the compiler would spill.
extern "C" __global__ __launch_bounds__(THREADS, 4) void adafactor_size(const float* values, const float* gradients,
                                                                     const float* row_means, const float* column_means,
                                                                     const float* settings, const double* control,
                                                                     const double* mean_sums, double* update_sums,
                                                                     int64 rows, int64 columns, int64 band,
                                                                     int64 mean_parts, double eps1) {
    __shared__ double scratch[WARP];
    if (step_is_skipped(control)) return;
    const Scaled scaled = scaled_by(row_means, column_means, mean_sums, mean_parts, rows, eps1, scratch);
    const Settings step = settings_of_step(settings, control);
    const Part part(rows, columns, band);
    float row_sum = 0.0f;
    double sum = 0.0;
    part.each(
        [&](int64 row, int64 column, int) {
            const int64 i = row * columns + column;
            const float u = scaled(step.regularized(gradients[i], values[i]), row, column);
            row_sum += u * u;
        },
        [&](int64) {
            sum += row_sum;
            row_sum = 0.0f;
        });
    const double total = block_sum(sum, scratch);
    if (threadIdx.x == 0) update_sums[blockIdx.x] = total;
}

// Muon -------------------------------------------------------------------------------------------------------

// m = momentum m + (1 - momentum) g, and the matrix u to be made orthogonal, with the sums of its squares, one a block.
// Where the step is skipped u is not written: what follows computes with what is there, and muon_update leaves it out.
extern "C" __global__ __launch_bounds__(THREADS) void muon_momentum(const float* values, const float* gradients,
                                                                    float* first_moment, float* u, const float* settings,
                                                                    const double* control, double* square_sums, int64 n,
                                                                    double momentum, bool nesterov) {
    __shared__ double scratch[WARP];
    if (step_is_skipped(control)) return;
    const Settings step = settings_of_step(settings, control);
    const float kept = static_cast<float>(momentum), weight = static_cast<float>(1.0 - momentum);
    double sum = 0.0;
    grid_stride(n, [&](int64 i) {
        const float g = step.regularized(gradients[i], values[i]);
        const float m = kept * first_moment[i] + weight * g;
        const float x = nesterov ? weight * g + kept * m : m;
        first_moment[i] = m;
        u[i] = x;
        sum += static_cast<double>(x) * static_cast<double>(x);
    });
    const double total = block_sum(sum, scratch);
    if (threadIdx.x == 0) square_sums[blockIdx.x] = total;
}

// x /= max(||x||, eps).
extern "C" __global__ __launch_bounds__(THREADS) void muon_normalize(float* x, const double* square_sums,
                                                                     const double* control, int64 n, int64 parts,
                                                                     double eps) {
    __shared__ double scratch[WARP];
    if (step_is_skipped(control)) return;
    const double norm = sqrt(block_total(square_sums, parts, scratch));
    const float divisor = static_cast<float>(norm < eps ? eps : norm);  // NaN stays
    grid_stride(n, [&](int64 i) { x[i] /= divisor; });
}

// square = a I + b gram + c square, of (side, side) matrices: the factor by which an iteration multiplies X.
extern "C" __global__ __launch_bounds__(THREADS) void muon_polynomial(const float* gram, float* square, int64 side,
                                                                      double a, double b, double c) {
    const float identity = static_cast<float>(a), first = static_cast<float>(b), second = static_cast<float>(c);
    grid_stride(side * side, [&](int64 i) {
        const float diagonal = i / side == i % side ? identity : 0.0f;
        square[i] = diagonal + (first * gram[i] + second * square[i]);
    });
}
