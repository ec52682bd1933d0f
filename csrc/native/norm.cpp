// Layer and RMS norm on float32: statistics of each row of a matrix.
#include "lanes.hpp"
#include "norm.hpp"

namespace {

using namespace bp::norm;

using bp::lane_sum;

constexpr int64_t GROUP = 4096;  // elements

// Rows go through each pass in groups that stay in the first-level cache: the sums of a row, each a chain of additions,
// then overlap with those of the next.
BP_CLONES void layer_norm_rows(const float* x, const float* gamma, const float* beta, int64_t rows, int64_t columns,
                               double eps, float* y, double* mean, double* rstd) {
    const int64_t group = columns < GROUP ? GROUP / std::max<int64_t>(columns, 1) : 1;
    for (int64_t first = 0; first < rows; first += group) {
        const int64_t last = std::min(rows, first + group);
        for (int64_t r = first; r < last; ++r) {
            const float* __restrict in = x + r * columns;
            mean[r] = lane_sum(columns, [=](int64_t j) { return in[j]; }) / double(columns);
        }
        for (int64_t r = first; r < last; ++r) {
            const float* __restrict in = x + r * columns;
            const float centre = float(mean[r]);
            const bp::Sums sums = bp::lane_sums<true>(columns, [=](int64_t j) { return in[j] - centre; });
            const double rest = sums.terms / double(columns);
            const double variance = sums.squares / double(columns) - rest * rest;
            mean[r] = centre + rest;
            rstd[r] = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);
        }
        for (int64_t r = first; r < last; ++r) {
            const float* __restrict in = x + r * columns;
            float* __restrict out = y + r * columns;
            const float hi = float(mean[r]), scale = float(rstd[r]), shift = float((hi - mean[r]) * rstd[r]);
            for (int64_t j = 0; j < columns; ++j) out[j] = ((in[j] - hi) * scale + shift) * gamma[j] + beta[j];
        }
    }
}

BP_CLONES void rms_norm_rows(const float* x, const float* gamma, int64_t rows, int64_t columns, double eps, float* y,
                             double* rstd) {
    for (int64_t r = 0; r < rows; ++r) {
        const float* __restrict in = x + r * columns;
        float* __restrict out = y + r * columns;
        const double squares = lane_sum(columns, [=](int64_t j) { return in[j] * in[j]; });
        rstd[r] = 1 / std::sqrt(squares / double(columns) + eps);
        const float scale = float(rstd[r]);
        for (int64_t j = 0; j < columns; ++j) out[j] = in[j] * scale * gamma[j];
    }
}

// mean null: RMS norm, which takes no mean away. dgamma, dbeta: the sums of this block of rows, zero at the start.
BP_CLONES void norm_backward_rows(const float* dy, const float* x, const float* gamma, const double* mean,
                                  const double* rstd, int64_t rows, int64_t columns, float* dx,
                                  float* __restrict dgamma, float* __restrict dbeta) {
    for (int64_t r = 0; r < rows; ++r) {
        const float* __restrict in = x + r * columns;
        const float* __restrict grad = dy + r * columns;
        float* __restrict out = dx + r * columns;
        const double centre = mean ? mean[r] : 0;
        const float scale = float(rstd[r]), hi = float(centre);
        const float shift = float((hi - centre) * rstd[r]);
        const auto xhat = [=](int64_t j) { return (in[j] - hi) * scale + shift; };
        // g is rounded before its mean is taken from it, so that a row of one element gets exactly 0.
        for (int64_t j = 0; j < columns; ++j) out[j] = grad[j] * gamma[j];
        const double ones = mean ? lane_sum(columns, [=](int64_t j) { return out[j]; }) : 0;
        const double normals = lane_sum(columns, [=](int64_t j) { return out[j] * xhat(j); });
        const float along_ones = float(ones / double(columns)), along_xhat = float(normals / double(columns));
        for (int64_t j = 0; j < columns; ++j) {
            const float normal = xhat(j);
            out[j] = scale * (out[j] - along_ones - normal * along_xhat);
            dgamma[j] += grad[j] * normal;
            dbeta[j] += grad[j];
        }
    }
}

// A float32 matrix, and its rows in blocks.
struct Matrix {
    int64_t rows, columns;

    explicit Matrix(const Floats& x) : rows(0), columns(0) {
        require(x.ndim() == 2, "expected a matrix");
        rows = x.shape(0);
        columns = x.shape(1);
    }
    void check(const Floats& other) const {
        require(other.ndim() == 2 && other.shape(0) == rows && other.shape(1) == columns, "matrices of two shapes");
    }
    // Calls task(block, first row, rows of the block) for each block, on all threads.
    template <class Task>
    void for_blocks(int64_t block_rows, Task task) const {
        const int64_t blocks = (rows + block_rows - 1) / block_rows;
#pragma omp parallel for schedule(static) if (rows * columns >= PARALLEL_FROM)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = block * block_rows;
            task(block, first, std::min(block_rows, rows - first));
        }
    }
};

void layer_norm(const Floats& x, const MaybeFloats& gamma, const MaybeFloats& beta, double eps, Floats y, Doubles mean,
                Doubles rstd) {
    const Matrix matrix(x);
    matrix.check(y);
    const Affine scale(gamma, matrix.columns, 1), shift(beta, matrix.columns, 0);
    const float* in = x.data();
    float* out = y.mutable_data();
    double *means = output(mean, matrix.rows), *rstds = output(rstd, matrix.rows);
    pybind11::gil_scoped_release release;
    matrix.for_blocks(16, [&](int64_t, int64_t first, int64_t rows) {
        layer_norm_rows(in + first * matrix.columns, scale.data(), shift.data(), rows, matrix.columns, eps,
                        out + first * matrix.columns, means + first, rstds + first);
    });
}

void rms_norm(const Floats& x, const MaybeFloats& gamma, double eps, Floats y, Doubles rstd) {
    const Matrix matrix(x);
    matrix.check(y);
    const Affine scale(gamma, matrix.columns, 1);
    const float* in = x.data();
    float* out = y.mutable_data();
    double* rstds = output(rstd, matrix.rows);
    pybind11::gil_scoped_release release;
    matrix.for_blocks(16, [&](int64_t, int64_t first, int64_t rows) {
        rms_norm_rows(in + first * matrix.columns, scale.data(), rows, matrix.columns, eps,
                      out + first * matrix.columns, rstds + first);
    });
}

void row_norm_backward(const Floats& dy, const Floats& x, const MaybeFloats& gamma, const double* mean,
                       const double* rstd, Floats& dx, float* dgamma, float* dbeta, bool accumulate) {
    const Matrix matrix(x);
    matrix.check(dy);
    matrix.check(dx);
    const Affine scale(gamma, matrix.columns, 1);
    const float *grad = dy.data(), *in = x.data();
    float* out = dx.mutable_data();
    const int64_t columns = matrix.columns;
    pybind11::gil_scoped_release release;
    // Enough blocks for many threads, few enough that their sums are small beside the matrix.
    const int64_t block_rows = std::clamp<int64_t>(matrix.rows / 16, 8, 128);
    const int64_t blocks = (matrix.rows + block_rows - 1) / block_rows;
    std::vector<float> partial(static_cast<std::size_t>(blocks * 2 * columns), 0.0f);
    matrix.for_blocks(block_rows, [&](int64_t block, int64_t first, int64_t rows) {
        float* sums = partial.data() + block * 2 * columns;
        norm_backward_rows(grad + first * columns, in + first * columns, scale.data(), mean ? mean + first : nullptr,
                           rstd + first, rows, columns, out + first * columns, sums, sums + columns);
    });
    std::vector<double> total(static_cast<std::size_t>(2 * columns), 0.0);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t j = 0; j < 2 * columns; ++j) total[j] += partial[block * 2 * columns + j];
    deliver(total.data(), columns, dgamma, accumulate);
    deliver(total.data() + columns, columns, dbeta, accumulate);
}

void layer_norm_backward(const Floats& dy, const Floats& x, const MaybeFloats& gamma, const Doubles& mean,
                         const Doubles& rstd, Floats dx, MaybeFloats dgamma, MaybeFloats dbeta, bool accumulate) {
    const Matrix matrix(x);
    row_norm_backward(dy, x, gamma, input(mean, matrix.rows), input(rstd, matrix.rows), dx,
                      output(dgamma, matrix.columns), output(dbeta, matrix.columns), accumulate);
}

void rms_norm_backward(const Floats& dy, const Floats& x, const MaybeFloats& gamma, const Doubles& rstd, Floats dx,
                       MaybeFloats dgamma, bool accumulate) {
    const Matrix matrix(x);
    row_norm_backward(dy, x, gamma, nullptr, input(rstd, matrix.rows), dx, output(dgamma, matrix.columns), nullptr,
                      accumulate);
}

}  // namespace

BP_NATIVE(norm) {
    const pybind11::arg accumulate("accumulate"), eps("eps");
    module.def("layer_norm", &layer_norm, as_is("x"), as_is("gamma"), as_is("beta"), eps, as_is("y"), as_is("mean"),
               as_is("rstd"));
    module.def("layer_norm_backward", &layer_norm_backward, as_is("dy"), as_is("x"), as_is("gamma"), as_is("mean"),
               as_is("rstd"), as_is("dx"), as_is("dgamma"), as_is("dbeta"), accumulate);
    module.def("rms_norm", &rms_norm, as_is("x"), as_is("gamma"), eps, as_is("y"), as_is("rstd"));
    module.def("rms_norm_backward", &rms_norm_backward, as_is("dy"), as_is("x"), as_is("gamma"), as_is("rstd"),
               as_is("dx"), as_is("dgamma"), accumulate);
}
