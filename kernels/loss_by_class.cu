// Losses of a choice among classes other than cross-entropy; the formulas are derived in bp/ops/loss.py.
//
// Rows of up to 1024 classes are worked on by `lanes` threads of a warp, longer ones by a block (lanes = THREADS).
#include "gradient.cuh"
#include "label.cuh"
#include "row_group.cuh"

constexpr int THREADS = 256;

// One logarithm a row is read; what costs is the gradient, written once: zero but for the label.
extern "C" __global__ __launch_bounds__(THREADS) void negative_log_likelihood(
    const T* log_probabilities, const void* labels, int label_type, const float* class_weight, const double* control,
    float* losses, T* gradients, int64 rows, int64 classes, int64 ignore_index, int gradient, int lanes) {
    const RowGroup group(lanes);
    if (group.row >= rows) return;
    const T* row = log_probabilities + group.row * classes;
    const int64 label = read_label(labels, group.row, label_type);
    const float weight = label == ignore_index ? 0.0f : weight_of(label, classes, class_weight);
    if (group.lane == 0) {
        const float x = weight != 0.0f && names_class(label, classes) ? to_float(row[label]) : 0.0f;
        losses[group.row] = weighted(-weight, x);
    }
    if (!gradient) return;
    // Of a label outside the classes, NaN everywhere.
    const float other = weight == weight ? 0.0f : weight, own = -weight * gradient_factor(control);
    T* const to = gradients + group.row * classes;
    const RowVectors<T> vectors(to, classes);
    for (int64 i = group.lane; i < vectors.count; i += lanes) {
        Vector<T> v;
#pragma unroll
        for (int k = 0; k < Vector<T>::size; ++k)
            v.at[k] = convert<T>(vectors.first(i) + k == label ? own : other);
        store16(to + vectors.first(i), v);
    }
    for (int64 i = group.lane; i < vectors.edges; i += lanes)
        to[vectors.edge(i)] = convert<T>(vectors.edge(i) == label ? own : other);
}

// The row is read twice, the second time from a cache: the gradient of the label is the sum over the others.
extern "C" __global__ __launch_bounds__(THREADS) void multi_margin(
    const T* predictions, const void* labels, int label_type, const double* control, float* losses, T* gradients,
    int64 rows, int64 classes, int power, float margin, int gradient, int lanes) {
    __shared__ float scratch[WARP];
    const RowGroup group(lanes);
    const bool exists = group.row < rows;
    const int64 begin = group.row * classes, label = exists ? read_label(labels, group.row, label_type) : -1;
    const RowVectors<T> row(predictions + begin, exists ? classes : 0, gradient ? gradients + begin : nullptr);
    const float own = names_class(label, classes) ? to_float(row.row[label]) : not_a_number();

    // max(0, m) that keeps NaN; the slope of max at 0 is 0.
    auto distance = [&](int64 column, float x) {
        const float m = x - (own - margin);
        return column == label || m <= 0.0f ? 0.0f : m;
    };
    auto slope = [&](float m) { return power == 2 ? 2.0f * m : m > 0.0f ? 1.0f : m; };
    float loss = 0.0f, pull = 0.0f;
    for_row(row, group, [&](int64 column, float x) {
        const float m = distance(column, x);
        loss += power == 2 ? m * m : m;
        pull += slope(m);
    });
    loss = group_reduce(loss, lanes, scratch, Total<float>());
    pull = group_reduce(pull, lanes, scratch, Total<float>());
    if (!exists) return;
    // A row of one class has no other to compare with; with a label outside it is NaN all the same.
    if (!names_class(label, classes)) loss = own;
    if (group.lane == 0) losses[group.row] = loss / classes;
    if (!gradient) return;
    const float factor = gradient_factor(control) / classes;
    map_row(row, gradients + begin, group, [&](int64 column, float x) {
        return factor * (column == label ? -pull : slope(distance(column, x)));
    });
}
