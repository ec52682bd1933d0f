// The second level of a sum: the sums of parts, in double, are added up and rounded once.
#include "columns.cuh"
#include "row_group.cuh"

constexpr int THREADS = 256;

// y[column] = scale * the sum of parts (rows, columns) down the column, added to y where add is set.
extern "C" __global__ __launch_bounds__(THREADS) void sum_parts(const double* parts, float* y, int64 rows,
                                                                int64 columns, double scale, int add, int width) {
    __shared__ double scratch[THREADS];
    const Total<double> total;
    const int64 column = static_cast<int64>(blockIdx.x) * width + threadIdx.x % width;
    const bool exists = column < columns;
    reduce_columns<1, THREADS>(
        0, exists ? rows : 0, width, total,
        [&](int64 row, double(&sums)[1]) { sums[0] += parts[row * columns + column]; }, scratch,
        [&](int, double sum) {
            if (exists) y[column] = static_cast<float>(sum * scale + (add ? y[column] : 0.0f));
        });
}
